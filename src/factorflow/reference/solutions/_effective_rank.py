r"""The effective rank of a matrix, and descent on it over an affine set of solutions."""

import math
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from factorflow.reference.solutions._rank_fits import Measurements, fit
from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["effective_rank", "lowest_effective_rank", "lowest_given_distance", "rank_one_direction"]

_Array = NDArray[np.float64]
# Smoothing of singular values near zero, relative to the nuclear norm: the entropy has an
# infinite slope there, and every rank would be a trap from the start.
_SMOOTHING = (1e-1, 1e-2, 1e-3, 1e-5, 1e-8)


# Multiples of the least solution's norm at which a line of solutions is looked at.
_STEPS = np.tan(np.linspace(-1.5, 1.5, 61))


def effective_rank(matrix: _Array) -> float:
    """The exponential of the entropy of the normalized singular values; 0 for zero."""
    sizes = np.linalg.svd(matrix, compute_uv=False)
    shares = sizes[sizes > 0] / max(float(np.sum(sizes)), 1e-300)
    return math.exp(-float(np.sum(shares * np.log(shares)))) if shares.size else 0.0


def lowest_given_distance(apart: float) -> float:
    """The lowest effective rank at a distance from rank one of `apart` times the norm or more.

    The tail of the singular values sums up to at least its Euclidean norm. So the largest share
    is at most the one for two singular values, and merging the others lowers the entropy.
    """
    if apart <= 0.0:
        return 1.0
    largest = math.sqrt(max(1.0 - apart**2, 0.0))
    share = max(largest / (largest + apart), 0.5)
    return math.exp(-share * math.log(share) - (1 - share) * math.log1p(-share))


def rank_one_direction(
    solutions: SolutionSet, tolerance: float, starts: int, generator: np.random.Generator
) -> _Array | None:
    """A matrix of rank one and norm one that measures zero relative to `tolerance`, or None."""
    assert solutions.basis is not None
    rows, columns = solutions.shape
    for _ in range(starts):
        # Not zero: its product with a random direction among those that measure zero is one.
        pin = _sideways(solutions, generator.standard_normal(solutions.shape)).ravel()
        pin = pin / np.linalg.norm(pin)
        goal = np.append(np.zeros(len(solutions.basis)), 1.0)
        model = Measurements(np.append(solutions.basis, pin[None], axis=0), goal, (rows, columns))
        path = fit(model, generator.standard_normal((rows, 1)), 1.0, 0.0)
        product = path.product / np.linalg.norm(path.product)
        seen = float(np.linalg.norm(solutions.measure(product)))
        if seen <= tolerance * float(solutions.sizes[0]):
            return product
    return None


def lowest_effective_rank(
    solutions: SolutionSet, starts: int, generator: np.random.Generator
) -> tuple[_Array, bool]:
    """The solution or direction of lowest effective rank that descent finds; which of the two."""
    best: tuple[float, _Array, bool] | None = None
    least = solutions.project(np.zeros(solutions.shape))
    for _ in range(starts):
        away = _sideways(solutions, generator.standard_normal(solutions.shape))
        away *= np.linalg.norm(least) / np.linalg.norm(away)
        line = min((least + step * away for step in _STEPS), key=effective_rank)
        # Smoothing leads out of a shallow valley, and out of a deep but narrow one as well.
        for smoothing in (_SMOOTHING, _SMOOTHING[2:]):
            for runs_away, matrix in ((False, line), (True, away)):
                matrix = _descend(solutions, matrix, smoothing)
                # Back to where rounding has led away from.
                matrix = _sideways(solutions, matrix) if runs_away else solutions.project(matrix)
                value = effective_rank(matrix)
                if best is None or value < best[0]:
                    best = value, matrix, runs_away
    assert best is not None
    return best[1], best[2]


def _sideways(solutions: SolutionSet, matrix: _Array) -> _Array:
    """The part of a matrix that measures zero."""
    return matrix - solutions.spread(solutions.coordinates(matrix))


def _descend(solutions: SolutionSet, matrix: _Array, smoothings: Sequence[float]) -> _Array:
    """Quasi-Newton descent on the entropy, moving only in directions that measure zero."""
    shape = solutions.shape
    for smoothing in smoothings:
        width = smoothing * float(np.sum(np.linalg.svd(matrix, compute_uv=False)))

        def entropy(flat: _Array, width: float = width) -> tuple[float, _Array]:
            left, sizes, right = np.linalg.svd(flat.reshape(shape), full_matrices=False)
            smooth = np.sqrt(sizes**2 + width**2)
            total = float(np.sum(smooth))
            logs = np.log(smooth / total)
            value = -float(np.sum(smooth * logs)) / total
            slopes = -(logs + value) / total * sizes / smooth
            return value, _sideways(solutions, (left * slopes) @ right).ravel()

        # Combinations of gradients: the iterates stay where the start is.
        found = scipy.optimize.minimize(entropy, matrix.ravel(), jac=True, method="L-BFGS-B")
        matrix = found.x.reshape(shape)
    return matrix
