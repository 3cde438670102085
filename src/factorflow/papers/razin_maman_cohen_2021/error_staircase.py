"""Reconstruction error and loss along descent: they fall where components rise."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.razin_maman_cohen_2021.runs import (
    Run,
    inits,
    losses,
    runs_of,
    unfinished,
)
from factorflow.papers.razin_maman_cohen_2021.settings import SOURCE, experiments

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One column per loss: errors above, losses below; one line per initialization."""
    from factorflow.drawing import log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    runs = runs_of(dataset)
    names = losses(runs)
    titles = [f"{name.capitalize()} loss" for name in names] + [""] * len(names)
    with style():
        figure, axes = panels(2 * len(names), titles, columns=max(2, len(names)), share_y=False)
        for index, ax in enumerate(axes):
            upper, name = index < len(names), names[index % len(names)]
            log_axis(ax, "x", "y")
            if index % len(names) == 0:  # the first of a row
                ax.set_ylabel("relative error" if upper else "loss / loss at the start")
            if not upper or len(names) == 1:
                ax.set_xlabel("iteration")
            for number, init in enumerate(inits(runs)):
                for run in runs_of(dataset, loss=name, init=init):
                    _draw_run(ax, run, run.error if upper else run.loss / run.loss[0], number)
        axes[-1].plot([], [], "o", color="0.4", label="a component rises")
        if not all(run.converged for run in runs):
            axes[-1].plot([], [], "x", color="0.4", label="ended at its limit")
        share_legend(figure, axes)
        return figure


def _draw_run(ax, run: Run, values: np.ndarray, number: int) -> None:
    # Step 0 has no place on the axis.
    steps, values = run.steps[1:], values[1:]
    ax.plot(steps, values, color=f"C{number}", label=f"init {run.init:g}")
    if not steps.size or not np.all(np.isfinite(run.norms)):
        return  # failed at once, or for good: nothing rises
    moments = np.maximum(run.staircase.moments, steps[0])
    at = np.exp(np.interp(moments, steps, np.log(values)))
    ax.plot(moments, at, "o", color=f"C{number}", markeredgecolor="white", markersize=6.5)
    if not run.converged:
        ax.plot(steps[-1], values[-1], "x", color=f"C{number}", markersize=8, markeredgewidth=1.8)


# The gradient of this loss does not shrink with the residual: descent bounces about the solution by
# its step size, and at which point of that a run ends depends on its last digits.
_BOUNCING = "absolute"


def _check_error(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = runs_of(dataset)
    words, holds = [], bool(runs)
    for loss in losses(runs):
        errors = [
            float(np.median([run.error[-1] for run in runs_of(dataset, loss=loss, init=init)]))
            for init in inits(runs)
        ]
        if loss != _BOUNCING:
            holds &= len(errors) > 1 and errors[-1] < errors[0]
        words.append(f"{loss}: " + ", ".join(f"{error:.1e}" for error in errors))
    names = ", ".join(f"{init:g}" for init in inits(runs))
    return f"{'; '.join(words) or 'no runs'} (init {names}); {unfinished(runs)}", holds


def _check_falls(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = runs_of(dataset)
    words, holds = [], bool(runs)
    for loss in losses(runs):
        shares = [
            float(np.median([_falling(run) for run in runs_of(dataset, loss=loss, init=init)]))
            for init in inits(runs)
        ]
        # Descending in the initialization, and so must be the shares; NaN fails.
        holds &= len(shares) > 1 and bool(np.all(np.diff(shares) < 0) and shares[-1] < 0.15)
        words.append(f"{loss}: " + ", ".join(f"{share:.1%}" for share in shares))
    names = ", ".join(f"{init:g}" for init in inits(runs))
    return f"{'; '.join(words) or 'no runs'} (init {names}); {unfinished(runs)}", holds


def _falling(run: Run) -> float:
    """The smallest share of a run's iterations in which its error falls by 80% of its fall."""
    times, falls = np.diff(run.steps), -np.diff(run.error)
    fastest = np.argsort(-falls / times)
    fallen = np.cumsum(falls[fastest]) / falls.sum()
    enough = np.flatnonzero(fallen >= 0.8)
    return float(times[fastest][: enough[0] + 1].sum() / times.sum()) if enough.size else np.nan


FIGURE = Figure(
    name="error_staircase",
    title="Errors fall by steps",
    caption=(
        "Above: relative error over all entries, observed or not, against the iteration of "
        "descent. Below: training loss over its value at the start. One line per standard "
        "deviation of the initial factors (init). Dots: where a component passes half of its final "
        "norm; only those are marked that end at a tenth of the largest or more."
        "\n\n"
        "Each component that rises takes error and loss down by a step. Crosses: the run ended at "
        "its limit of steps, short of the residual asked for."
    ),
    experiments=experiments,
    draw=draw,
    claims=(
        Claim(
            id="error_staircase.error",
            statement=(
                "The smallest initialization ends with a smaller error than the largest, for the "
                "squared loss and Huber's: components that do not rise stay at the size at which "
                "they began."
            ),
            source=f"{SOURCE}, synthetic experiments (figure)",
            expected="falling from the largest to the smallest initialization",
            tolerance=(
                "none; medians over seeds, runs that did not converge included. Between smaller "
                "initializations the order is that of how far descent bounces. The absolute loss "
                "is shown only: its gradient does not vanish, all of its runs end while bouncing"
            ),
            check=_check_error,
        ),
        Claim(
            id="error_staircase.falls",
            statement=(
                "The error falls by steps, and the smaller the initialization, the steeper they "
                "are: 80% of its fall takes a smaller share of the iterations, below 15% at the "
                "smallest."
            ),
            source=f"{SOURCE}, theorem on the dynamics of components, and figure",
            expected="strictly falling with the initialization, below 15% at last",
            tolerance="an error that falls evenly takes 80%; the limit is twice what was measured",
            check=_check_falls,
        ),
    ),
)
