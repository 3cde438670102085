"""Checks on the columns that a figure is drawn from."""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Limits: TypeAlias = tuple[float | int, float | int]
"""The two ends of a scale; whole numbers are welcome."""


def as_columns(**columns: ArrayLike) -> list[NDArray[np.float64]]:
    """The named columns as arrays, or a `ValueError` where they do not fit together."""
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) != 1:
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"a curve needs one-dimensional columns of equal length, not {described}")
    return list(arrays.values())


def as_flags(trusted: ArrayLike | None, size: int) -> NDArray[np.bool_]:
    """One flag per row; `None` stands for all rows certified."""
    if trusted is None:
        return np.ones(size, dtype=bool)
    flags = np.asarray(trusted)
    if flags.dtype != np.bool_ or flags.shape != (size,):
        raise ValueError(
            f"trusted needs one True or False per row ({size} rows), "
            f"not an array of {flags.dtype} with shape {flags.shape}"
        )
    return flags


def polyline(
    x: NDArray[np.float64], y: NDArray[np.float64], segments: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The path of the chosen segments, with a NaN between stretches that do not touch.

    `segments` has one flag per pair of neighbouring rows.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], segments, [False]]).astype(int)))
    rows: list[NDArray[np.float64]] = []
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        rows.append(np.stack([x[start : stop + 1], y[start : stop + 1]]))
        rows.append(np.full((2, 1), np.nan))
    if not rows:
        return np.empty(0), np.empty(0)
    path = np.concatenate(rows[:-1], axis=1)
    return path[0], path[1]
