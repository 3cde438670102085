"""The one look that all figures share, applied without changing anybody's settings."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import matplotlib

# Matplotlib derives SVG ids from this salt and from the drawn content; without a salt it
# draws a random one for each file, and no two files would be the same.
_HASH_SALT = "factorflow"


@functools.cache
def _parameters() -> dict[str, Any]:
    source = resources.files("factorflow.drawing").joinpath("factorflow.mplstyle")
    with resources.as_file(source) as path:
        parameters = matplotlib.rc_params_from_file(path, use_default_template=False)
    return {**parameters, "svg.hashsalt": _HASH_SALT}


@contextmanager
def style() -> Iterator[None]:
    """Apply factorflow's style inside a `with` block, or to a function as a decorator.

    Starts from matplotlib's defaults and not from the user's own configuration, so that the
    same data gives the same figure everywhere. The settings in force before come back at
    the end of the block; the backend is left alone.

    Matplotlib's settings belong to the whole process: draw from one thread at a time.

    !!! example

        ```python
        @style()
        def my_figure(dataset): ...


        with style():
            figure = my_figure(dataset)
        ```
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_parameters())  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield
