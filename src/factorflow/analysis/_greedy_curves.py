"""Curves of products: from the steps of a solver to a fine polyline, and distances from one."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["distances_to_polyline", "interpolation_error", "resampled"]

Array = NDArray[np.float64]

# Segments that compete for the nearest: distances to all of them come from inner products, which
# round at 1e-8 of the products' size, those to the best few from differences, which do not.
_CANDIDATES = 8
# Of the matrix of all distances, in entries: 32 MB.
_BLOCK = 1 << 22


def resampled(times: Array, points: Array, velocities: Array, rows: int) -> tuple[Array, Array]:
    """Times and points of `rows` moments, evenly spaced along the chords of a curve.

    Between two steps the curve is the cubic polynomial that has their points and velocities. The
    ends are kept as they are.
    """
    if len(times) == 1:  # ended where it began
        return np.repeat(times, rows), np.repeat(points, rows, axis=0)
    chords = np.linalg.norm(np.diff(points, axis=0).reshape(len(points) - 1, -1), axis=1)
    along = np.concatenate([[0.0], np.cumsum(chords)])
    wanted = np.linspace(0.0, along[-1], rows)
    moments = np.interp(wanted, along, times)
    moments[0], moments[-1] = times[0], times[-1]
    return moments, _hermite(times, points, velocities, moments)


def interpolation_error(times: Array, points: Array, velocities: Array) -> float:
    """How far the cubic polynomials are from the curve, by leaving out every other step.

    Twice the spacing makes sixteen times the error.
    """
    kept = slice(None, None, 2)
    left_out = slice(1, len(times) - 1 + len(times) % 2, 2)
    if times[left_out].size == 0 or times[kept].size < 2:
        return 0.0
    found = _hermite(times[kept], points[kept], velocities[kept], times[left_out])
    away = np.linalg.norm((found - points[left_out]).reshape(len(found), -1), axis=1)
    return float(np.max(away)) / 16


def _hermite(times: Array, points: Array, velocities: Array, moments: Array) -> Array:
    after = np.clip(np.searchsorted(times, moments, side="right"), 1, len(times) - 1)
    before = after - 1
    width = (times[after] - times[before])[:, None, None]
    part = (moments[:, None, None] - times[before][:, None, None]) / width
    rest = 1 - part
    return (
        (1 + 2 * part) * rest**2 * points[before]
        + part**2 * (3 - 2 * part) * points[after]
        + width * part * rest**2 * velocities[before]
        - width * part**2 * rest * velocities[after]
    )


def distances_to_polyline(points: Array, polyline: Array) -> Array:
    """The distance of each point, shape `(n, size)`, to the nearest of a polyline's segments."""
    if len(polyline) == 1:
        return np.linalg.norm(points - polyline[0], axis=1)
    starts, directions = polyline[:-1], np.diff(polyline, axis=0)
    squares = np.sum(directions**2, axis=1)
    offsets = np.sum(starts * directions, axis=1)
    sizes = np.sum(starts**2, axis=1)
    block = max(1, _BLOCK // len(starts))
    found = [
        _nearest(points[first : first + block], starts, directions, squares, offsets, sizes)
        for first in range(0, len(points), block)
    ]
    return np.concatenate(found)


def _nearest(
    points: Array,
    starts: Array,
    directions: Array,
    squares: Array,
    offsets: Array,
    sizes: Array,
) -> Array:
    along = points @ directions.T - offsets
    # A segment without length is its start.
    parts = np.clip(along / np.where(squares > 0, squares, 1), 0, 1)
    rough = np.sum(points**2, axis=1)[:, None] - 2 * points @ starts.T + sizes
    rough += parts * (parts * squares - 2 * along)
    count = min(_CANDIDATES, len(starts))
    best = np.argpartition(rough, count - 1, axis=1)[:, :count]
    gaps = points[:, None] - starts[best]
    parts = np.sum(gaps * directions[best], axis=2) / np.where(squares > 0, squares, 1)[best]
    gaps -= np.clip(parts, 0, 1)[:, :, None] * directions[best]
    return np.linalg.norm(gaps, axis=2).min(axis=1)
