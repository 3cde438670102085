r"""The lowest rank found among the positive semidefinite solutions."""

import numpy as np
import scipy
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from factorflow._problem import AbstractProblem
from factorflow.reference._inputs import require_at_least
from factorflow.reference.solutions.solution_set import SolutionSet, require_solutions

__all__ = ["lowest_semidefinite_rank"]

# The Jacobian of a fit is dense: (measurements) x (rows x rank).
_MOST_ENTRIES = 2**24
# A fit that has not got there by then does not: these are small problems.
_EVALUATIONS = 400


def lowest_semidefinite_rank(
    problem: AbstractProblem,
    *,
    lower: int = 1,
    tolerance: float | None = None,
    starts: int = 8,
    seed: int = 0,
) -> tuple[int, NDArray[np.float64]] | None:
    r"""The lowest rank for which a positive semidefinite solution was found:

    $$\min \{ k : \mathcal{A}(U U^\top) = b, \; U \in \mathbb{R}^{d \times k} \}$$

    Ranks are tried upwards by nonlinear least squares from several starts. What is found is an
    upper bound of the minimal rank among these solutions; what is not found may still exist.

    **Arguments:**

    - `problem`: a `Completion` or `Sensing` of square matrices.
    - `lower`: the lowest rank to try.
    - `tolerance`: the residual relative to $\|b\|$ that counts as zero. By default 1e-8, and 1e-5
        for observations in single precision.
    - `starts`: per rank.
    - `seed`: of the random starts.

    **Returns:** the rank and the solution, or `None` where no rank succeeded.

    **Raises:** `ValueError` for problems that are not square, for observations that no matrix fits
    and for arguments out of range.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.reference import lowest_semidefinite_rank
        >>> diagonal = ff.Completion((3, 3), [[0, 0], [1, 1], [2, 2]], [1.0, 4.0, 9.0])
        >>> lowest_semidefinite_rank(diagonal)[0]
        1

        ```
    """
    solutions = SolutionSet.of(problem)
    rows, columns = solutions.shape
    if rows != columns:
        raise ValueError(f"Semidefinite solutions are square, this problem is {rows}x{columns}.")
    require_solutions(solutions)
    require_at_least("lower", lower, 0, "ranks count from 0")
    if lower > rows:
        raise ValueError(f"lower must be at most {rows}, got {lower}: no rank is higher.")
    require_at_least("starts", starts, 1, "one start or more")
    require_at_least("seed", seed, 0, "pass a seed as numpy.random.default_rng takes it")
    if tolerance is None:
        tolerance = 1e-8 if solutions.epsilon < 1e-10 else 1e-5
    if not 0 < tolerance < 1:
        raise ValueError(
            f"tolerance must lie between 0 and 1, got {tolerance}: it is relative to the norm of "
            "the observations, and no residual is exactly zero; pass 1e-8."
        )
    size = float(np.linalg.norm(solutions.values))
    if size == 0.0:
        return 0, np.zeros(solutions.shape)
    units = np.eye(len(solutions.values))
    measurements = np.stack([solutions.adjoint(unit) for unit in units])
    measurements = (measurements + measurements.swapaxes(1, 2)) / 2
    scale = float(np.sqrt(np.linalg.norm(solutions.project(np.zeros(solutions.shape))) / rows))
    generator = np.random.default_rng(seed)
    with threadpool_limits(1, user_api="blas"):
        for rank in range(max(lower, 1), rows + 1):
            if measurements.shape[0] * rows * rank > _MOST_ENTRIES:
                return None
            for _ in range(starts):
                start = scale * generator.normal(size=(rows, rank))
                product = _fit(measurements, solutions.values, start)
                if solutions.residual(product) <= tolerance * size:
                    return rank, product
    return None


def _fit(
    measurements: NDArray[np.float64], values: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The positive semidefinite matrix that least squares lead to from the start."""

    def residual(flat):
        factor = flat.reshape(start.shape)
        return np.einsum("ipr,pk,rk->i", measurements, factor, factor, optimize=True) - values

    def jacobian(flat):
        factor = flat.reshape(start.shape)
        return 2 * (measurements @ factor).reshape(len(values), -1)

    found = scipy.optimize.least_squares(
        residual,
        start.reshape(-1),
        jacobian,  # pyright: ignore[reportArgumentType]
        method="trf",
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=_EVALUATIONS,
    )
    factor = found.x.reshape(start.shape)
    return factor @ factor.T
