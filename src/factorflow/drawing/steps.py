"""Paths whose color tells the iteration number."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from numpy.typing import ArrayLike, NDArray

from factorflow.drawing.axes import draw_uncertified
from factorflow.drawing.rows import Limits, as_columns, as_flags

STEP_COLORS = ListedColormap(
    matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, 256)), name="factorflow_steps"
)
"""Viridis without its last yellow, which vanishes on white."""

# From this many segments on, a picture is smaller than the list of segments.
_RASTERIZE_FROM = 600


def color_by_step(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    step: ArrayLike,
    *,
    norm: str | Normalize = "log",
    limits: Limits | None = None,
    trusted: ArrayLike | None = None,
    points: bool = True,
    colorbar: bool = True,
    label: str = "Iteration",
    linewidth: float | int = 2.0,
) -> LineCollection:
    """Draw a path through `(x, y)` colored by iteration number, with a color bar.

    **Arguments:**

    - `ax`: the axes to draw on; set their scales first.
    - `x`, `y`, `step`: one number per row. Rows that are not finite leave a gap.
    - `norm`: how iteration numbers become colors: `"log"` (iteration 0 takes the color of
        the first positive one), `"linear"`, or a matplotlib norm.
    - `limits`: the first and the last iteration of the color scale. Give the same ones to
        all paths that share a color bar. By default those of this path.
    - `trusted`: a flag per row; stretches that are not certified are drawn grey and dashed.
    - `points`: whether each row also gets a dot.
    - `colorbar`: whether to draw a color bar beside these axes. For several paths, pass
        `False` and call `step_colorbar` once.
    - `label`: the label of the color bar.
    - `linewidth`: in points.

    **Returns:**

    The colored line, to hand to `step_colorbar`.
    """
    xs, ys, steps = as_columns(x=x, y=y, step=step)
    flags = as_flags(trusted, xs.size)
    finite = np.isfinite(xs) & np.isfinite(ys) & np.isfinite(steps)
    drawable = finite[:-1] & finite[1:]
    certified = flags[:-1] & flags[1:]
    colors = _norm(norm, steps[finite], limits)

    rows = np.stack([xs, ys], axis=1)
    shown = drawable & certified
    segments = np.stack([rows[:-1], rows[1:]], axis=1)[shown]
    common: dict[str, Any] = {"cmap": STEP_COLORS, "norm": colors}
    line = LineCollection(
        list(segments),
        linewidths=linewidth,
        capstyle="round",
        rasterized=len(segments) >= _RASTERIZE_FROM,
        **common,
    )
    # The middle of the segment, on the scale of the color bar.
    line.set_array(_middle(steps, logarithmic=isinstance(colors, LogNorm))[shown])
    ax.add_collection(line)
    dotted = finite & flags
    if points and np.any(dotted):
        ax.scatter(
            xs[dotted],
            ys[dotted],
            c=steps[dotted],
            s=3.0 * linewidth**2,
            linewidths=0,
            rasterized=bool(dotted.sum() >= _RASTERIZE_FROM),
            **common,
        )
    draw_uncertified(ax, xs, ys, drawable & ~certified, color="0.45")
    ax.autoscale_view()
    if colorbar:
        step_colorbar([ax], line, label=label)
    return line


def step_colorbar(
    axes: Sequence[Axes], line: LineCollection, *, label: str = "Iteration"
) -> Colorbar:
    """Draw one color bar for all the given axes; `line` comes from `color_by_step`."""
    figure = axes[0].get_figure(root=True)
    if figure is None:
        raise ValueError("the axes belong to no figure")
    bar = figure.colorbar(line, ax=list(axes), label=label, pad=0.02, aspect=28)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return bar


def _norm(norm: str | Normalize, steps: NDArray[np.float64], limits: Limits | None) -> Normalize:
    if isinstance(norm, Normalize):
        return norm
    if norm not in ("log", "linear"):
        raise ValueError(f'norm must be "log", "linear" or a matplotlib norm, not {norm!r}')
    low, high = limits or ((steps.min(), steps.max()) if steps.size else (0.0, 1.0))
    if norm == "log":
        positive = steps[steps > 0]
        if low <= 0:
            low = float(positive.min()) if positive.size else 1.0
        if high > low:
            return LogNorm(low, high, clip=True)
    return Normalize(low, high if high > low else low + 1.0, clip=True)


def _middle(steps: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    before, after = steps[:-1], steps[1:]
    arithmetic = (before + after) / 2
    if not logarithmic:
        return arithmetic
    positive = (before > 0) & (after > 0)
    return np.where(positive, np.sqrt(np.abs(before * after)), arithmetic)
