r"""Matrix ranks at a tolerance: singular-value tails, and the lower bounds they give to tensors.

Merging the modes of a tensor into two groups makes it a matrix, an unfolding. A sum of $r$
rank-one tensors unfolds to a matrix of rank $r$ or less, so that its distance to the tensor is at
least that of the unfolding to the matrices of rank $r$: $\sqrt{\sum_{i > r} \sigma_i^2}$.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from factorflow.reference._patience import Patience

# Up to this order all bipartitions are looked at (127 of them), beyond only a quadratic number.
_LAST_FULL_ORDER = 8
_EPS = float(np.finfo(float).eps)
# Operations of a singular value decomposition, over its number of entries times its smaller side.
_SVD = 20
# Products of matrices err by half of this, for every order of summation, and with room for the
# rounding of what bounds them.
_SAFETY = 2.0 * _EPS


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


def unfolding_bounds(
    tensor: np.ndarray, distance: float, of_modes: list[np.ndarray], patience: Patience
) -> Iterator[int]:
    """Ever better lower bounds on the number of components within less than `distance`.

    The ranks of unfoldings at that distance, each proved by `certain_rank`.

    **Arguments:**

    - `tensor`, `distance`: the distance positive.
    - `of_modes`: singular values of the unfolding of every mode.
    - `patience`: asked before every decomposition.
    """
    sizes = {side: math.prod(tensor.shape[k] for k in side) for side in bipartitions(tensor.ndim)}
    limits = {side: min(rows, tensor.size // rows) for side, rows in sizes.items()}
    bound = 0
    for side in sorted(limits, key=lambda side: (-limits[side], side)):
        if limits[side] <= bound:
            break
        matrix = unfolding(tensor, side)
        if len(side) == 1:
            values = of_modes[side[0]]
        else:
            patience.spend(_SVD * tensor.size * limits[side])
            values = np.linalg.svd(matrix, compute_uv=False)
        # Where these singular values do not exclude more ranks, no proof will.
        if smallest_rank(values, distance) > bound:
            patience.spend(_SVD * tensor.size * limits[side])
            bound = max(bound, certain_rank(matrix, distance))
            yield bound


def certain_rank(matrix: np.ndarray, distance: float) -> int:
    r"""A rank below which no matrix comes nearer than `distance`, whatever rounding does.

    The computed $U \Sigma V^\top$ is no singular value decomposition of the matrix $A$. But its
    own singular values are at least $\sigma_i$ times the smallest of $U$ and of $V$, which differ
    from 1 by less than $\|U^\top U - 1\|_F$ and $\|V^\top V - 1\|_F$, and those of $A$ are as
    near as $A$ is (Mirsky):

    $$\sqrt{\sum_{i > r} \sigma_i(A)^2} \ge s_U s_V \sqrt{\sum_{i > r} \sigma_i^2}
      - \|A - U \Sigma V^\top\|_F$$

    All of these are computed, with bounds on their rounding errors.
    """
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    count = len(values)
    # |fl(A - B C) - (A - B C)| <= (count + 2) u |B| |C|, of Frobenius norm below that of the sum of
    # the outer products of the columns of B and the rows of C.
    missed = float(np.linalg.norm(matrix - (left * values) @ right)) * (1.0 + _SAFETY * matrix.size)
    missed += _SAFETY * (count + 3) * float(np.sum(values))
    shrinks = 1.0
    for vectors in (left.T, right):
        defect = float(np.linalg.norm(vectors @ vectors.T - np.eye(count)))
        defect += _SAFETY * vectors.shape[1] * count
        shrinks *= math.sqrt(max(0.0, 1.0 - defect))
    shrinks *= 1.0 - _SAFETY * (count + 3)
    certain = shrinks * np.sqrt(tails(values)) - missed
    # Never none: at the full rank the distance is zero.
    return int(np.argmax(certain < distance))
