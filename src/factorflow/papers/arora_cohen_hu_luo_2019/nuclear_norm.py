"""Nuclear norm and effective rank of what flows end at, against the least nuclear norm."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.arora_cohen_hu_luo_2019.completion_error import draw_line, draw_runs
from factorflow.papers.arora_cohen_hu_luo_2019.settings import FEW, MANY, SOURCE, completions
from factorflow.papers.arora_cohen_hu_luo_2019.solutions import ends, numbers_observed, select
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.selection import depths, inits, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

NAME = "nuclear_norm_and_effective_rank"


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """Nuclear norms above, effective ranks below; one column per number of observations."""
    from factorflow.drawing import log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    numbers = numbers_observed(dataset)
    titles = [f"{n} observations" for n in numbers] + [""] * len(numbers)
    with style():
        figure, axes = panels(
            len(titles), titles, columns=len(numbers), share_y=False, size=(4.2, 2.9)
        )
        for ax, n in zip(axes[: len(numbers)], numbers, strict=True):
            # Depth 1 is far above: its panel would show nothing else.
            runs = select(dataset, observed=n, depth=tuple(d for d in depths(dataset) if d > 1))
            draw_runs(ax, runs, "nuclear_norm", "least_nuclear_norm")
            draw_line(ax, runs, "least_nuclear_norm", "least nuclear norm", "least_nuclear_norm")
            draw_line(
                ax, runs, "truth_nuclear_norm", "ground truth", "least_nuclear_norm", color="0.6"
            )
            ax.set_xlabel("")
        top = max(ax.get_ylim()[1] for ax in axes[: len(numbers)])
        for ax in axes[: len(numbers)]:
            ax.set_ylim(0.995, top)
        for ax, n in zip(axes[len(numbers) :], numbers, strict=True):
            runs = select(dataset, observed=n)
            log_axis(ax, "y")
            draw_runs(ax, runs, "effective_rank")
            draw_line(ax, runs, "least_effective_rank", "least nuclear norm")
            draw_line(ax, runs, "truth_effective_rank", "ground truth", color="0.6")
            ticks = (5, 7, 10, 20, 50)
            ax.set_yticks(ticks, [str(tick) for tick in ticks])
            ax.minorticks_off()
        axes[0].set_ylabel("nuclear norm / the least")
        axes[len(numbers)].set_ylabel("effective rank")
        share_legend(figure, reversed(axes))
        return figure


def _deep(dataset: "xr.Dataset", observed: int) -> "xr.Dataset":
    """The runs of depth 2 and more from the smallest initialization."""
    deep = select(dataset, observed=observed, depth=tuple(d for d in depths(dataset) if d > 1))
    return select(deep, init=inits(deep)[-1]) if inits(deep) else deep


def _ratios(runs: "xr.Dataset") -> tuple[np.ndarray, np.ndarray]:
    norms = np.asarray(runs["nuclear_norm"])[:, -1] / np.asarray(runs["least_nuclear_norm"])
    ranks = np.asarray(runs["effective_rank"])[:, -1] / np.asarray(runs["least_effective_rank"])
    return norms, ranks


def _words(runs: "xr.Dataset", norms: np.ndarray, ranks: np.ndarray) -> str:
    found = [
        f"depth {int(depth)}: {norm:.4f} and {rank:.4f}"
        for depth, norm, rank in zip(runs["factorization.depth"], norms, ranks, strict=True)
    ]
    return f"norm and rank over those of the least nuclear norm: {'; '.join(found) or 'no runs'}"


def _check_few(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = _deep(dataset, FEW)
    norms, ranks = _ratios(runs)
    holds = {2, 3} <= set(depths(runs)) and np.all(norms > 1.005) and np.all(ranks < 0.95)
    holds = holds and np.all(runs["least_certified"])
    return f"{_words(runs, norms, ranks)}; {unfinished(runs)}", bool(holds)


def _check_many(dataset: "xr.Dataset") -> tuple[str, bool]:
    runs = _deep(dataset, MANY)
    norms, ranks = _ratios(runs)
    holds = {2, 3} <= set(depths(runs)) and np.all(runs["least_certified"])
    holds = holds and np.all(np.abs(norms - 1) < 0.01) and np.all(np.abs(ranks - 1) < 0.01)
    return f"{_words(runs, norms, ranks)}; {unfinished(runs)}", bool(holds)


FIGURE = Figure(
    name=NAME,
    title="Depth lowers the rank, not the nuclear norm",
    caption=(
        "The same ends of gradient flow. Above: nuclear norm over the least among all matrices "
        "that fit the observations (dash-dotted black, certified); depth 1 is far above and left "
        "out. Below: effective rank, the exponential of the entropy of the normalized singular "
        "values. Grey: the ground truth."
        "\n\n"
        f"From {FEW} observations the matrix of least nuclear norm is not the ground truth: its "
        "norm is smaller, its effective rank larger. Flows of small initialization end on the "
        f"other side: at a larger norm and a lower rank. From {MANY} observations the two agree, "
        "and cannot be told apart."
    ),
    experiments=completions,
    draw=draw,
    derive=ends,
    claims=(
        Claim(
            id=f"{NAME}.few",
            statement=(
                f"From {FEW} observations and the smallest initialization, depth 2 and more end at "
                "a nuclear norm above the least, and at an effective rank below that of the matrix "
                "of least nuclear norm: what they minimize is not the nuclear norm."
            ),
            source=f"{SOURCE}, experiments: the conjecture about the nuclear norm put to the test",
            expected="norm above the least by 0.5% or more, rank below by 5% or more",
            tolerance="the final loss moves norms by less than 0.1%",
            check=_check_few,
        ),
        Claim(
            id=f"{NAME}.many",
            statement=(
                f"From {MANY} observations and the smallest initialization, depth 2 and more end "
                "at the least nuclear norm and its effective rank."
            ),
            source=f"{SOURCE}, experiments: where the nuclear norm recovers the ground truth",
            expected="ratios of 1",
            tolerance="1%: what initialization and final loss leave, both of which shrink",
            check=_check_many,
        ),
    ),
)
