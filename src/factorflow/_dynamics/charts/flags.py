r"""Flags of subspaces: the spans of the first columns of an orthogonal matrix, level by level.

A flag near the standard one has a basis $A$ that is unit lower triangular by blocks, and the
entries of $A$ below the blocks are its coordinates. An orthonormal basis of it is $Q$ of $A = Q R$.
"""

import jax
import jax.numpy as jnp
from jax import lax

from factorflow._dynamics.charts.levels import Levels, apart, same
from factorflow._types import FloatArray, Matrix

__all__ = ["flag_of", "flag_velocity", "orthonormal"]


def eliminated(matrix: Matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`(L, U, inverse of L)` of a matrix whose leading minors do not vanish, without exchanges.

    A loop over columns that `vmap` passes through, where LAPACK would treat matrices one by one.
    """
    size = matrix.shape[0]
    identity = jnp.eye(size, dtype=matrix.dtype)

    def column(k, carry):
        lower, upper, inverse = carry
        shares = jnp.where(jnp.arange(size) > k, upper[:, k] / upper[k, k], 0)[:, None]
        return (
            lower + shares * identity[k],
            upper - shares * upper[k],
            inverse - shares * inverse[k],
        )

    return lax.fori_loop(0, size, column, (identity, matrix, identity))


@jax.custom_jvp
def orthonormal(basis: Matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`(Q, R, inverse of R)` with `Q @ R` the basis, of modest condition, and `R` positive."""
    # Cholesky's decomposition of the Gram matrix.
    _, upper, inverse = eliminated(basis.T @ basis)
    sizes = jnp.sqrt(jnp.diagonal(upper))
    inverse = inverse.T / sizes
    return basis @ inverse, jnp.triu(upper / sizes[:, None]), inverse


@orthonormal.defjvp
def _orthonormal_jvp(primals, tangents):
    q, r, inverse = orthonormal(*primals)
    moved = q.T @ tangents[0] @ inverse
    turned = jnp.tril(moved, -1)
    turned = turned - turned.T
    moved = moved - turned
    return (q, r, inverse), (q @ turned, moved @ r, -inverse @ moved)


def flag_velocity(
    turning: Matrix, basis: Matrix, r: Matrix, inverse: Matrix, levels: Levels
) -> tuple[FloatArray, FloatArray]:
    r"""Velocity of the basis whose $Q$ turns so between levels, and how it then turns within them.

    `turning` is the skew matrix $Q^\top \dot Q$ between levels; within them it is not free, since
    $R$ is a triangle.
    """
    below = apart(levels).T
    change = jnp.where(below, inverse @ jnp.where(below, turning, 0) @ r, 0)
    within = jnp.tril(jnp.where(same(levels), r @ change @ inverse, 0), -1)
    return basis @ change, within - within.T


def flag_of(rotation: Matrix, levels: Levels) -> FloatArray:
    """The basis of the flag of an orthogonal matrix that is not far from block diagonal."""
    within = same(levels)
    # Any basis of the same flag will do: this one has blocks close to one.
    lower, _, inverse = eliminated(rotation @ jnp.where(within, rotation, 0).T)
    return lower @ jnp.where(within, inverse, 0)
