r"""Matrix ranks at a tolerance: singular-value tails, and the lower bounds they give to tensors.

Merging the modes of a tensor into two groups makes it a matrix, an unfolding. A sum of $r$
rank-one tensors unfolds to a matrix of rank $r$ or less, so that its distance to the tensor is at
least that of the unfolding to the matrices of rank $r$: $\sqrt{\sum_{i > r} \sigma_i^2}$.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np

# Up to this order all bipartitions are looked at (127 of them), beyond only a quadratic number.
_LAST_FULL_ORDER = 8
# Roundings per singular value that the lower bound forgives, in units of eps at norm one.
_ULP = 10


def tails(singular_values: np.ndarray) -> np.ndarray:
    """Squared distance to the matrices of rank 0, 1, ...; one entry more than there are values."""
    squares = np.square(singular_values)[..., ::-1]
    summed = np.cumsum(squares, axis=-1)[..., ::-1]
    return np.concatenate([summed, np.zeros_like(summed[..., :1])], axis=-1)


def smallest_rank(singular_values: np.ndarray, distance: float) -> int:
    """Smallest rank of a matrix at less than `distance` > 0 in the Frobenius norm."""
    return int(np.argmax(np.sqrt(tails(singular_values)) < distance))


def mode_spaces(tensor: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Left singular vectors and singular values of the unfolding of every mode."""
    spaces = []
    for mode in range(tensor.ndim):
        matrix = unfolding(tensor, (mode,))
        if matrix.shape[1] > matrix.shape[0]:
            # The triangle of a QR decomposition of the transpose has the same of both.
            matrix = np.transpose(np.linalg.qr(matrix.T, mode="r"))
        vectors, values, _ = np.linalg.svd(matrix, full_matrices=False)
        spaces.append((vectors, values))
    return spaces


def bipartitions(order: int) -> Iterator[tuple[int, ...]]:
    """One side of every split of the modes into two groups, each split once.

    All of them up to order 8. Beyond, the single modes, the pairs and the runs of neighbors.
    """
    if order <= _LAST_FULL_ORDER:
        for count in range(1, order // 2 + 1):
            for side in itertools.combinations(range(order), count):
                if 2 * count < order or side[0] == 0:
                    yield side
        return
    sides: set[tuple[int, ...]] = {(mode,) for mode in range(order)}
    sides |= set(itertools.combinations(range(order), 2))
    for start, length in itertools.product(range(order), range(3, order // 2 + 1)):
        if start + length <= order:
            sides.add(tuple(range(start, start + length)))
    yield from sorted(sides)


def unfolding(tensor: np.ndarray, side: tuple[int, ...]) -> np.ndarray:
    """The matrix whose rows are indexed by the modes in `side`."""
    rows = math.prod(tensor.shape[mode] for mode in side)
    return np.moveaxis(tensor, side, range(len(side))).reshape(rows, -1)


def unfolding_bound(tensor: np.ndarray, distance: float, of_modes: list[np.ndarray]) -> int:
    """Lower bound on the number of components within less than `distance` of the tensor.

    The largest rank of an unfolding at that distance, up to rounding, which can only lower it.
    Singular values computed in a backward stable way are those of a matrix nearby, and a distance
    to a fixed set moves no more than the matrix does: a rank is excluded only where the distance
    exceeds the tolerance by that much.

    **Arguments:**

    - `tensor`: of norm one, so that roundings are absolute.
    - `distance`: positive.
    - `of_modes`: singular values of the unfolding of every mode.
    """
    sizes = {side: math.prod(tensor.shape[k] for k in side) for side in bipartitions(tensor.ndim)}
    limits = {side: min(rows, tensor.size // rows) for side, rows in sizes.items()}
    bound = 0
    for side in sorted(limits, key=lambda side: (-limits[side], side)):
        if limits[side] <= bound:
            break
        if len(side) == 1:
            values = of_modes[side[0]]
        else:
            values = np.linalg.svd(unfolding(tensor, side), compute_uv=False)
        slack = _ULP * limits[side] * float(np.finfo(float).eps)
        bound = max(bound, smallest_rank(values, distance + slack))
    return bound
