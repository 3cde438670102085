"""Singular values and determinants that survive a product's rounding.

The product of deep factors near convergence is numerically singular: its small singular value is
far below the rounding of its entries, while every factor is still well conditioned. Both functions
here therefore work on the chain of factors.
"""

import functools

import jax.numpy as jnp

from factorflow._linalg import qr, singular_values, slogdet
from factorflow._types import FloatArray, FloatScalar

__all__ = ["log_determinant", "log_singular_values", "no_matrix"]


def log_determinant(factors: tuple[FloatArray, ...]) -> tuple[FloatScalar, FloatScalar]:
    """Sign and log of the absolute determinant of `W_L ... W_1`, a square product.

    Square factors contribute their own determinants; other widths are reduced by a chain of QR
    decompositions, so that no product of factors is ever rounded. A hidden width below the
    dimension makes the determinant exactly zero.
    """
    dim = factors[0].shape[1]
    if min(min(factor.shape) for factor in factors) < dim:
        dtype = factors[0].dtype
        return jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype)
    if all(factor.shape == (dim, dim) for factor in factors):
        signs, logs = zip(*(_slogdet(factor) for factor in factors), strict=True)
        return functools.reduce(jnp.multiply, signs), functools.reduce(jnp.add, logs)
    sign = jnp.ones((), factors[0].dtype)
    log = jnp.zeros((), factors[0].dtype)
    basis = jnp.eye(dim, dtype=factors[0].dtype)
    for factor in factors:
        basis, triangle = qr(factor @ basis)
        diagonal = jnp.diagonal(triangle)
        sign = sign * jnp.prod(jnp.sign(diagonal))
        log = log + jnp.sum(jnp.log(jnp.abs(diagonal)))
    return sign * jnp.sign(_slogdet(basis)[0]), log


def log_singular_values(factors: tuple[FloatArray, ...]) -> FloatArray:
    """Logs of the singular values of `W_L ... W_1`, descending, shape `(min(m, n),)`.

    The values come from the dense product, whose rounding hides everything below about
    `eps * sigma_1`. For a square product the last one is then recovered from the determinant of
    the factors, which is where a vanishing singular value matters.
    """
    dense = functools.reduce(lambda product, factor: factor @ product, factors)
    rows, columns = dense.shape
    if rows != columns or rows == 1:
        return jnp.log(singular_values(dense))
    _, log_det = log_determinant(factors)
    if rows == 2:
        log_first = jnp.log(_largest_of_2x2(dense))
        # Equal singular values round either way; the order is a promise.
        return jnp.stack([log_first, _last(log_det - log_first, log_first)])
    logs = jnp.log(singular_values(dense))
    return logs.at[-1].set(_last(log_det - jnp.sum(logs[:-1]), logs[-2]))


def _last(log_value: FloatScalar, log_previous: FloatScalar) -> FloatScalar:
    # NaN stands for (-inf) - (-inf): the rank is already below d - 1, so the value is zero.
    return jnp.where(jnp.isnan(log_value), -jnp.inf, jnp.minimum(log_value, log_previous))


def _slogdet(matrix: FloatArray) -> tuple[FloatScalar, FloatScalar]:
    if matrix.shape == (2, 2):
        # Scaled, because the products of two small entries underflow first.
        largest = jnp.max(jnp.abs(matrix))
        (a, b), (c, d) = matrix / jnp.where(largest > 0, largest, 1)
        value = a * d - b * c
        return jnp.sign(value), jnp.log(jnp.abs(value)) + 2 * jnp.log(largest)
    sign, log = slogdet(matrix)
    return sign, log


def _largest_of_2x2(matrix: FloatArray) -> FloatScalar:
    # sigma_1 = |mean rotation part| + |mean reflection part|: two sums of squares, no cancellation.
    (a, b), (c, d) = matrix
    return (jnp.hypot(a + d, c - b) + jnp.hypot(a - d, b + c)) / 2


def no_matrix(shape: tuple[int, ...]) -> str:
    """Why a tensor has no singular values, and what to ask for instead."""
    return (
        f"The product is a tensor of order {len(shape)}, which has no singular values of its own: "
        "ask for `multilinear_rank` or `unfolding_effective_rank`, which are about its unfoldings."
    )
