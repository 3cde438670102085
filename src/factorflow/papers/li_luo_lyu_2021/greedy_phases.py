"""Singular values of flow and of greedy learning over the loss: they rise one at a time."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.li_luo_lyu_2021.curves import derive, select
from factorflow.papers.li_luo_lyu_2021.settings import SOURCE, experiments
from factorflow.papers.selection import depths, inits, seeds, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One panel per depth, of the first seed: one color per initialization, greedy in black."""
    from factorflow.drawing import loss_panels, share_legend, style

    del overlays  # bounds of norms over the loss have no place here
    found = depths(dataset)
    with style():
        figure, axes = loss_panels(
            len(found),
            [f"Depth {depth}" for depth in found],
            columns=3,
            y_label="singular values",
            y_log=True,
            limits=(1e-3, float(np.nanmax(dataset["greedy_loss"]))),
        )
        for ax, depth in zip(axes, found, strict=True):
            runs = select(dataset, depth=depth, seed=seeds(dataset)[0])
            shown = inits(runs)[:: max(1, len(inits(runs)) // 3)]
            for number, init in enumerate(shown):
                run = select(runs, init=init).isel(run=0)
                for value in range(int(run["greedy_rank"]) + 1):
                    ax.plot(
                        run["loss"],
                        run["singular_values"][:, value],
                        color=f"C{number}",
                        linewidth=1.4,
                        label=f"flow from {init:g}",
                    )
            ax.set_ylim(min(inits(dataset)) / 10, 2)
            run = runs.isel(run=0)
            for value in range(int(run["greedy_rank"])):
                ax.plot(
                    run["greedy_loss"],
                    run["greedy_values"][:, value],
                    "--",
                    color="black",
                    linewidth=1.2,
                    label="greedy learning",
                )
        share_legend(figure, axes)
        return figure


def _late(run: "xr.Dataset") -> float:
    """The largest share of a singular value in the one before, where that one has settled.

    The loss is then 5% above that of the critical point at the end of a phase of greedy learning.
    """
    rows = np.asarray(run["reached"])
    losses = np.log(np.asarray(run["loss"])[rows])
    values = np.asarray(run["singular_values"])[rows]
    shares = []
    for phase in range(int(run["greedy_rank"]) - 1):
        level = np.log(1.05 * float(run["plateau"][phase]))
        first, second = (
            np.interp(-level, -losses, np.log(values[:, phase + more])) for more in (0, 1)
        )
        shares.append(float(np.exp(second - first)))
    return max(shares)


def _medians(dataset: "xr.Dataset", depth: int) -> list[float]:
    """Medians over the problems, the largest initialization first."""
    return [
        float(np.median([_late(runs.isel(run=k)) for k in range(runs.sizes["run"])]))
        for init in inits(dataset)
        for runs in [select(dataset, depth=depth, init=init)]
    ]


def _check_one_at_a_time(dataset: "xr.Dataset") -> tuple[str, bool]:
    words, holds = [], bool(depths(dataset))
    for depth in depths(dataset):
        medians = _medians(dataset, depth)
        # Descending in the initialization, and so must be the shares; NaN fails.
        holds &= len(medians) > 1 and bool(np.all(np.diff(medians) < 0) and medians[-1] < 0.05)
        words.append(f"depth {depth}: " + ", ".join(f"{share:.1e}" for share in medians))
    names = ", ".join(f"{init:g}" for init in inits(dataset))
    return f"{'; '.join(words) or 'no runs'} (init {names}); {unfinished(dataset)}", holds


def _check_deeper(dataset: "xr.Dataset") -> tuple[str, bool]:
    slopes = {}
    # Without the largest initialization, which is hardly small.
    for depth in depths(dataset):
        slopes[depth] = float(
            np.polyfit(np.log(inits(dataset)[1:]), np.log(_medians(dataset, depth)[1:]), 1)[0]
        )
    two, three = (_medians(dataset, depth) for depth in (2, 3))
    deep = [slope for depth, slope in slopes.items() if depth >= 3]
    holds = bool(
        np.all(np.asarray(three) < np.asarray(two))
        and np.all(np.abs(np.asarray(deep) - 1) < 0.1)
        and slopes[2] < 0.8
    )
    words = ", ".join(f"{slope:.2f} at depth {depth}" for depth, slope in slopes.items())
    return f"powers {words}; smaller at depth 3 by {min(np.divide(two, three)):.1f} or more", holds


FIGURE = Figure(
    name="greedy_phases",
    title="Singular values rise one at a time, as greedy learning adds them",
    caption=(
        "Singular values of the product over the loss, for the first of the random completion "
        "problems: of gradient flow from three or more initializations (colors; standard deviation "
        "of the entries of the initial product) and of greedy low-rank learning (black). One more "
        "value of the flow is drawn than the ground truth has."
        "\n\n"
        "Where greedy learning ends a phase, all values but the settled ones are zero; flow leaves "
        "such a plateau with a next value that is the smaller, the smaller its initialization."
    ),
    experiments=experiments,
    draw=draw,
    derive=derive,
    claims=(
        Claim(
            id="greedy_phases.one_at_a_time",
            statement=(
                "Where greedy learning has settled a singular value, flow's next one is a small "
                "share of it, and the smaller, the smaller the initialization."
            ),
            source=f"{SOURCE}, trajectories pass near the critical points of each rank",
            expected="medians strictly falling with the initialization, below 0.05 at last",
            tolerance=(
                "at a loss 5% above that of the critical point; at that loss itself, flow is "
                "leaving it"
            ),
            check=_check_one_at_a_time,
        ),
        Claim(
            id="greedy_phases.deeper",
            statement=(
                "Depth helps: at every initialization that share is smaller at depth 3 than at "
                "depth 2. It is proportional to the initialization at depth 3 and more, and to a "
                "smaller power of it at depth 2."
            ),
            source=f"{SOURCE}, weaker dependence on the initialization for depth 3 and more",
            expected="powers within 0.1 of 1 at depth 3 and more, below 0.8 at depth 2",
            tolerance=(
                "fitted to all initializations but the largest; at depth 2 the power is 1 minus "
                "the ratio of the second singular value of the gradient to the first"
            ),
            check=_check_deeper,
        ),
    ),
)
