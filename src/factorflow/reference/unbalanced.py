r"""Closed form of an unbalanced gradient flow: two factors, every entry observed.

Where $W_2^\top W_2 - W_1 W_1^\top = \lambda I$, the stacked factors $Q = (W_1^\top; W_2)$ obey a
matrix Riccati equation, and $QQ^\top$ is known at any time.

??? cite "Reference"

    L. Braun, C. Dominé, J. Fitzgerald, A. Saxe. "Exact learning dynamics of deep linear networks
    with prior knowledge." NeurIPS 2022; C. Dominé et al. "From Lazy to Rich: Exact Learning
    Dynamics in Deep Linear Networks." arXiv:2409.14623 (2024).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import ArrayLike, Float

from factorflow.reference._inputs import require_nonnegative

__all__ = ["lambda_balanced_flow"]

# Rounding of factors that were made lambda-balanced leaves a few tens of ulps of their squares.
_BALANCE_ULPS = 1e2


def lambda_balanced_flow(
    factors: tuple[ArrayLike, ArrayLike], target: ArrayLike, times: ArrayLike | Sequence[float]
) -> Float[np.ndarray, "..."]:
    r"""Products of the flow of two lambda-balanced factors, all entries of the target observed.

    With $\ell = \tfrac12 \lVert W_2 W_1 - M \rVert^2$ and

    $$F = \begin{pmatrix} -\tfrac\lambda2 I & M^\top \\ M & \tfrac\lambda2 I \end{pmatrix}:
      \qquad QQ^\top(t) = e^{Ft} Q_0 \Big[ I + Q_0^\top \tfrac{e^{2Ft} - I}{2F} Q_0 \Big]^{-1}
      Q_0^\top e^{Ft}$$

    whose lower left block is the product $W_2 W_1$. Such factors exist for $\lambda > 0$ where the
    hidden width $h$ is at most $m$, for $\lambda < 0$ where it is at most $n$, for $\lambda = 0$
    (balanced) always. Entries are right to some ten roundings of the largest of
    $\lVert Q_0 \rVert^2$, $\lVert F \rVert$ and the product, at any time: nothing overflows.

    **Arguments:**

    - `factors`: $(W_1, W_2)$ at time 0, of shapes `(h, n)` and `(m, h)`; used in double precision.
    - `target`: $M$, shape `(m, n)`.
    - `times`: $t \ge 0$, any shape.

    **Returns:** the products in double precision, with the shape of `times` in front.

    **Raises:** `ValueError` for shapes that do not fit, numbers that are not finite, negative times
    and factors that are not lambda-balanced up to rounding.

    **Example:**

    >>> import numpy as np
    >>> from factorflow.reference import lambda_balanced_flow
    >>> factors = np.array([[1.0]]), np.array([[2.0]])  # lambda = 3
    >>> products = lambda_balanced_flow(factors, np.array([[0.5]]), [0.1, 20.0])
    >>> print(np.round(products.ravel(), 4))
    [1.453 0.5  ]
    """
    first, second = (np.asarray(factor, float) for factor in factors)
    goal, moments = np.asarray(target, float), np.asarray(times, float)
    imbalance = _imbalance(first, second, goal)
    require_nonnegative("times", moments, "the flow starts at time 0")
    for name, values in (("target", goal), ("times", moments)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name} must be finite, got {values}.")

    rows, columns = goal.shape
    flow = np.block(
        [
            [-imbalance / 2 * np.eye(columns), goal.T],
            [goal, imbalance / 2 * np.eye(rows)],
        ]
    )
    rates, modes = np.linalg.eigh(flow)
    start = modes.T @ np.concatenate([first.T, second])
    products = [
        second @ first
        if moment == 0
        else modes[columns:] @ _gram(rates, start, moment) @ modes[:columns].T
        for moment in moments.ravel()
    ]
    return np.reshape(products, (*moments.shape, rows, columns))


def _imbalance(first: np.ndarray, second: np.ndarray, goal: np.ndarray) -> float:
    if first.ndim != 2 or second.shape != (goal.shape[0], first.shape[0]):
        raise ValueError(
            f"factors must have shapes (h, n) and (m, h), and the target (m, n); got {first.shape},"
            f" {second.shape} and {goal.shape}."
        )
    if first.shape[1] != goal.shape[1]:
        raise ValueError(
            f"The first factor has {first.shape[1]} columns, the target {goal.shape[1]}: they must "
            "agree."
        )
    if not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
        raise ValueError("factors hold NaN or infinity; start from finite numbers.")
    difference = second.T @ second - first @ first.T
    imbalance = float(np.trace(difference)) / len(difference)
    miss = np.max(np.abs(difference - imbalance * np.eye(len(difference))))
    scale = np.linalg.norm(first, 2) ** 2 + np.linalg.norm(second, 2) ** 2
    if miss > _BALANCE_ULPS * np.finfo(float).eps * scale:
        raise ValueError(
            "factors must be lambda-balanced, W_2' W_2 - W_1 W_1' = lambda I; these miss it by "
            f"{miss:.3g} at lambda = {imbalance:.3g}. Integrate other factors numerically."
        )
    return imbalance


def _gram(rates: np.ndarray, start: np.ndarray, time: float) -> np.ndarray:
    r"""$QQ^\top$ in the eigenbasis, where the formula is $R K (I + K^\top K)^{-1} K^\top R$.

    $K$ is the start with row $i$ multiplied by $d_i$, $d^2 = (e^{2ft} - 1) / 2f$, and $R$ is
    diagonal with $e^{ft} / d$, which stays bounded. Complete pivoting writes $K = L D U$: what
    grows beyond any number stands in the diagonal $D$ alone, and only its inverse is needed,
    $K (I + K^\top K)^{-1} K^\top = L (D^{-1} (UU^\top)^{-1} D^{-1} + L^\top L)^{-1} L^\top$.
    """
    exponents = 2 * rates * time
    # log d = bounded + the part that grows, and log R = what is left: large numbers never cancel.
    bounded = (np.log(time) + _log_ratio(np.abs(exponents))) / 2
    growth = bounded + np.maximum(exponents, 0) / 2
    lower, upper, pivots = _eliminate(start, growth)
    if not pivots.size:
        return np.zeros((len(rates), len(rates)))
    triangle = np.linalg.qr(upper.T)[1]
    inverse = scipy.linalg.solve_triangular(triangle.T, np.diag(np.exp(-pivots)), lower=True)
    stacked = np.concatenate([lower, inverse])
    # Large rows first: small rows then keep their own relative accuracy.
    order = np.argsort(-np.max(np.abs(stacked), axis=1), kind="stable")
    orthogonal = np.empty_like(stacked)
    decomposed: Any = scipy.linalg.qr(stacked[order], mode="economic", pivoting=True)
    orthogonal[order] = decomposed[0]
    factor = np.exp(np.minimum(exponents, 0) / 2 - bounded)[:, None] * orthogonal[: len(rates)]
    return factor @ factor.T


def _log_ratio(size: np.ndarray) -> np.ndarray:
    r"""$\log((1 - e^{-x}) / x)$ for $x \ge 0$."""
    size = np.maximum(size, np.finfo(float).tiny)
    return np.log(-np.expm1(-size) / size)


def _eliminate(start: np.ndarray, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Factors $L$, $U$ and $\log D$ of $\mathrm{diag}(e^{growth})$ times `start`.

    Pivots are the largest entries that remain, compared by logarithms: no entry of $L$ is above 1.
    """
    rest, rank = start.copy(), 0
    lower = np.zeros((len(start), min(start.shape)))
    upper = np.zeros((min(start.shape), start.shape[1]))
    pivots = np.zeros(min(start.shape))
    with np.errstate(divide="ignore"):
        while rank < len(pivots):
            sizes = np.log(np.abs(rest)) + growth[:, None]
            row, column = np.unravel_index(np.argmax(sizes), sizes.shape)
            if sizes[row, column] == -np.inf:
                break
            multiples = rest[:, column] / rest[row, column]
            scaled = np.exp(sizes[:, column] - sizes[row, column])
            lower[:, rank] = np.sign(multiples) * scaled
            upper[rank], pivots[rank] = rest[row], growth[row]
            rest -= np.outer(multiples, upper[rank])
            rest[row], rest[:, column] = 0, 0
            rank += 1
    return lower[:, :rank], upper[:rank], pivots[:rank]
