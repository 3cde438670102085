"""What training minimizes on a problem, at a glance."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from factorflow.drawing.axes import log_axis, loss_axis
from factorflow.drawing.style import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from factorflow.analysis import Minimized

__all__ = ["draw_minimized"]

_COLORS = {
    "minimized": "C2",
    "above": "C1",
    "diverges": "C3",
    "at best known": "C0",
    "undecided": "0.45",
}
# Diverging quantities end here, in multiples of the largest ratio that does not.
_BEYOND = 3.0
# Ratios this near to 1 fill the axis all the same.
_LEAST_SPAN = 1.05


def draw_minimized(answer: "Minimized") -> Figure:
    """The verdict, every quantity against its infimum, and the norms along the loss.

    **Left:** for every norm and rank its value over the infimum of all solutions. Pale dots are
    runs at larger scales of the initialization, darker ones at smaller scales, the diamond is the
    limit. On the line at 1 a quantity is minimized; an arrow diverges.

    **Right:** the norms along the run from the smallest scale that is certified.

    **Arguments:**

    - `answer`: from `factorflow.what_is_minimized`.

    **Returns:** a figure; `save_figure` writes it.
    """
    with style():
        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _draw_ratios(left, answer)
        _draw_norms(right, answer)
        figure.suptitle(f"{answer.verdict}   ({answer.start})", x=0.01, ha="left", weight="bold")
    return figure


def _draw_ratios(ax: "Axes", answer: "Minimized") -> None:
    finite = [q.ratio for q in answer.quantities if np.isfinite(q.ratio) and q.ratio > 0]
    ends = [q.ratios[np.isfinite(q.ratios) & (q.ratios > 0)] for q in answer.quantities]
    finite += [float(r) for end in ends for r in end]
    largest = max([*finite, _LEAST_SPAN])
    diverging = any(q.status == "diverges" for q in answer.quantities)
    edge = largest * _BEYOND if diverging else largest**1.12
    log_axis(ax, "x")
    ax.axvline(1, color="0.2", linewidth=1.0, zorder=1)
    for place, quantity in enumerate(answer.quantities):
        color = _COLORS[quantity.status]
        shades = np.linspace(0.15, 0.7, len(answer.scales))
        for shade, of_seeds in zip(shades, quantity.ratios, strict=True):
            dots = of_seeds[np.isfinite(of_seeds)]
            ax.plot(dots, np.full(dots.shape, place), "o", color=color, alpha=shade, markersize=5)
        if quantity.status == "diverges":
            ax.annotate(
                "",
                (edge, place),
                (1.0, place),
                arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.8},
            )
        elif np.isfinite(quantity.ratio):
            ax.plot(quantity.ratio, place, "D", color=color, markersize=8, zorder=4)
        number = f"  {quantity.ratio:.4g}" if np.isfinite(quantity.ratio) else ""
        ax.annotate(
            quantity.status + number,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
            weight="bold",
        )
    found = ["" if q.known else "\n(over the best known)" for q in answer.quantities]
    names = [_label(q.name) + note for q, note in zip(answer.quantities, found, strict=True)]
    ax.set_yticks(range(len(answer.quantities)), names)
    ax.set_ylim(len(answer.quantities) - 0.4, -0.6)
    ax.set_xlim(min([0.97, *finite]), edge)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if edge < 30:  # a logarithmic axis without a third power of ten would have two ticks
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator(_ticks(edge)))
    ax.set_xlabel("value over the infimum of all solutions")


def _draw_norms(ax: "Axes", answer: "Minimized") -> None:
    certified = answer.runs.certified
    seed = int(np.argmax(np.sum(certified, axis=0)))
    scale = max(0, int(np.sum(certified[:, seed])) - 1)
    loss_axis(ax, label="loss (falls to the right →)")
    log_axis(ax, "y")
    shown = [q for q in answer.quantities if q.name not in ("rank", "effective_rank")]
    for number, quantity in enumerate(shown):
        curve = answer.along_loss(quantity.name)[scale, seed]
        ax.plot(answer.runs.losses, curve, color=f"C{number}", label=_label(quantity.name))
    ax.axhline(1, color="0.2", linewidth=1.0, zorder=1)
    ax.set_ylabel("norm over its minimum")
    ax.set_title(f"along one run, initialization {answer.scales[scale]:.0e}")
    low, high = ax.get_ylim()
    if high < 10 * max(low, 0.1):
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.legend(loc="best")


def _ticks(edge: float) -> list[float]:
    """One and a few round ratios up to the edge, spread evenly on a logarithmic axis."""
    ticks, gap = [1.0], edge**0.12
    for tick in (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0):
        if ticks[-1] * gap <= tick <= edge:
            ticks.append(tick)
    return ticks


def _label(name: str) -> str:
    words = name.replace("_", " ")
    words = words.replace("frobenius", "Frobenius")
    return words.replace("schatten norm[", "Schatten-").replace("]", "")
