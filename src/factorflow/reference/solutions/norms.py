r"""The solution of a completion or sensing problem that has the smallest norm, with a certificate.

A problem that training leaves underdetermined has a solution of smallest norm for every norm:
what training finds can be held against it. A norm without a certificate proves little, so the
answer carries a lower bound that holds whatever the solver did.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

# Loads the linear algebra that JAX calls, so that its threads are limited with NumPy's.
import scipy.linalg  # noqa: F401
from threadpoolctl import threadpool_limits

from factorflow._names import named
from factorflow._problem import AbstractProblem
from factorflow.reference._inputs import require_at_least
from factorflow.reference.solutions._certified import dual_bound
from factorflow.reference.solutions._cvxpy import by_cvxpy
from factorflow.reference.solutions._first_order import by_splitting
from factorflow.reference.solutions._schatten import smallest_quasi_norm
from factorflow.reference.solutions.solution_set import SolutionSet, require_solutions

__all__ = ["MinimumNorm", "minimum_norm", "norm_exponent"]

_NORMS = ("frobenius_norm", "nuclear_norm", "schatten_norm[p]", "spectral_norm")
_EXPONENTS = {"frobenius_norm": 2.0, "nuclear_norm": 1.0, "spectral_norm": math.inf}
_METHODS = ("cvxpy", "first_order")
# Below, the certificate drowns in rounding.
_FINEST = 1e-12


@dataclass(frozen=True, eq=False)
class MinimumNorm:
    r"""A solution of small norm, and what is known about the smallest.

    **Attributes:**

    - `norm`: which norm, by name.
    - `value`: the norm of `product`.
    - `lower`: no solution has a smaller norm, by a dual certificate evaluated in double precision.
    - `product`: the solution, shape `(rows, columns)`, in double precision.
    - `residual`: $\|\mathcal{A}(W) - b\|_2$ of `product`.
    - `certified`: whether `lower` and `value` meet to the accuracy asked for.
    - `method`: `"least_norm"` (closed form), `"first_order"`, `"cvxpy"`, or `"reweighted"`, whose
        value is an upper bound of the minimum.
    - `iterations`: of that method; 0 where it counts none.
    """

    norm: str
    value: float
    lower: float
    product: np.ndarray
    residual: float
    certified: bool
    method: str
    iterations: int


def minimum_norm(
    problem: AbstractProblem | SolutionSet,
    norm: str = "nuclear_norm",
    *,
    tolerance: float | int = 0.0,
    semidefinite: bool = False,
    method: str | None = None,
    accuracy: float = 1e-7,
    starts: int = 4,
    seed: int = 0,
    max_iterations: int = 10_000,
) -> MinimumNorm:
    r"""The solution of smallest norm,

    $$\min_W \|W\| \quad \text{subject to} \quad \|\mathcal{A}(W) - b\|_2 \le \tau.$$

    **Norms** ($p \ge 1$). Frobenius is in closed form. The others are solved by Douglas-Rachford
    splitting, extrapolated, until a dual certificate meets `accuracy`: for every $y$,

    $$\|W\| \ge \big( \langle b, y \rangle - \tau \|y\|_2 \big) / \|\mathcal{A}^*(y)\|_*$$

    with the dual norm below. The right-hand side is `lower`, for the best $y$ seen.

    **Quasi-norms** ($p < 1$) are not convex, and minimizing them is hard. `value` is reported as an
    upper bound of the minimum: the best local minimum of iteratively reweighted least squares from
    several starts. `lower` is the one of the nuclear norm, which no quasi-norm falls below. The
    two meet only where a solution of minimum nuclear norm has rank one.

    **Positive semidefinite solutions.** With `semidefinite` the minimum is over symmetric positive
    semidefinite matrices. `product` is one exactly, and fits the observations up to the
    `residual` reported; its norm may lie below the minimum by what that allows.

    **Arguments:**

    - `problem`: a `Completion` or `Sensing` of matrices, or its `SolutionSet`.
    - `norm`: `"nuclear_norm"`, `"frobenius_norm"`, `"spectral_norm"`, or `"schatten_norm[p]"` with
        any $p > 0$.
    - `tolerance`: $\tau$, the residual allowed.
    - `semidefinite`: see above; square problems, $p \ge 1$.
    - `method`: `"first_order"`, `"cvxpy"` (for small problems, $p$ = 1, 2 or infinity; needs the
        extra `convex`), or `None` to choose; it never chooses cvxpy.
    - `accuracy`: the relative gap between `value` and `lower` that counts as certified.
    - `starts`: of the reweighted method, see above.
    - `seed`: of its random starts.
    - `max_iterations`: of the first-order method; when they run out `certified` is false.

    **Returns:** `MinimumNorm`.

    **Raises:** `ValueError` for observations that contradict each other (naming the residual) or
    that no positive semidefinite matrix fits, tensors, an unknown norm or method, a `p` that is
    not positive, a negative `tolerance`, and an `accuracy` that double precision does not resolve;
    `ImportError` where cvxpy is asked for and missing.

    !!! example

        On the problem on which training drives every norm to infinity, each has its minimum at
        $w_{11} = 0$:

        ```python
        >>> import factorflow as ff
        >>> from factorflow.reference import minimum_norm
        >>> least = minimum_norm(ff.razin_cohen_problem(), "nuclear_norm")
        >>> round(least.value, 6), round(least.lower, 6), least.certified
        (2.0, 2.0, True)
        >>> abs(least.product.round(6)).tolist()
        [[0.0, 1.0], [1.0, 0.0]]

        ```

    ??? cite "Reference"

        The splitting is due to Lions and Mercier, reweighting to Mohan and Fazel:

        ```bibtex
        @article{lions1979splitting,
            author = {Lions, Pierre-Louis and Mercier, Bertrand},
            title = {Splitting Algorithms for the Sum of Two Nonlinear Operators},
            journal = {SIAM Journal on Numerical Analysis},
            year = {1979},
        }
        @article{mohan2012iterative,
            author = {Mohan, Karthik and Fazel, Maryam},
            title = {Iterative Reweighted Algorithms for Matrix Rank Minimization},
            journal = {Journal of Machine Learning Research},
            year = {2012},
        }
        ```
    """
    p = norm_exponent(norm)
    if method is not None:
        named("method", method, _METHODS)
    _check_numbers(p, semidefinite, method, accuracy)
    starts = require_at_least("starts", starts, 1, "the reweighted method needs one")
    seed = require_at_least("seed", seed, 0, "pass a seed as numpy.random.default_rng takes it")
    max_iterations = require_at_least(
        "max_iterations", max_iterations, 1, "the first-order method needs one"
    )
    solutions = problem if isinstance(problem, SolutionSet) else SolutionSet.of(problem)
    require_solutions(solutions, tolerance)
    # The matrices are small: where others compete for the cores, threads wait for each other for
    # ten times as long as the work takes.
    with threadpool_limits(1, user_api="blas"):
        return _solved(
            solutions,
            p,
            norm=norm,
            tolerance=float(tolerance),
            semidefinite=semidefinite,
            method=method,
            accuracy=float(accuracy),
            starts=starts,
            seed=seed,
            max_iterations=max_iterations,
        )


def _solved(
    solutions: SolutionSet,
    p: float,
    *,
    norm: str,
    tolerance: float,
    semidefinite: bool,
    method: str | None,
    accuracy: float,
    starts: int,
    seed: int,
    max_iterations: int,
) -> MinimumNorm:
    seen = _as_symmetric(solutions, tolerance) if semidefinite else solutions
    start = seen.project(np.zeros(seen.shape), tolerance)

    def finish(product, value, lower, how, iterations, exact=True) -> MinimumNorm:
        # Also from above: what fits only nearly may have too small a norm.
        met = bool(exact and abs(value - lower) <= accuracy * value)
        lower, residual = float(min(lower, value)), solutions.residual(product)
        return MinimumNorm(norm, float(value), lower, product, residual, met, how, int(iterations))

    if not np.any(start):
        return finish(start, 0.0, 0.0, "least_norm", 0)
    if p == 2 and not semidefinite and method is None:
        value = float(np.linalg.norm(start))
        # The least-squares solution is its own dual.
        lower = dual_bound(seen, start, 2.0, tolerance, False)
        return finish(start, value, lower, "least_norm", 0)
    convex = p if p >= 1 else 1.0
    if method == "cvxpy":
        found = by_cvxpy(seen, convex, tolerance, semidefinite)
    else:
        found = by_splitting(seen, convex, tolerance, semidefinite, accuracy, max_iterations)
    if p < 1:
        product, value, taken = smallest_quasi_norm(seen, p, tolerance, found.product, starts, seed)
        return finish(product, value, found.lower, "reweighted", taken)
    # A matrix of the cone fits only nearly: count as exact what the accuracy allows.
    excess = solutions.residual(found.product) - tolerance - solutions.slack
    fits = excess <= accuracy * float(np.linalg.norm(solutions.values))
    return finish(
        found.product, found.value, found.lower, method or "first_order", found.iterations, fits
    )


def norm_exponent(norm: str) -> float:
    """The p of a norm's name."""
    if norm in _EXPONENTS:
        return _EXPONENTS[norm]
    parsed = re.fullmatch(r"schatten_norm\[(.+)\]", str(norm))
    try:
        p = float(parsed[1]) if parsed else math.nan
    except ValueError:
        p = math.nan
    if math.isnan(p):
        named("norm", norm, _NORMS)
        raise ValueError(f"p is a placeholder in {norm!r}: write a number, as schatten_norm[0.5].")
    if p <= 0:
        raise ValueError(f"p must be positive, got {norm}: only p > 0 gives a norm or quasi-norm.")
    return p


def _check_numbers(p: float, semidefinite: bool, method: str | None, accuracy: float) -> None:
    if not _FINEST <= accuracy < 1:
        raise ValueError(
            f"accuracy must be at least {_FINEST} and below 1, got {accuracy}: pass for example "
            "1e-7."
        )
    if p < 1 and semidefinite:
        raise ValueError(
            f"semidefinite=True is for p >= 1, got p={p}: leave it out, or take the nuclear norm."
        )
    if p < 1 and method is not None:
        raise ValueError(
            f"method={method!r} is for p >= 1, got p={p}: leave it out for the reweighted method."
        )


def _as_symmetric(solutions: SolutionSet, tolerance: float | int) -> SolutionSet:
    rows, columns = solutions.shape
    if rows != columns:
        raise ValueError(
            f"semidefinite=True needs a square problem, got shape {solutions.shape}: leave it out."
        )
    symmetric = solutions.symmetric()
    if symmetric.inconsistency > tolerance + symmetric.slack:
        raise ValueError(
            "No symmetric matrix fits the observations: the smallest residual of one is "
            f"{symmetric.inconsistency:.6g}. Pass semidefinite=False or a larger tolerance."
        )
    return symmetric
