"""Figures whose bytes do not change, in files that appear whole or not at all."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from factorflow._files import write_files
from factorflow.drawing.style import style

_PNG_DPI = 150
_NAME = re.compile(r"\w[\w.+-]*")


class SavedFigure(NamedTuple):
    """The two files of a saved figure."""

    svg: Path
    png: Path


def save_figure(figure: Figure, folder: str | os.PathLike[str], name: str) -> SavedFigure:
    """Write `folder/name.svg` and `folder/name.png` (150 dots per inch).

    The same figure gives the same bytes: no date, no random ids. Both pictures are drawn
    before either is written, and both appear under a temporary name first, so a failure
    leaves the old files (or none) and never half a file.

    **Arguments:**

    - `figure`: the figure. It is not changed.
    - `folder`: made if it is missing.
    - `name`: a plain file name without an ending.

    **Returns:**

    The paths of the two files.

    **Raises:**

    - `ValueError`: if `name` is not a plain file name.
    - `OSError`: if a file cannot be written, with the path and the reason.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a figure: use letters, digits, '_', '-', '+' and '.', "
            "without folders"
        )
    paths = SavedFigure(Path(folder) / f"{name}.svg", Path(folder) / f"{name}.png")
    svg, png = io.BytesIO(), io.BytesIO()
    with style(), _fixed_layout(figure):
        # Date and Creator would tie the bytes to the day and to matplotlib's release.
        blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", dpi=_PNG_DPI, metadata=blank)
        figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    write_files({paths.svg: svg.getvalue(), paths.png: png.getvalue()})
    return paths


@contextmanager
def _fixed_layout(figure: Figure) -> Iterator[None]:
    # A constrained layout starts from the last one and moves it a little, if only in the last
    # bit. Lay out once, hold it still for both files, and put everything back where it was,
    # so that the next saving starts from the same place.
    engine = figure.get_layout_engine()
    before = [
        (
            ax,
            ax.get_in_layout(),
            ax.get_position(original=True).frozen(),
            ax.get_position().frozen(),
        )
        for ax in figure.axes
    ]
    if engine is not None:
        engine.execute(figure)
    # No engine at all: for "none", its placeholder, matplotlib draws every figure twice. The
    # settings hold until both are saved, because saving resets the engine to the style's own.
    with rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
        figure.set_layout_engine(None)
        try:
            yield
        finally:
            figure.set_layout_engine(engine or "none")
            for ax, in_layout, original, active in before:
                ax.set_position(original, which="original")
                ax.set_position(active, which="active")
                ax.set_in_layout(in_layout)
