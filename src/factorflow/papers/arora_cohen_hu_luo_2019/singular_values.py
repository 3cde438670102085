"""Singular values along flows: the deeper, the sharper their steps and the wider the gap."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.analysis import escapes
from factorflow.papers.arora_cohen_hu_luo_2019.paths import KEPT, along
from factorflow.papers.arora_cohen_hu_luo_2019.settings import FEW, RANK, SOURCE, watched
from factorflow.papers.arora_cohen_hu_luo_2019.solutions import select
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.selection import believed, depths, reached, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

# Times are shown up to here: afterwards nothing moves that can be seen.
SHOWN = 1e-3
# Between two rows, for the eye.
_PARTS = 8


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One panel per depth, over its own time."""
    from factorflow.drawing import draw_curve, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    found = depths(dataset)
    with style():
        figure, axes = panels(
            len(found),
            [f"Depth {depth}" for depth in found],
            columns=2 if len(found) == 4 else 3,
            y_label="singular values",
        )
        for ax, depth in zip(axes, found, strict=True):
            run = reached(select(dataset, depth=depth).isel(run=0))
            time = np.asarray(run["time"])
            for value in range(KEPT):
                within = value < RANK
                column = np.asarray(run["singular_values"])[:, value]
                times, values = _between(time, column, depth)
                draw_curve(
                    ax,
                    times,
                    values,
                    trusted=np.interp(times, time, believed(run, "product")) == 1,
                    color=f"C{value}" if within else "0.55",
                    label=_ordinal(value + 1) if within else f"{RANK + 1}th to {KEPT}th",
                )
            shown = time[np.asarray(run["share"]) > SHOWN]
            ax.set_xlim(0, 1.02 * float(np.max(shown, initial=1e-9)))
            ax.set_xlabel("time")
        axes[0].set_ylim(bottom=0)
        share_legend(figure, axes)
        return figure


def _between(time: np.ndarray, values: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills in times between rows.

    Where the gradient is constant, as it is on plateaus, the power 2/L - 1 of a singular value, or
    its logarithm at depth 2, is linear in time. Straight lines would rise throughout a plateau.
    """
    steps = np.arange(time.size - 1)[:, None] + np.arange(_PARTS) / _PARTS
    times = np.interp(np.append(steps, time.size - 1), np.arange(time.size), time)
    power = 2 / depth - 1
    scaled = np.log(values) if power == 0 else values**power
    between = np.interp(times, time, scaled)
    return times, np.exp(between) if power == 0 else between ** (1 / power)


def _ordinal(number: int) -> str:
    return {1: "largest", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _gap(run: "xr.Dataset") -> float:
    """The first singular value beyond the ground truth's rank over the last within it."""
    last = np.asarray(run["singular_values"])[-1]
    return float(last[RANK] / last[RANK - 1])


def _rising(run: "xr.Dataset") -> float:
    """Times from 10% to 50% of the final value, summed, over the time until the last has risen."""
    own = reached(run)
    values = np.asarray(own["singular_values"])[:, :RANK]
    stairs = escapes(np.asarray(own["time"]), values, high=0.5)
    return float(stairs.widths.sum() / stairs.ends.max())


def _by_depth(dataset: "xr.Dataset", number) -> tuple[list[int], np.ndarray]:
    """A number of the run of each depth of two and more."""
    found = [depth for depth in depths(dataset) if depth > 1]
    return found, np.array([number(select(dataset, depth=d).isel(run=0)) for d in found])


def _check_gap(dataset: "xr.Dataset") -> tuple[str, bool]:
    found, gaps = _by_depth(dataset, _gap)
    words = ", ".join(f"{gap:.1e} at depth {d}" for d, gap in zip(found, gaps, strict=True))
    # Depths rise, and gaps must fall; NaN fails.
    holds = {2, 3} <= set(found) and bool(np.all(np.diff(gaps) < 0) and gaps[1] < gaps[0] / 10)
    return f"{words or 'no runs'}; {unfinished(dataset)}", holds


def _check_sharper(dataset: "xr.Dataset") -> tuple[str, bool]:
    found, shares = _by_depth(dataset, _rising)
    words = ", ".join(f"{share:.1%} at depth {d}" for d, share in zip(found, shares, strict=True))
    holds = {2, 3} <= set(found) and bool(np.all(np.diff(shares) < 0))
    return f"{words or 'no runs'}; {unfinished(dataset)}", holds


FIGURE = Figure(
    name="singular_values",
    title="The deeper, the sharper the steps of singular values",
    caption=(
        "The eight largest singular values of the product along gradient flow against its time, by "
        f"depth, from {FEW} observed entries of a 100 x 100 matrix of rank {RANK} and an initial "
        "product with entries of standard deviation 1e-6. Colors: as many as the ground truth has; "
        "grey: all others. Curves are ranks, not identities. "
        "Rows lie evenly along the fall of the loss, so that there are few where it stands still; "
        "between them values are drawn as they move under a constant gradient."
        "\n\n"
        "At depth 1 all singular values grow at once. Deeper, they rise one after another, and "
        "those that do not belong to the ground truth stay the smaller the deeper. Pale and "
        "dashed: the flow could not be certified."
    ),
    experiments=watched,
    draw=draw,
    derive=along,
    claims=(
        Claim(
            id="singular_values.gap",
            statement=(
                "The deeper, the wider the gap that the flow leaves between the singular values of "
                "the ground truth and all others."
            ),
            source=f"{SOURCE}, theorem on the dynamics of singular values, and figure",
            expected=(
                "the next over the last of the ground truth's: strictly falling from depth 2 on, "
                "by ten and more from depth 2 to 3"
            ),
            tolerance="none",
            check=_check_gap,
        ),
        Claim(
            id="singular_values.sharper",
            statement=(
                "The deeper, the sharper the steps: the times that singular values take from 10% "
                "to 50% of their final values sum to a smaller share of the time until the last "
                "has risen."
            ),
            source=f"{SOURCE}, theorem on the dynamics of singular values, and figure",
            expected="strictly falling from depth 2 on",
            tolerance="none; interpolation between rows moves the shares by less than a tenth",
            check=_check_sharper,
        ),
    ),
)
