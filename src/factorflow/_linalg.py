"""Dense linear algebra that is safe in batches on CPU.

`jaxlib`'s LAPACK kernels hand the matrices of a batch to the thread pool that they run on, and wait
for it: two batches at once on two cores wait for each other for ever. Here `vmap` becomes a loop
over single matrices, which those kernels treat one by one; it is as fast.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from factorflow._types import BoolScalar, FloatArray, FloatScalar, Matrix, Vector

__all__ = [
    "qr",
    "singular_values",
    "slogdet",
    "solve",
    "solve_smooth",
    "svd",
    "symmetric_eigenvalues",
]


@sequential_vmap
def svd(matrix: Matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Full singular value decomposition `(left, values, right)`, `left @ diag(values) @ right`."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=True)
    return left, values, right


@sequential_vmap
def _singular_values(matrix: Matrix) -> FloatArray:
    return jnp.linalg.svd(matrix, compute_uv=False)


@jax.custom_jvp
def singular_values(matrix: Matrix) -> FloatArray:
    """Singular values, descending; differentiable where they are distinct."""
    return _singular_values(matrix)


@singular_values.defjvp
def _singular_values_jvp(primals, tangents):
    left, values, right = svd(primals[0])
    count = values.shape[0]
    moved = left[:, :count].T @ tangents[0] @ right[:count].T
    return values, jnp.diagonal(moved)


@sequential_vmap
def qr(matrix: Matrix) -> tuple[FloatArray, FloatArray]:
    """Orthonormal basis and triangle."""
    basis, triangle = jnp.linalg.qr(matrix)
    return basis, triangle


@sequential_vmap
def slogdet(matrix: Matrix) -> tuple[FloatScalar, FloatScalar]:
    """Sign and logarithm of the absolute determinant."""
    sign, log = jnp.linalg.slogdet(matrix)
    return sign, log


@sequential_vmap
def symmetric_eigenvalues(matrix: Matrix) -> FloatArray:
    """Eigenvalues of a symmetric matrix, ascending."""
    return jnp.linalg.eigvalsh(matrix)


@sequential_vmap
def solve(matrix: Matrix, right_hand_side: Vector, wanted: BoolScalar) -> Vector:
    """The solution of a linear system, or zero where it is not wanted; not differentiable.

    In a batch only the systems whose solutions are wanted cost anything.
    """
    return lax.cond(
        wanted, jnp.linalg.solve, lambda _, side: jnp.zeros_like(side), matrix, right_hand_side
    )


@sequential_vmap
def _inverse(matrix: Matrix) -> Matrix:
    return jnp.linalg.inv(matrix)


@jax.custom_jvp
def solve_smooth(matrix: Matrix, right_hand_side: Vector) -> Vector:
    """The solution of a small well-conditioned system, with cheap derivatives in any direction."""
    return _inverse(matrix) @ right_hand_side


@solve_smooth.defjvp
def _solve_smooth_jvp(primals, tangents):
    matrix, right_hand_side = primals
    moved_matrix, moved_side = tangents
    # One factorization for all directions: `vmap` over tangents sees products only.
    inverse = _inverse(matrix)
    solution = inverse @ right_hand_side
    return solution, inverse @ (moved_side - moved_matrix @ solution)
