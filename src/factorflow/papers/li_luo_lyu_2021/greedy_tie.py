"""The 2x2 problem, where the leading singular value at zero is a tie."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.li_luo_lyu_2021.curves import derive, select
from factorflow.papers.li_luo_lyu_2021.settings import SOURCE, tied_experiments
from factorflow.papers.selection import inits, seeds, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One panel: a line per seed."""
    from factorflow.drawing import log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    with style():
        figure, axes = panels(1, ["2x2, depth 2"], y_label="largest distance\n(relative)")
        (ax,) = axes
        log_axis(ax, "x")
        ax.xaxis.set_inverted(True)
        ax.set_xlabel("initialization (falls to the right →)")
        for number, seed in enumerate(seeds(dataset)):
            curve = np.asarray(select(dataset, seed=seed)["distance"])
            ax.plot(inits(dataset), curve, "o-", color=f"C{number}", label=f"seed {seed}")
        ax.set_ylim(0, 1.1 * float(np.nanmax(dataset["distance"])))
        share_legend(figure, axes)
        return figure


def _check_reported(dataset: "xr.Dataset") -> tuple[str, bool]:
    tied = np.asarray(dataset["tied"])
    gaps = np.asarray(dataset["gap"])[:, 0]
    holds = bool(tied.size and np.all(tied) and np.all(np.abs(gaps - 1) < 1e-6))
    return (
        f"reported in {int(tied.sum())} of {tied.size} runs, gap {gaps.max(initial=0):.9g}",
        holds,
    )


def _check_stays(dataset: "xr.Dataset") -> tuple[str, bool]:
    curves = [np.asarray(select(dataset, seed=seed)["distance"]) for seed in seeds(dataset)]
    least = float(np.min(curves)) if curves else np.nan
    words = "; ".join(", ".join(f"{value:.2f}" for value in curve) for curve in curves)
    return f"{words}; {unfinished(dataset)}", bool(least > 0.1)


FIGURE = Figure(
    name="greedy_tie",
    title="A tie: nothing to approach",
    caption=(
        "Largest distance from the greedy curve, relative as in the other figure, of descent on "
        "the 2x2 problem of Razin and Cohen from balanced factors with positive determinant. At "
        "zero both singular values of the gradient are 1: descent grows along a direction that "
        "its initialization decides, greedy learning along one of the two by an arbitrary choice, "
        "and the curve it draws is no limit."
    ),
    experiments=tied_experiments,
    draw=draw,
    derive=derive,
    claims=(
        Claim(
            id="greedy_tie.reported",
            statement="Greedy learning reports the tie of the 2x2 problem.",
            source=f"{SOURCE}, assumption of a simple leading eigenvalue",
            expected="tied, with a second singular value of 1 times the first",
            tolerance="1e-6, from which on values count as tied",
            check=_check_reported,
        ),
        Claim(
            id="greedy_tie.stays",
            statement="There the distance does not vanish with the initialization.",
            source=f"{SOURCE}, the same assumption, which the equivalence needs",
            expected="above 0.1 at every initialization",
            tolerance="none; where it does vanish, it falls below 0.1 by 1e-8",
            check=_check_stays,
        ),
    ),
)
