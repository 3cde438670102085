"""Lower bounds on the rank of every matrix with given entries, found by a search for witnesses.

Whatever the search finds is a proof; what it misses costs sharpness only.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["block_rank", "staircase_rank"]

# Sets of rows kept per size, and rows tried on top of each: exhaustive up to seven rows.
_KEPT = 64
_TRIED = 32

_Test = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


def block_rank(mask: NDArray[np.bool_], values: NDArray[np.float64], delta: float) -> int:
    r"""A rank below which no matrix comes within `delta` of the observed entries.

    It is the number of rows of a fully observed block whose smallest singular value exceeds
    `delta`: that singular value is the distance to the matrices of lower rank.
    """

    def smallest(row: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        block = np.concatenate([row[None], others])
        if block.shape[1] < block.shape[0]:
            return 0.0
        return float(np.linalg.svd(block, compute_uv=False)[-1])

    return _longest(mask, values, delta, smallest)


def staircase_rank(mask: NDArray[np.bool_], values: NDArray[np.float64], delta: float) -> int:
    r"""A rank that every matrix with exactly these entries has at least.

    It is the length of a list of rows such that each of them, on the columns where it and all
    later ones are observed, lies outside the span of the later ones. Then the rows are linearly
    independent whatever the hidden entries are: in a vanishing combination the first row with a
    coefficient would be a combination of later ones. Fully observed blocks are the special case
    without shrinking columns; observed zeros below a nonzero diagonal are another.

    A distance from the span of at most `delta` does not count.
    """

    def distance(row: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        if not len(others):
            return float(np.linalg.norm(row))
        _, sizes, basis = np.linalg.svd(others, full_matrices=False)
        # Only rounding is left out of the span: a small singular value is a direction.
        floor = np.finfo(np.float64).eps * max(others.shape) * sizes[0]
        basis = basis[sizes > floor]
        return float(np.linalg.norm(row - (row @ basis.T) @ basis))

    return _longest(mask, values, delta, distance)


def _longest(
    mask: NDArray[np.bool_], values: NDArray[np.float64], delta: float, test: _Test
) -> int:
    """The longest list of rows that grows by a row that passes the test, in a beam search."""
    if mask.shape[0] > mask.shape[1]:
        mask, values = mask.T, values.T
    level: dict[frozenset[int], NDArray[np.bool_]] = {frozenset(): np.ones(mask.shape[1], np.bool_)}
    for length in range(mask.shape[0]):
        found: dict[frozenset[int], tuple[int, float]] = {}
        common: dict[frozenset[int], NDArray[np.bool_]] = {}
        for rows, columns in level.items():
            others = sorted(rows)
            shared = np.sum(mask & columns, axis=1)
            shared[others] = 0
            for row in np.argsort(-shared, kind="stable")[:_TRIED]:
                grown = rows | {int(row)}
                if shared[row] == 0 or grown in found:
                    continue
                seen = columns & mask[row]
                size = test(values[row, seen], values[others][:, seen])
                if size > delta:
                    found[grown], common[grown] = (int(shared[row]), size), seen
        if not found:
            return length
        best = sorted(found, key=lambda rows: found[rows], reverse=True)[:_KEPT]
        level = {rows: common[rows] for rows in best}
    return mask.shape[0]
