"""Grids of panels that share their axes, their labels and one legend."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from factorflow.drawing.axes import UNCERTIFIED_LABEL, UNCERTIFIED_LINE, log_axis, loss_axis
from factorflow.drawing.rows import Limits
from factorflow.drawing.style import style


@style()
def panels(
    n: int,
    titles: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    y_label: str | None = None,
    y_log: bool = False,
    share_y: bool = True,
    size: tuple[float | int, float | int] = (3.4, 2.9),
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels in rows, outside pyplot.

    **Arguments:**

    - `n`: the number of panels.
    - `titles`: a title for each panel.
    - `columns`: panels in a row; by default up to three, and two for four panels.
    - `y_label`: the label of the vertical axes, shown once per row. Break a long one with
        a newline: what does not fit the height is cut off.
    - `y_log`: whether the vertical axes are logarithmic.
    - `share_y`: whether all panels show the same vertical range.
    - `size`: width and height of one panel in inches. A single panel is drawn larger.

    **Returns:**

    The figure and its panels, row by row.
    """
    if n < 1:
        raise ValueError(f"a figure needs at least one panel, not {n}")
    if titles is not None and len(titles) != n:
        raise ValueError(f"{n} panels need {n} titles, not {len(titles)}: {list(titles)}")
    if columns is not None and columns < 1:
        raise ValueError(f"a row needs at least one panel, not columns={columns}")
    wide = min(n, columns or (2 if n == 4 else 3))
    rows = -(-n // wide)
    if n == 1:
        size = (1.7 * size[0], 1.3 * size[1])
    figure = Figure(figsize=(wide * size[0], rows * size[1]), layout="constrained")
    grid = figure.subplots(rows, wide, sharey=share_y, squeeze=False)
    cells: list[Axes] = list(grid.flat)
    for unused in cells[n:]:
        unused.remove()
    for index, ax in enumerate(cells[:n]):
        if titles is not None:
            ax.set_title(titles[index])
        if y_log:
            log_axis(ax, "y")
        if y_label is not None and (index % wide == 0 or not share_y):
            ax.set_ylabel(y_label)
    return figure, cells[:n]


@style()
def loss_panels(
    n: int,
    titles: Sequence[str] | None = None,
    *,
    limits: Limits | None = None,
    columns: int | None = None,
    x_label: str = "Loss (falls to the right →)",
    y_label: str | None = None,
    y_log: bool = False,
    share_y: bool = True,
    size: tuple[float | int, float | int] = (3.4, 2.9),
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels over the loss; see `panels` and `loss_axis`.

    The loss is labelled under the lowest panel of each column.

    **Arguments:**

    - `limits`: the smallest and the largest loss shown in all panels.
    - `x_label`: the label of the loss axes; say which normalization of the loss it is.
    - The others are those of `panels`.
    """
    figure, axes = panels(
        n, titles, columns=columns, y_label=y_label, y_log=y_log, share_y=share_y, size=size
    )
    wide = len({ax.get_subplotspec().colspan.start for ax in axes})  # pyright: ignore[reportOptionalMemberAccess]
    for index, ax in enumerate(axes):
        lowest = index + wide >= n
        loss_axis(ax, label=x_label if lowest else None, limits=limits)
    return figure, axes


@style()
def share_legend(figure: Figure, axes: Iterable[Axes], *, columns: int | None = None) -> None:
    """Draw one legend below the panels, each label once; nothing where nothing is labelled.

    The entry that explains stretches without a certificate comes last. Call it after
    everything is drawn.
    """
    entries: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    if UNCERTIFIED_LABEL in entries:
        del entries[UNCERTIFIED_LABEL]
        # Grey: the entry explains the dashes of every curve, whatever its hue.
        entries[UNCERTIFIED_LABEL] = Line2D([], [], color="0.5", **UNCERTIFIED_LINE)
    per_row = columns or _legend_columns(entries, float(figure.get_figwidth()))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=per_row)


def _legend_columns(labels: Iterable[str], width: float) -> int:
    # An entry is about 0.075 inches a letter at 9 pt, and its line and gaps 0.6 inches.
    widths = [0.6 + 0.075 * len(label) for label in labels]
    fitting = max(1, int(width / max(widths)))
    rows = int(np.ceil(len(widths) / fitting))
    return int(np.ceil(len(widths) / rows))
