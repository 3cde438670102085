"""What ends of flows are held against: solutions of least nuclear and least Frobenius norm."""

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from factorflow.experiments import Experiment
from factorflow.reference import minimum_norm

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ends", "numbers_observed", "select"]

# How tasks call the number of observations.
_NUMBERS = ("task.n_observed", "task.n_measurements")


@dataclasses.dataclass(frozen=True, eq=False)
class _References:
    """Of one problem: its solutions of least norm, and its ground truth."""

    truth: np.ndarray
    nuclear: np.ndarray
    frobenius: np.ndarray
    # The least nuclear norm lies between the two.
    lower: float
    upper: float
    certified: bool


# Threads of one small decomposition wait for each other ten times as long as it takes.
@threadpool_limits.wrap(limits=1, user_api="blas")
def ends(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    """The last row of every run, beside what there is to know about its problem.

    Of the end: its error, nuclear norm and effective rank, and its distances from the solutions of
    least nuclear and least Frobenius norm. The same of the solution of least nuclear norm
    (`least_*`) and of the ground truth (`truth_*`). Errors and distances are in units of the ground
    truth's Frobenius norm. Products are dropped.
    """
    first: dict[tuple, str] = {}
    for experiment in experiments:
        first.setdefault((experiment.task, experiment.seed), experiment.to_json())
    found = [_references(first[e.task, e.seed]) for e in experiments]
    last = dataset.isel(row=[-1])
    products = np.asarray(last["product"])[:, 0]

    def column(values):
        return "run", np.asarray(values)

    def away(products, references):
        gaps = [a - b for a, b in zip(products, references, strict=True)]
        return column(
            [np.linalg.norm(g) / np.linalg.norm(f.truth) for g, f in zip(gaps, found, strict=True)]
        )

    def measured(values):
        return ("run", "row"), np.asarray(values)[:, None]

    nuclear, frobenius = [f.nuclear for f in found], [f.frobenius for f in found]
    truths = [f.truth for f in found]
    last = last.drop_vars("product").assign(
        reconstruction_error=measured(away(products, truths)[1]),
        nuclear_norm=measured([_nuclear_norm(product) for product in products]),
        effective_rank=measured([_effective_rank(product) for product in products]),
    )
    return last.assign_coords(
        least_nuclear_norm=column([f.upper for f in found]),
        least_nuclear_norm_lower=column([f.lower for f in found]),
        least_certified=column([f.certified for f in found]),
        least_effective_rank=column([_effective_rank(f.nuclear) for f in found]),
        least_error=away(nuclear, truths),
        truth_nuclear_norm=column([_nuclear_norm(f.truth) for f in found]),
        truth_effective_rank=column([_effective_rank(f.truth) for f in found]),
        least_frobenius_error=away(frobenius, truths),
        away_from_least_nuclear=away(products, nuclear),
        away_from_least_frobenius=away(products, frobenius),
    )


# Figures share their problems.
@lru_cache(maxsize=32)
def _references(text: str) -> _References:
    problem = Experiment.from_json(text).problem()
    least = minimum_norm(problem, "nuclear_norm")
    return _References(
        truth=np.asarray(problem.target),  # pyright: ignore[reportAttributeAccessIssue]
        nuclear=least.product,
        frobenius=minimum_norm(problem, "frobenius_norm").product,
        lower=least.lower,
        upper=least.value,
        certified=least.certified,
    )


def _nuclear_norm(matrix: np.ndarray) -> float:
    return float(_singular_values(matrix).sum())


def _effective_rank(matrix: np.ndarray) -> float:
    values = _singular_values(matrix)
    shares = values[values != 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _singular_values(matrix: np.ndarray) -> np.ndarray:
    # A run that failed has no product.
    if not np.all(np.isfinite(matrix)):
        return np.full(min(matrix.shape), np.nan)
    return np.linalg.svd(matrix, compute_uv=False)


def numbers_observed(dataset: "xr.Dataset") -> list[int]:
    """The numbers of observed entries or measurements there are."""
    return sorted({int(n) for n in _observations(dataset)})


def _observations(dataset: "xr.Dataset") -> np.ndarray:
    """The number of observed entries or measurements of every run."""
    # A store that has seen both kinds of tasks knows both names, and fills in what is not there.
    columns = [np.asarray(dataset[name], float) for name in _NUMBERS if name in dataset.coords]
    return next(column for column in columns if np.all(column > 0)).astype(int)


def select(
    dataset: "xr.Dataset",
    *,
    depth: int | tuple[int, ...] | None = None,
    observed: int | None = None,
    init: float | None = None,
) -> "xr.Dataset":
    """The runs with these values, larger initializations first."""
    keep = np.ones(dataset.sizes["run"], bool)
    if depth is not None:
        keep &= np.isin(np.asarray(dataset["factorization.depth"]), depth)
    if observed is not None:
        keep &= _observations(dataset) == observed
    scales = np.asarray(dataset["initializer.product_scale"], float)
    if init is not None:
        keep &= scales == init
    runs = np.flatnonzero(keep)
    return dataset.isel(run=runs[np.argsort(-scales[runs], kind="stable")])
