"""Minimum norms: seconds to a certificate, beside cvxpy's own solve of the same problem."""

import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
from timing import Row

import factorflow as ff
from factorflow.reference.solutions.norms import MinimumNorm, minimum_norm


def measure() -> list[Row]:
    """Seconds of a second call: the first one compiles."""
    small = ff.random_low_rank_problem(jax.random.key(0), (100, 100), 5, 2000)
    large = ff.random_low_rank_problem(jax.random.key(0), (500, 500), 5, 50_000)
    rows = _certified("100x100, 2000 observed", small, accuracy=1e-7)
    rows += _against_cvxpy(small)
    rows += _certified("500x500, 50,000 observed", large, accuracy=1e-7, target="< 120")
    rows += _norm("spectral_norm", small) + _norm("schatten_norm[3]", small)
    return rows + _norm("schatten_norm[0.5]", small, starts=2)


def _certified(name: str, problem: ff.Completion, accuracy: float, target: str = "") -> list[Row]:
    first, _ = _timed(lambda: minimum_norm(problem, accuracy=accuracy))
    seconds, least = _timed(lambda: minimum_norm(problem, accuracy=accuracy))
    return [
        Row(f"nuclear norm, {name}: s", f"{seconds:.2f}", target),
        Row("  with compilation: s", f"{first:.2f}", target),
        Row("  relative gap to the dual bound", f"{_gap(least):.1e}", f"< {accuracy:.0e}"),
        Row("  iterations", f"{least.iterations}"),
    ]


def _norm(norm: str, problem: ff.Completion, **options) -> list[Row]:
    _timed(lambda: minimum_norm(problem, norm, max_iterations=1, starts=1))
    seconds, least = _timed(lambda: minimum_norm(problem, norm, **options))
    state = "certified" if least.certified else "upper bound"
    return [Row(f"{norm}, 100x100, 2000 observed: s", f"{seconds:.2f} ({state})")]


def _against_cvxpy(problem: ff.Completion) -> list[Row]:
    """At ten times the accuracy that cvxpy's default solver reaches, in the same minute."""
    try:
        import cvxpy
    except ImportError:
        return []
    matrix = cvxpy.Variable(problem.shape)
    indices, values = np.asarray(problem.indices), np.asarray(problem.values, np.float64)
    fits = matrix[indices[:, 0], indices[:, 1]] == values
    program = cvxpy.Problem(cvxpy.Minimize(cvxpy.normNuc(matrix)), [fits])

    def solve() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.solve(solver="SCS")
        # As a solution: the observations in their places.
        product = np.array(matrix.value, np.float64)
        product[tuple(indices.T)] = values
        return float(np.linalg.svd(product, compute_uv=False).sum())

    minimum = minimum_norm(problem, accuracy=1e-11)
    theirs, value = _timed(solve)
    error = abs(value - minimum.value) / minimum.value
    ours, least = _timed(lambda: minimum_norm(problem, accuracy=max(error / 10, 1e-9)))
    ours_error = abs(least.value - minimum.value) / minimum.value
    return [
        Row("  cvxpy (SCS): s", f"{theirs:.2f}"),
        Row("  cvxpy: relative error of the norm", f"{error:.1e}"),
        Row("  ours, asked for a tenth of that", f"{ours_error:.1e}", f"< {error / 10:.0e}"),
        Row("  cvxpy's time over ours", f"{theirs / ours:.1f}", "> 1"),
    ]


def _gap(least: MinimumNorm) -> float:
    return (least.value - least.lower) / least.value


def _timed(function: Callable):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result
