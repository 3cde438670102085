"""Minimum norms over a solution set by cvxpy, with a certificate from its multipliers."""

import math
import warnings

import numpy as np

from factorflow.reference.solutions._certified import Found, dual_bound, norm_of
from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["by_cvxpy"]

_SMALL = 50


def by_cvxpy(solutions: SolutionSet, p: float, tolerance: float, semidefinite: bool) -> Found:
    """The bounds by cvxpy, for p = 1, 2 and infinity; see `by_splitting`."""
    try:
        import cvxpy
    except ImportError as error:
        raise ImportError(
            'method="cvxpy" needs cvxpy: pip install "factorflow[convex]", or leave method out.'
        ) from error
    norms = {1.0: cvxpy.normNuc, 2.0: lambda matrix: cvxpy.norm(matrix, "fro")}
    norms[math.inf] = cvxpy.sigma_max
    if p not in norms:
        raise ValueError(f'method="cvxpy" knows p = 1, 2 and inf, got p={p}: leave method out.')
    start = solutions.project(np.zeros(solutions.shape), tolerance)
    scale = float(np.linalg.norm(start, 2))
    goal, room = solutions.goal / scale, solutions.room(tolerance) / scale
    rows = solutions.basis
    matrix = cvxpy.Variable(solutions.shape, PSD=True) if semidefinite else None
    matrix = cvxpy.Variable(solutions.shape) if matrix is None else matrix
    flat = cvxpy.vec(matrix, order="C")
    gap = (flat[solutions.places] if rows is None else rows @ flat) - goal
    sizes = solutions.sizes
    fits = gap == 0 if room == 0 else cvxpy.norm(cvxpy.multiply(sizes, gap), 2) <= room
    problem = cvxpy.Problem(cvxpy.Minimize(norms[p](matrix)), [fits])
    with warnings.catch_warnings():
        # The certificate says what a solver's warning about its accuracy would.
        warnings.simplefilter("ignore")
        # Interior points are accurate but take long on large matrices, where cvxpy chooses.
        small = sum(solutions.shape) <= _SMALL and "CLARABEL" in cvxpy.installed_solvers()
        problem.solve(solver="CLARABEL" if small else None)
    if matrix.value is None:
        raise ValueError(f"cvxpy found no solution: its solver says {problem.status!r}.")
    product = scale * np.asarray(matrix.value, np.float64)
    if not semidefinite:
        product = solutions.project(product, tolerance)
    lower = 0.0
    if room == 0:
        dual = solutions.spread(np.asarray(fits.dual_value, np.float64))
        lower = max(
            dual_bound(solutions, sign * dual, p, tolerance, semidefinite) for sign in (1, -1)
        )
    else:
        # The residual points along the multipliers.
        seen = solutions.coordinates(product) - solutions.goal
        dual = solutions.spread(-(sizes**2) * seen)
        lower = dual_bound(solutions, dual, p, tolerance, semidefinite)
    value = norm_of(product, p)
    return Found(product, value, lower if semidefinite else min(lower, value), 0)
