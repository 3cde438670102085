"""Lower bounds on the norm over a solution set, and what a convex solver hands back."""

import math
from dataclasses import dataclass

import numpy as np

from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["Found", "dual_bound", "norm_of", "schatten"]


@dataclass(frozen=True, eq=False)
class Found:
    """A feasible matrix, its norm, and a lower bound on every feasible one's.

    `value` may lie below `lower` where the matrix is feasible only nearly.
    """

    product: np.ndarray
    value: float
    lower: float
    iterations: int

    def within(self, accuracy: float) -> bool:
        """Whether the bounds meet."""
        return bool(abs(self.value - self.lower) <= accuracy * self.value)


def schatten(values: np.ndarray, p: float) -> float:
    """The l_p (quasi-)norm of nonnegative values."""
    largest = float(np.max(values, initial=0.0))
    if largest == 0 or math.isinf(p):
        return largest
    return largest * float(np.sum((values / largest) ** p)) ** (1 / p)


def norm_of(matrix: np.ndarray, p: float) -> float:
    """The Schatten-p (quasi-)norm."""
    return schatten(np.linalg.svd(matrix, compute_uv=False), p)


def dual_bound(
    solutions: SolutionSet, dual: np.ndarray, p: float, tolerance: float, semidefinite: bool
) -> float:
    r"""A lower bound on the norm over the solutions, from any matrix as the dual.

    Its part $S = \mathcal{A}^*(y)$ that combines measurements is divided by its dual norm, and by
    that of its positive part where the solutions are positive semidefinite:

    $$\|W\| \ge \frac{\langle b, y \rangle - \tau \|y\|_2}{\|S\|_*} \quad \text{where}
    \quad \|\mathcal{A}(W) - b\|_2 \le \tau.$$
    """
    coordinates = solutions.coordinates(dual)
    combined = solutions.spread(coordinates)
    conjugate = math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)
    if semidefinite:
        size = schatten(np.maximum(np.linalg.eigvalsh((combined + combined.T) / 2), 0), conjugate)
    else:
        size = norm_of(combined, conjugate)
    # Less what rounding may have added.
    eps = np.finfo(float).eps
    gain = float(coordinates @ solutions.goal)
    gain -= solutions.room(tolerance) * float(np.linalg.norm(coordinates / solutions.sizes))
    gain -= 4 * eps * float(np.linalg.norm(coordinates) * np.linalg.norm(solutions.goal))
    if gain <= 0:
        return 0.0
    size = size * (1 + 4 * eps * max(solutions.shape)) + eps * float(np.linalg.norm(combined))
    return gain / size
