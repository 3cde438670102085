"""Picking runs and rows of a dataset, for figures and claims."""

from typing import TYPE_CHECKING, Any

import numpy as np

from factorflow._certificate import DOUBTS

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "at_losses",
    "believed",
    "depths",
    "inits",
    "is_flow",
    "reached",
    "seeds",
    "select",
    "slope",
    "unfinished",
]


def select(dataset: "xr.Dataset", **axes: Any) -> "xr.Dataset":
    """Runs with these values of the axes (`__` for the dot); a tuple accepts any of its values."""
    keep = np.ones(dataset.sizes["run"], bool)
    for axis, value in axes.items():
        column = np.asarray(dataset[axis.replace("__", ".")])
        keep &= np.isin(column, value if isinstance(value, tuple) else [value])
    return dataset.isel(run=np.flatnonzero(keep))


def reached(run: "xr.Dataset") -> "xr.Dataset":
    """The rows of one run that were reached."""
    return run.isel(row=np.flatnonzero(np.asarray(run["reached"])))


def at_losses(run: "xr.Dataset", losses, measure: str) -> np.ndarray:
    """A measure of one run at requested levels; NaN where not reached."""
    requested = np.asarray(run["level"])
    values = np.asarray(run[measure])
    out = []
    for loss in losses:
        row = int(np.argmin(np.abs(np.log(requested / loss))))
        if not np.isclose(requested[row], loss, rtol=1e-6):
            raise LookupError(f"no row at loss {loss:g}")
        out.append(values[row] if bool(run["reached"][row]) else np.full_like(values[row], np.nan))
    return np.asarray(out)


def slope(run: "xr.Dataset", measure: str, upper: float, lower: float) -> float:
    """Log-log slope of a measure over the loss between two levels, from the rows' own losses."""
    losses = at_losses(run, [upper, lower], "loss")
    values = np.abs(at_losses(run, [upper, lower], measure))
    return float(np.diff(np.log(values))[0] / np.diff(np.log(losses))[0])


def is_flow(run: "xr.Dataset") -> bool:
    return str(run["dynamics.kind"].item()) != "GradientDescent"


def depths(dataset: "xr.Dataset") -> list[int]:
    """The depths there are."""
    return sorted({int(depth) for depth in np.asarray(dataset["factorization.depth"])})


def seeds(dataset: "xr.Dataset") -> list[int]:
    """The seeds there are."""
    return sorted({int(seed) for seed in np.asarray(dataset["seed"])})


def inits(dataset: "xr.Dataset") -> list[float]:
    """The product scales of initializations there are, the largest first."""
    scales = np.asarray(dataset["initializer.product_scale"], float)
    return sorted({float(scale) for scale in scales}, reverse=True)


def unfinished(dataset: "xr.Dataset") -> str:
    """How many runs did not reach their loss, in words."""
    count = int(np.sum(np.asarray(dataset["result"]) != "loss_reached"))
    return "all runs reached their loss" if not count else f"{count} runs did not reach their loss"


def believed(run: "xr.Dataset", measure: str) -> np.ndarray:
    """Rows where a measure is drawn as gradient flow: trusted ones, and those nobody looked into.

    Descent without companions is drawn as it is where no invariant speaks against it.
    """
    unconfirmed = np.asarray(run["doubt"]) == tuple(DOUBTS).index("unconfirmed")
    return np.asarray(run[f"trusted[{measure}]"]) | unconfirmed
