"""The same from Gaussian measurements instead of entries."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.arora_cohen_hu_luo_2019.completion_error import (
    draw_line,
    draw_runs,
    few_claim,
)
from factorflow.papers.arora_cohen_hu_luo_2019.settings import (
    MEASUREMENTS,
    SENSED_RANK,
    SENSED_SIDE,
    SOURCE,
    sensings,
)
from factorflow.papers.arora_cohen_hu_luo_2019.solutions import ends, numbers_observed, select
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.selection import inits, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

# With 30 rows, larger ones are not small: from 1e-3 depth 3 ends at three quarters of the error of
# the least nuclear norm.
LARGEST = 1e-4


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """Errors above, nuclear norms over the least below; one column per number of measurements."""
    from factorflow.drawing import log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    numbers = numbers_observed(dataset)
    titles = [f"{n} measurements" for n in numbers] + [""] * len(numbers)
    with style():
        figure, axes = panels(
            len(titles), titles, columns=len(numbers), share_y=False, size=(4.2, 2.9)
        )
        for upper, lower, n in zip(axes, axes[len(numbers) :], numbers, strict=False):
            runs = select(dataset, observed=n)
            log_axis(upper, "y")
            draw_runs(upper, runs, "reconstruction_error")
            draw_line(upper, runs, "least_error", "least nuclear norm")
            upper.set_ylim(top=2)
            upper.set_xlabel("")
            unit = "least_nuclear_norm"
            draw_runs(lower, runs, "nuclear_norm", unit)
            draw_line(lower, runs, "least_nuclear_norm", "least nuclear norm", unit)
            draw_line(lower, runs, "truth_nuclear_norm", "ground truth", unit, color="0.6")
        axes[0].set_ylabel("relative error of the solution")
        axes[len(numbers)].set_ylabel("nuclear norm / the least")
        share_legend(figure, reversed(axes))
        return figure


def _check_norm(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = select(dataset, observed=MEASUREMENTS[0], depth=3)
    runs = select(runs, init=inits(runs)[-1]) if inits(runs) else runs
    norms = np.asarray(runs["nuclear_norm"])[:, -1] / np.asarray(runs["least_nuclear_norm"])
    ranks = np.asarray(runs["effective_rank"])[:, -1] / np.asarray(runs["least_effective_rank"])
    measured = (
        f"norm {', '.join(f'{norm:.4f}' for norm in norms) or 'of no runs'}, rank "
        f"{', '.join(f'{rank:.4f}' for rank in ranks)} of the matrix of least nuclear norm; "
        f"{unfinished(runs)}"
    )
    holds = norms.size and np.all(norms > 1.005) and np.all(ranks < 0.95)
    return measured, bool(holds and np.all(runs["least_certified"]))


FIGURE = Figure(
    name="sensing",
    title="The same from Gaussian measurements",
    caption=(
        f"A random {SENSED_SIDE} x {SENSED_SIDE} matrix of rank {SENSED_RANK} with entries of root "
        "mean square 1, from inner products with random Gaussian matrices. Above: relative error "
        "of what gradient flow of balanced factors ends at, against the standard deviation of the "
        "entries of the initial product. Below: its nuclear norm over the least among all matrices "
        "that fit (dash-dotted black, certified). Grey: the ground truth."
        "\n\n"
        "With few measurements the matrix of least nuclear norm is not the ground truth, while "
        "depth 3 ends near it from small initializations, at a larger norm. With many both recover "
        "it."
    ),
    experiments=sensings,
    draw=draw,
    derive=ends,
    claims=(
        few_claim(
            "sensing",
            MEASUREMENTS[0],
            "measurements",
            f"{SOURCE}, appendix: matrix sensing",
            LARGEST,
        ),
        Claim(
            id="sensing.norm",
            statement=(
                f"From {MEASUREMENTS[0]} measurements and the smallest initialization depth 3 ends "
                "at a nuclear norm above the least, and at an effective rank below that of the "
                "matrix of least nuclear norm."
            ),
            source=f"{SOURCE}, appendix: matrix sensing",
            expected="norm above the least by 0.5% or more, rank below by 5% or more",
            tolerance="the final loss moves norms by less than 0.1%",
            check=_check_norm,
        ),
    ),
)
