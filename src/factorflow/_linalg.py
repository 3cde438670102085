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
    "constant_svd",
    "in_range",
    "inverse",
    "moving_singular_values",
    "qr",
    "singular_values",
    "slogdet",
    "solve",
    "solve_smooth",
    "svd",
    "symmetric_eigenvalues",
    "with_slopes",
]


@sequential_vmap
def svd(matrix: Matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Full singular value decomposition `(left, values, right)`, `left @ diag(values) @ right`."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=True)
    return left, values, right


@jax.custom_jvp
def constant_svd(matrix: Matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`svd` that refuses to be differentiated, in words."""
    return svd(matrix)


@constant_svd.defjvp
def _constant_svd_jvp(primals, tangents):
    raise ValueError(
        "Singular vectors are not differentiated: they turn without bound where singular values "
        "meet. Functions of the singular values have first derivatives, for matrices of more than "
        "2x2 no second ones."
    )


@sequential_vmap
def _singular_values(matrix: Matrix) -> FloatArray:
    return jnp.linalg.svd(matrix, compute_uv=False)


@jax.custom_jvp
def singular_values(matrix: Matrix) -> FloatArray:
    """Singular values, descending.

    The derivative of the i-th is that along its singular vectors, and 0 for a value of zero. Sums
    over equal values are then right whichever vectors were found, so that symmetric functions have
    their derivatives; a single value that others equal has none, and gets an element of Clarke's
    generalized gradient (of convex functions: a subgradient).
    """
    return _singular_values(matrix)


@singular_values.defjvp
def _singular_values_jvp(primals, tangents):
    left, values, right = constant_svd(primals[0])
    return values, jnp.sign(values) * _along(left, right, tangents[0])


@jax.custom_jvp
def moving_singular_values(values: Vector, matrix: Matrix, sign: FloatScalar) -> Vector:
    """`values`, the singular values of a square `matrix`, with the derivatives of `matrix`.

    `sign` is that of the determinant, from where it is known better than from rounded entries: the
    smallest value falls where the matrix moves along its vectors and they have the wrong sign.
    """
    return values


@moving_singular_values.defjvp
def _moving_singular_values_jvp(primals, tangents):
    values, matrix, sign = primals
    left, _, right = constant_svd(matrix)
    found = jnp.sign(slogdet(left)[0] * slogdet(right)[0])
    signs = jnp.sign(values).at[-1].multiply(jnp.where(sign == 0, 0, sign * found))
    return values, signs * _along(left, right, tangents[1])


def _along(left: FloatArray, right: FloatArray, moved: FloatArray) -> FloatArray:
    """How much a matrix moves along each pair of its singular vectors."""
    count = min(moved.shape)
    return jnp.diagonal(left[:, :count].T @ moved @ right[:count].T)


@jax.custom_jvp
def with_slopes(value: FloatScalar, slopes: Vector, variables: Vector) -> FloatScalar:
    """`value`, computed as precisely as can be, with known derivatives in `variables`."""
    return value


@with_slopes.defjvp
def _with_slopes_jvp(primals, tangents):
    value, slopes, _ = primals
    return value, jnp.sum(slopes * tangents[2])


def in_range(array: FloatArray) -> tuple[FloatArray, FloatScalar]:
    """An array whose squares and sums neither overflow nor underflow, and by what it was scaled.

    Almost always 1; else a power of two, so that no digit changes.
    """
    limits = jnp.finfo(array.dtype)
    largest = lax.stop_gradient(jnp.max(jnp.abs(array)))
    # Half of the exponents on either side; reciprocals near either end would be flushed to zero.
    half = limits.maxexp // 2
    shrink, grow = (jnp.asarray(2.0**e, array.dtype) for e in (-half, half))
    scale = jnp.where(largest > grow, shrink, jnp.where(largest < shrink, grow, 1))
    return array * scale, scale


@sequential_vmap
def _qr(matrix: Matrix) -> tuple[FloatArray, FloatArray]:
    basis, triangle = jnp.linalg.qr(matrix)
    return basis, triangle


@jax.custom_jvp
def qr(matrix: Matrix) -> tuple[FloatArray, FloatArray]:
    """Orthonormal basis and triangle of a matrix with no more columns than rows."""
    return _qr(matrix)


@qr.defjvp
def _qr_jvp(primals, tangents):
    basis, triangle = qr(primals[0])
    relative = tangents[0] @ inverse(triangle)
    inside = basis.T @ relative
    below = jnp.tril(inside, -1)
    turned = below - below.T
    return (basis, triangle), (relative + basis @ (turned - inside), (inside - turned) @ triangle)


@sequential_vmap
def _slogdet(matrix: Matrix) -> tuple[FloatScalar, FloatScalar]:
    sign, log = jnp.linalg.slogdet(matrix)
    return sign, log


@jax.custom_jvp
def slogdet(matrix: Matrix) -> tuple[FloatScalar, FloatScalar]:
    """Sign and logarithm of the absolute determinant."""
    return _slogdet(matrix)


@slogdet.defjvp
def _slogdet_jvp(primals, tangents):
    sign, log = slogdet(primals[0])
    relative = jnp.sum(inverse(primals[0]).T * tangents[0])
    return (sign, log), (jnp.zeros_like(sign), relative)


@sequential_vmap
def _symmetric_eigenvalues(matrix: Matrix) -> FloatArray:
    return jnp.linalg.eigvalsh(matrix)


@sequential_vmap
def _symmetric_eigenvectors(matrix: Matrix) -> FloatArray:
    return jnp.linalg.eigh(matrix)[1]


@jax.custom_jvp
def symmetric_eigenvalues(matrix: Matrix) -> FloatArray:
    """Eigenvalues of a symmetric matrix, ascending; derivatives as of `singular_values`."""
    return _symmetric_eigenvalues(matrix)


@symmetric_eigenvalues.defjvp
def _symmetric_eigenvalues_jvp(primals, tangents):
    vectors = _symmetric_eigenvectors(primals[0])
    moved = (tangents[0] + tangents[0].T) / 2
    return symmetric_eigenvalues(primals[0]), jnp.diagonal(vectors.T @ moved @ vectors)


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
def inverse(matrix: Matrix) -> Matrix:
    """The inverse; infinite or NaN where there is none."""
    return _inverse(matrix)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    inverted = inverse(primals[0])
    return inverted, -inverted @ tangents[0] @ inverted


@jax.custom_jvp
def solve_smooth(matrix: Matrix, right_hand_side: Vector) -> Vector:
    """The solution of a small well-conditioned system, with cheap derivatives in any direction."""
    return _inverse(matrix) @ right_hand_side


@solve_smooth.defjvp
def _solve_smooth_jvp(primals, tangents):
    matrix, right_hand_side = primals
    moved_matrix, moved_side = tangents
    # One factorization for all directions: `vmap` over tangents sees products only.
    inverted = _inverse(matrix)
    solution = inverted @ right_hand_side
    return solution, inverted @ (moved_side - moved_matrix @ solution)
