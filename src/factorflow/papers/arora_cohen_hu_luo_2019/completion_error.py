"""Reconstruction error of what flows end at, against that of the least nuclear norm."""

from typing import TYPE_CHECKING, Any

import numpy as np

from factorflow.papers.arora_cohen_hu_luo_2019.settings import FEW, FINAL, MANY, SOURCE, completions
from factorflow.papers.arora_cohen_hu_luo_2019.solutions import ends, numbers_observed, select
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.selection import depths, inits, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE", "draw_line", "draw_runs", "few_claim"]


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One panel per number of observations, one line per depth."""
    from factorflow.drawing import log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    numbers = numbers_observed(dataset)
    titles = [f"{n} observations" for n in numbers]
    with style():
        figure, axes = panels(len(numbers), titles, share_y=False, size=(4.2, 3.4))
        for ax, n in zip(axes, numbers, strict=True):
            runs = select(dataset, observed=n)
            log_axis(ax, "y")
            draw_runs(ax, runs, "reconstruction_error")
            draw_line(ax, runs, "least_error", "least nuclear norm")
            ax.set_ylim(top=2)
        axes[0].set_ylabel("relative error of the solution")
        share_legend(figure, axes)
        return figure


def draw_runs(ax: Any, runs: "xr.Dataset", name: str, unit: str | None = None) -> None:
    """A quantity of the ends against the initialization: medians over seeds, by depth."""
    from factorflow.drawing import log_axis

    log_axis(ax, "x")
    for depth in depths(runs):
        own = select(runs, depth=depth)
        places, middle = [], []
        for init in inits(own):
            some = select(own, init=init)
            values = np.asarray(some[name])[:, -1] / (1.0 if unit is None else some[unit])
            places.append(init)
            middle.append(float(np.median(values)))
            ax.plot([init] * len(values), values, ".", color=f"C{depth - 1}", markersize=5)
            failed = np.asarray(some["result"]) != "loss_reached"
            if failed.any():
                label = "did not reach its loss"
                ax.plot([init] * failed.sum(), values[failed], "x", color="black", label=label)
        ax.plot(places, middle, "o-", color=f"C{depth - 1}", markersize=5, label=f"depth {depth}")
    if inits(runs):
        # Around a single one a decade, or matplotlib labels every tick.
        margin = 1.5 if len(inits(runs)) > 1 else 4.0
        ax.set_xlim(margin * inits(runs)[0], inits(runs)[-1] / margin)
    ax.set_xlabel("initialization (falls to the right →)")


def draw_line(
    ax: Any, runs: "xr.Dataset", name: str, label: str, unit: str | None = None, color="black"
) -> None:
    """A quantity that no flow has a part in: the median over the problems."""
    value = float(np.median(np.asarray(runs[name]) / (1.0 if unit is None else runs[unit])))
    dashes = (0, (6, 1.5, 1, 1.5))
    ax.axhline(value, color=color, linestyle=dashes, linewidth=1.3, zorder=1.5, label=label)


def _errors(runs: "xr.Dataset") -> np.ndarray:
    return np.asarray(runs["reconstruction_error"])[:, -1]


def few_claim(name: str, observed: int, what: str, source: str, largest: float = np.inf) -> Claim:
    """Depth 3 is nearer to the ground truth than the least nuclear norm, by a factor of two."""
    where = "every initialization" if np.isinf(largest) else f"initializations up to {largest:g}"
    return Claim(
        id=f"{name}.few",
        statement=(
            f"From {observed} {what}, fewer than the least nuclear norm recovers the ground truth "
            "from, depth 3 errs less than half as much as the least nuclear norm does, from "
            f"{where}."
        ),
        source=source,
        expected="a ratio below 0.5 in every run",
        tolerance="none; the least nuclear norm is certified to 1e-7",
        check=lambda dataset: _check_few(dataset, observed, largest),
    )


def _check_few(dataset: "xr.Dataset", observed: int, largest: float) -> tuple[str, bool]:
    runs = select(dataset, depth=3, observed=observed)
    small = np.asarray(runs["initializer.product_scale"], float) <= largest
    runs = runs.isel(run=np.flatnonzero(small))
    if not runs.sizes["run"]:
        return "no runs", False
    errors, least = _errors(runs), np.asarray(runs["least_error"])
    measured = (
        f"{np.min(errors):.2g} to {np.max(errors):.2g} against {np.min(least):.2g} to "
        f"{np.max(least):.2g}, ratios up to {np.max(errors / least):.2g}; {unfinished(runs)}"
    )
    return measured, bool(np.all(errors < least / 2) and np.all(runs["least_certified"]))


def _check_many(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = select(dataset, depth=3, observed=MANY)
    if not runs.sizes["run"]:
        return "no runs", False
    errors, least = _errors(runs), np.asarray(runs["least_error"])
    measured = (
        f"least nuclear norm {np.max(least):.1e}, depth 3 {np.max(errors):.1e}; {unfinished(runs)}"
    )
    holds = np.all(least < 1e-3) and np.all(errors < 0.02) and np.all(runs["least_certified"])
    return measured, bool(holds)


def _check_smaller(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = select(dataset, depth=2, observed=FEW)
    medians = [float(np.median(_errors(select(runs, init=init)))) for init in inits(runs)]
    names = ", ".join(f"{init:g}" for init in inits(runs))
    measured = f"{', '.join(f'{m:.2g}' for m in medians) or 'no runs'} (init {names})"
    # Initializations fall, and so must the errors; NaN fails.
    holds = len(medians) > 1 and bool(np.all(np.diff(medians) < 0))
    return f"{measured}; {unfinished(runs)}", holds


def _check_flat(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = select(dataset, depth=1)
    if not runs.sizes["run"]:
        return "no runs", False
    away = np.asarray(runs["away_from_least_frobenius"])
    # What is not observed keeps its start; what is ends within the final loss.
    allowed = 1.1 * np.asarray(runs["initializer.product_scale"], float) + np.sqrt(1.1 * FINAL)
    measured = (
        f"away by {np.max(away):.1e} of the ground truth's norm at most, allowed "
        f"{np.min(allowed):.1e}; errors {np.min(_errors(runs)):.2f} to {np.max(_errors(runs)):.2f}"
    )
    return measured, bool(np.all(away <= allowed))


FIGURE = Figure(
    name="completion_error",
    title="Depth recovers what the least nuclear norm does not",
    caption=(
        "Relative Frobenius error, over all entries, of what gradient flow ends at, against the "
        "standard deviation of the entries of the initial product (init), by depth of the "
        "factorization. A random 100 x 100 matrix of rank 5 with entries of root mean square 1, "
        f"from {FEW} and {MANY} of its entries; balanced factors of full width, followed until the "
        "loss is a millionth of that of the zero matrix. Dash-dotted: the solution of least "
        "nuclear norm, by convex optimization, with a certificate. Lines are medians over seeds."
        "\n\n"
        "Where the ground truth is recovered, the error is that which the final loss allows, 1e-3 "
        "and more, or what the initialization leaves; that of the least nuclear norm is what its "
        "accuracy allows. Depth 1 ends at the observed entries with zeros for all others."
    ),
    experiments=completions,
    draw=draw,
    derive=ends,
    claims=(
        few_claim(
            "completion_error",
            FEW,
            "observations",
            f"{SOURCE}, experiments: depth against the least nuclear norm",
        ),
        Claim(
            id="completion_error.many",
            statement=(
                f"From {MANY} observations both recover the ground truth: the least nuclear norm "
                "errs by less than 1e-3, depth 3 by less than 0.02 from every initialization."
            ),
            source=f"{SOURCE}, experiments: depth against the least nuclear norm",
            expected="below 1e-3 and below 0.02",
            tolerance="of depth 3, ten times what the final loss allows",
            check=_check_many,
        ),
        Claim(
            id="completion_error.smaller",
            statement=(
                f"At depth 2 and {FEW} observations the error falls with the initialization."
            ),
            source=f"{SOURCE}, experiments; measured for factorflow",
            expected="strictly falling",
            tolerance="none; medians over the seeds",
            check=_check_smaller,
        ),
        Claim(
            id="completion_error.flat",
            statement=(
                "Depth 1 is a convex problem: it ends at the solution of least Frobenius norm, the "
                "observed entries with zeros for all others."
            ),
            source="closed form",
            expected="as near as initialization and final loss allow",
            tolerance="their sum, and a tenth of it for the draw",
            check=_check_flat,
        ),
    ),
)
