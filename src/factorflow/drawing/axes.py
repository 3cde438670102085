"""What every figure over the loss shares: the axis itself, curves, bounds and readings."""

import re
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator
from numpy.typing import ArrayLike, NDArray

from factorflow.drawing.rows import Limits, as_columns, as_flags, polyline

UNCERTIFIED_LABEL = "not certified"
"""The legend entry that explains pale dashed stretches; added once to each set of axes."""

UNCERTIFIED_LINE: dict[str, Any] = {"linestyle": (0, (3.0, 1.6)), "linewidth": 1.4}
"""How such stretches are drawn."""

_GREY = np.array([0.62, 0.62, 0.62])

_POWER = re.compile(r"\$\\mathdefault\{(-?)(?:([\d.]+)\\times)?10\^\{(-?\d+)\}\}\$")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class PowerFormatter(LogFormatterSciNotation):
    """Labels of a logarithmic axis, 10⁻³, in plain letters.

    Matplotlib sets formulas: to read and measure those of a report's ticks took 4 seconds.
    """

    def __call__(self, x, pos=None):
        label = super().__call__(x, pos)
        power = _POWER.fullmatch(label)
        if power is None:
            return label
        sign, factor, exponent = power.groups()
        times = f"{factor}\N{MULTIPLICATION SIGN}" if factor else ""
        minus = "\N{MINUS SIGN}" if sign else ""
        return f"{minus}{times}10{exponent.translate(_RAISED)}"


def log_axis(ax: Axes, *names: str) -> None:
    """Make the `"x"` or `"y"` axis, or both, logarithmic.

    Values of zero or below have no place on the axis and leave a gap. Minor ticks are drawn over
    five decades and less: beyond they are clutter, and half of the time that drawing takes.
    """
    for name in names:
        getattr(ax, f"set_{name}scale")("log", nonpositive="mask")
        axis = getattr(ax, f"{name}axis")
        axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=5))
        axis.set_major_formatter(PowerFormatter())
        axis.set_minor_formatter(PowerFormatter(labelOnlyBase=False))


def loss_axis(
    ax: Axes,
    *,
    label: str | None = "Loss (falls to the right →)",
    limits: Limits | None = None,
) -> None:
    """Make the horizontal axis a logarithmic loss that falls from left to right.

    Training then reads from left to right, as it would over time. Losses of zero or below
    have no place on the axis and leave a gap.

    **Arguments:**

    - `ax`: the axes to change.
    - `label`: the axis label; `None` leaves it empty.
    - `limits`: the smallest and the largest loss shown, in either order. By default the
        axis fits the data.
    """
    log_axis(ax, "x")
    if limits is None:
        ax.xaxis.set_inverted(True)
    else:
        if not all(np.isfinite(limit) and limit > 0 for limit in limits):
            raise ValueError(f"the limits of a loss axis must be positive, not {limits}")
        ax.set_xlim(max(limits), min(limits))
    if label is not None:
        ax.set_xlabel(label)


def draw_curve(
    ax: Axes,
    loss: ArrayLike,
    value: ArrayLike,
    *,
    trusted: ArrayLike | None = None,
    label: str | None = None,
    color: Any = None,
    linestyle: Any = "-",
    reason: str = UNCERTIFIED_LABEL,
) -> Line2D:
    """Draw a measure over the loss, with stretches that are not certified pale and dashed.

    A stretch between two rows counts as certified only if both rows are. Rows that are not
    finite (slots that were not reached) leave a gap; a row with gaps on both sides is drawn
    as a point.

    **Arguments:**

    - `ax`: the axes to draw on.
    - `loss`, `value`: one number per row, of the same length.
    - `trusted`: a flag per row, usually `trajectory.certificate.trusted`. `None` draws the
        whole curve as certified.
    - `label`: the legend entry.
    - `color`, `linestyle`: as in matplotlib; by default the next color of the style and a
        solid line.
    - `reason`: the legend entry that says why stretches are pale and dashed.

    **Returns:**

    The line of the certified stretches, which carries the label and the full color.
    """
    x, y = as_columns(loss=loss, value=value)
    flags = as_flags(trusted, x.size)
    certified = flags[:-1] & flags[1:]
    finite = np.isfinite(x) & np.isfinite(y)
    drawable = finite[:-1] & finite[1:]

    (line,) = ax.plot(*polyline(x, y, certified & drawable), color=color, linestyle=linestyle)
    if label is not None:
        line.set_label(label)
    color = line.get_color()
    draw_uncertified(ax, x, y, ~certified & drawable, color=color, reason=reason)

    joined = np.zeros(x.size, dtype=bool)
    joined[:-1] |= drawable
    joined[1:] |= drawable
    alone = finite & ~joined
    if np.any(alone & flags):
        ax.plot(x[alone & flags], y[alone & flags], "o", color=color)
    if np.any(alone & ~flags):
        hollow = {"markerfacecolor": "white", "markeredgecolor": pale(color)}
        points = ax.plot(x[alone & ~flags], y[alone & ~flags], "o", **hollow)
        _explain(ax, points[0], reason)
    return line


def draw_uncertified(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    segments: NDArray[np.bool_],
    *,
    color: Any,
    reason: str = UNCERTIFIED_LABEL,
) -> None:
    """Draw the named segments (one flag per pair of neighbouring rows) pale and dashed."""
    if not np.any(segments):
        return
    (line,) = ax.plot(
        *polyline(x, y, segments),
        color=pale(color),
        zorder=1.9,
        **UNCERTIFIED_LINE,
    )
    _explain(ax, line, reason)


def draw_bound(
    ax: Axes,
    loss: ArrayLike,
    bound_values: ArrayLike,
    label: str | None = None,
    *,
    color: Any = "black",
) -> Line2D:
    """Draw a theoretical bound over the loss: a thin black dash-dotted line above the curves.

    Where the bound says nothing (not finite, or not positive on a logarithmic axis) the line
    has a gap.
    """
    x, y = as_columns(loss=loss, bound_values=bound_values)
    (line,) = ax.plot(x, y, color=color, linestyle=(0, (6, 1.5, 1, 1.5)), linewidth=1.3, zorder=3)
    if label is not None:
        line.set_label(label)
    return line


def draw_overlay(
    ax: Axes, loss: ArrayLike, values: ArrayLike, label: str | None = None, *, color: Any
) -> Line2D:
    """Draw somebody's own curve over the loss: long dashes, unlike bounds that are proved."""
    x, y = as_columns(loss=loss, values=values)
    (line,) = ax.plot(x, y, color=color, linestyle=(0, (10, 3)), linewidth=1.6, zorder=3)
    if label is not None:
        line.set_label(label)
    return line


def draw_markers(
    ax: Axes,
    xs: ArrayLike,
    ys: ArrayLike,
    label: str | None = None,
    *,
    color: Any = "black",
    marker: str = "D",
) -> Line2D:
    """Draw readings that a paper published: hollow diamonds, never joined by a line."""
    x, y = as_columns(xs=xs, ys=ys)
    (line,) = ax.plot(
        x,
        y,
        linestyle="none",
        marker=marker,
        markersize=6.5,
        markerfacecolor="white",
        markeredgecolor=color,
        markeredgewidth=1.3,
        zorder=4,
    )
    if label is not None:
        line.set_label(label)
    return line


def pale(color: Any) -> tuple[float, float, float]:
    """The greyed version of a color: its hue still tells which curve it belongs to."""
    red, green, blue = 0.45 * np.asarray(to_rgb(color)) + 0.55 * _GREY
    return float(red), float(green), float(blue)


def _explain(ax: Axes, line: Line2D, reason: str) -> None:
    labels = {drawn.get_label() for drawn in ax.get_lines()}
    if reason not in labels:
        line.set_label(reason)
