r"""Fractional powers of $W W^\top$ and $W^\top W$, differentiable where singular values meet."""

import functools

import jax
import jax.numpy as jnp

from factorflow._linalg import svd
from factorflow._types import FloatArray, Matrix

__all__ = ["end_to_end_field", "gram_roots", "powers"]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gram_roots(matrix: Matrix, depth: int) -> tuple[Matrix, Matrix]:
    r"""$(W W^\top)^{1/L}$ and $(W^\top W)^{1/L}$ of a square matrix."""
    left, values, right = svd(matrix)
    p = values ** (2 / depth)
    return (left * p) @ left.T, (right.T * p) @ right


@gram_roots.defjvp
def _gram_roots_jvp(depth: int, primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    left, values, right = svd(matrix)
    p = values ** (2 / depth)
    # Divided differences of the root, with no difference in them (Daleckii and Krein):
    # (p_i - p_j) / (p_i^L - p_j^L) = 1 / sum_k p_i^k p_j^(L - 1 - k).
    slopes = 1 / sum(p[:, None] ** k * p[None] ** (depth - 1 - k) for k in range(depth))
    moved = left.T @ tangent @ right.T
    of_left = moved * values[None] + values[:, None] * moved.T
    of_right = moved.T * values[None] + values[:, None] * moved
    roots = (left * p) @ left.T, (right.T * p) @ right
    return roots, (left @ (slopes * of_left) @ left.T, right.T @ (slopes * of_right) @ right)


def powers(root: Matrix, depth: int) -> list[FloatArray]:
    """Powers 0 to `depth - 1`."""
    values = [jnp.eye(root.shape[0], dtype=root.dtype)]
    for _ in range(depth - 1):
        values.append(values[-1] @ root)
    return values


def end_to_end_field(product: Matrix, gradient: Matrix, depth: int) -> Matrix:
    r"""$-\sum_{j=1}^L (W W^\top)^{(L-j)/L} \, G \, (W^\top W)^{(j-1)/L}$ of a square product."""
    outer, inner = gram_roots(product, depth)
    outers, inners = powers(outer, depth), powers(inner, depth)
    return -sum(
        (outers[depth - 1 - j] @ gradient @ inners[j] for j in range(depth)),
        jnp.zeros_like(product),
    )
