"""The norms of the largest components along descent: they rise one at a time."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.razin_maman_cohen_2021.runs import (
    LEAST,
    Run,
    inits,
    losses,
    runs_of,
    unfinished,
)
from factorflow.papers.razin_maman_cohen_2021.settings import KEPT, SOURCE, experiments

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

# Initializations from which the steps are claimed to be distinct: at 5e-2 they blur.
SMALL_INIT = 1e-2


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One row per loss, one column per initialization; the first seed's run in each."""
    from factorflow.drawing import panels, share_legend, style

    del overlays  # functions of the loss have no place here
    runs = runs_of(dataset)
    cells = [(loss, init) for loss in losses(runs) for init in inits(runs)]
    titles = [f"{loss.capitalize()} loss, init {init:g}" for loss, init in cells]
    columns = len(inits(runs))
    with style():
        figure, axes = panels(
            len(cells), titles, columns=columns, y_label="component norm", size=(3.4, 2.5)
        )
        for index, (ax, (loss, init)) in enumerate(zip(axes, cells, strict=True)):
            if index + columns >= len(cells):
                ax.set_xlabel("iteration")
            for run in runs_of(dataset, loss=loss, init=init)[:1]:
                _draw_run(ax, run)
            ax.set_xlim(left=0)
        # Once all is drawn, since panels share the axis.
        axes[0].set_ylim(bottom=0)
        share_legend(figure, axes)
        return figure


def _draw_run(ax, run: Run) -> None:
    for number in range(KEPT):
        within = number < run.rank
        label = _ordinal(number + 1) if within else f"{_ordinal(run.rank + 1)} to {KEPT}th largest"
        color = f"C{number % 7}" if within else "0.55"
        ax.plot(run.steps, run.norms[:, number], color=color, label=label, zorder=2 + within)
    if not run.converged:
        ax.plot(run.steps[-1], run.norms[-1, 0], "x", color="black", label="ended at its limit")


def _ordinal(number: int) -> str:
    return {1: "largest", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def _check_rank(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = [run for run in runs_of(dataset) if run.init <= SMALL_INIT]
    if not runs:
        return "no runs", False
    counts = [run.staircase.count == run.rank for run in runs]
    rest = max(run.norms[-1, run.rank] / run.norms[-1, 0] for run in runs)
    larger = [run for run in runs_of(dataset) if run.init > SMALL_INIT]
    words = ", ".join(f"{run.staircase.count} ({run.loss_name})" for run in larger)
    measured = (
        f"{sum(counts)} of {len(runs)} runs; the next component has {rest:.1e} of the largest; "
        f"{unfinished(runs)}. At larger initializations: {words or 'no runs'}"
    )
    return measured, all(counts) and bool(rest < 0.01)


def _check_one_at_a_time(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = runs_of(dataset)
    smallest = min((run.init for run in runs), default=0)
    words, holds = [], bool(runs)
    for run in runs:
        if run.init > SMALL_INIT:
            continue
        shares = _next_shares(run)
        if run.init == smallest:
            holds &= shares.size == run.rank - 1 and bool(np.all(shares < 0.1))
        words.append(f"{run.loss_name}, {run.init:g}: {np.max(shares, initial=0):.1e}")
    return f"{'; '.join(words) or 'no runs'}; {unfinished(runs)}", holds


def _next_shares(run: Run) -> np.ndarray:
    """What each component after the first has of its final norm when the one before has half."""
    stairs = run.staircase
    columns = run.norms[:, stairs.components]
    return np.array(
        [
            np.interp(moment, run.steps, columns[:, k + 1]) / stairs.finals[k + 1]
            for k, moment in enumerate(stairs.moments[:-1])
        ]
    )


def _check_sharper(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = runs_of(dataset)
    words, holds = [], bool(runs)
    for loss in losses(runs):
        shares = [
            float(np.median([_rising(run) for run in runs_of(dataset, loss=loss, init=init)]))
            for init in inits(runs)
        ]
        # Descending in the initialization, and so must be the shares; NaN fails.
        holds &= len(shares) > 1 and bool(np.all(np.diff(shares) < 0))
        words.append(f"{loss}: " + ", ".join(f"{share:.3f}" for share in shares))
    names = ", ".join(f"{init:g}" for init in inits(runs))
    return f"{'; '.join(words) or 'no runs'} (init {names}); {unfinished(runs)}", holds


def _rising(run: Run) -> float:
    """Summed widths of a run's steps, as a share of its length; above 1 if many overlap."""
    return float(run.staircase.widths.sum() / run.steps[-1])


FIGURE = Figure(
    name="component_norms",
    title="Components rise one at a time",
    caption=(
        "Norms of the ten largest of all components of a CP factorization (product of the norms of "
        "a component's vectors, in units of the ground truth's Frobenius norm) against the "
        "iteration of descent, for three losses and three standard deviations of the initial "
        "factors (init). Curves are ranks, not identities: in every row the norms are sorted anew. "
        "Colors: as many components as the ground truth has; grey: all others."
        "\n\n"
        "The smaller the initialization, the longer the plateaus and the sharper the steps. "
        "Several seeds of a setting share their first run's panel. Crosses: the run ended at its "
        "limit of steps, short of the residual asked for."
    ),
    experiments=experiments,
    draw=draw,
    claims=(
        Claim(
            id="component_norms.rank",
            statement=(
                f"From initializations of {SMALL_INIT:g} and less, descent without any bound on "
                "the rank ends with as many components as the ground truth has, for every loss."
            ),
            source=f"{SOURCE}, synthetic experiments (figure), rank 5",
            expected="in every run, those that did not converge included",
            tolerance=(
                f"a component counts from {LEAST:.0%} of the largest norm on; the next has less "
                "than 1%, so the count does not hang on the share"
            ),
            check=_check_rank,
        ),
        Claim(
            id="component_norms.one_at_a_time",
            statement=(
                "From the smallest initialization components rise one at a time: when one has half "
                "of its final norm, the next has less than a tenth of its own."
            ),
            source=f"{SOURCE}, theorem on the dynamics of components, and figure",
            expected="below 0.1, largest share per run",
            tolerance=(
                "none; linear interpolation between rows overstates what has yet to rise. Larger "
                "initializations are measured, not claimed: there the last components may overlap"
            ),
            check=_check_one_at_a_time,
        ),
        Claim(
            id="component_norms.sharper",
            statement=(
                "The smaller the initialization, the sharper the steps: the times that components "
                "take from 10% to 50% of their final norms sum to a smaller share of the run."
            ),
            source=f"{SOURCE}, theorem on the dynamics of components: gaps widen as init falls",
            expected="strictly falling with the initialization, for every loss",
            tolerance=(
                "none; up to 50%, because a component may rest at 60% until the next ones arrive"
            ),
            check=_check_sharper,
        ),
    ),
)
