"""Singular values and determinants that survive a product's rounding.

The product of deep factors near convergence is numerically singular: its small singular value is
far below the rounding of its entries, while every factor is still well conditioned. Both functions
here therefore work on the chain of factors.
"""

import functools

import jax
import jax.numpy as jnp

from factorflow._linalg import in_range, moving_singular_values, qr, slogdet
from factorflow._linalg import singular_values as values_of
from factorflow._product.rounding import Rounding
from factorflow._types import FloatArray, FloatScalar

__all__ = ["log_determinant", "log_singular_values", "no_matrix", "singular_values"]


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


def log_singular_values(
    factors: tuple[FloatArray, ...], rounding: Rounding | None = None
) -> FloatArray:
    """Logs of the singular values of `W_L ... W_1`, descending, shape `(min(m, n),)`.

    The values come from the dense product, whose rounding hides everything below about
    `eps * sigma_1`. For a square product the last one is then recovered from the determinant of
    the factors, which is where a vanishing singular value matters.
    """
    composed = _dense(factors)
    dense, scale = in_range(composed if rounding is None else rounding.of(composed, 1))
    shift = jnp.log(scale)
    rows, columns = dense.shape
    if rows != columns or rows == 1:
        return jnp.log(values_of(dense)) - shift
    _, log_det = log_determinant(factors)
    if rows == 2:
        turn, flip = _turn_and_flip(dense)
        log_first = jnp.log((turn + flip) / 2) - shift
        # Equal singular values round either way; the order is a promise.
        return jnp.stack([log_first, _last(log_det - log_first, log_first)])
    logs = jnp.log(values_of(dense)) - shift
    return logs.at[-1].set(_last(log_det - jnp.sum(logs[:-1]), logs[-2]))


def singular_values(
    factors: tuple[FloatArray, ...], rounding: Rounding | None = None
) -> FloatArray:
    """`exp(log_singular_values(factors))`, with derivatives also where some are equal or zero.

    See `factorflow._linalg.singular_values` for what the derivatives are.
    """
    values = jnp.exp(log_singular_values(factors, rounding))
    dense = _dense(factors)
    rows, columns = dense.shape
    if rows != columns or rows == 1:
        return with_derivatives_of(values, values_of(dense))
    sign, _ = log_determinant(factors)
    if rows == 2:
        turn, flip = _turn_and_flip(dense)
        smooth = jnp.stack([turn + flip, jax.lax.stop_gradient(sign) * (turn - flip)]) / 2
        return with_derivatives_of(values, smooth)
    return moving_singular_values(values, dense, sign)


@jax.custom_jvp
def with_derivatives_of(values: FloatArray, smooth: FloatArray) -> FloatArray:
    """`values`, of which only the derivatives are taken from the other, less precise ones."""
    return values


@with_derivatives_of.defjvp
def _with_derivatives_of_jvp(primals, tangents):
    return primals[0], tangents[1]


def _dense(factors: tuple[FloatArray, ...]) -> FloatArray:
    return functools.reduce(lambda product, factor: factor @ product, factors)


@jax.custom_jvp
def _at_most(value: FloatScalar, bound: FloatScalar) -> FloatScalar:
    """`value`, which only rounding takes above `bound`: the bound has no derivative here."""
    return jnp.minimum(value, bound)


@_at_most.defjvp
def _at_most_jvp(primals, tangents):
    return _at_most(*primals), tangents[0]


def _last(log_value: FloatScalar, log_previous: FloatScalar) -> FloatScalar:
    # NaN stands for (-inf) - (-inf): the rank is already below d - 1, so the value is zero.
    return jnp.where(jnp.isnan(log_value), -jnp.inf, _at_most(log_value, log_previous))


def _slogdet(matrix: FloatArray) -> tuple[FloatScalar, FloatScalar]:
    matrix, scale = in_range(matrix)
    if matrix.shape == (2, 2):
        # Scaled, because the products of two small entries underflow first. The scale cancels, so
        # that it needs no derivative.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix)))
        (a, b), (c, d) = matrix / jnp.where(largest > 0, largest, 1)
        value = a * d - b * c
        return jnp.sign(value), jnp.log(jnp.abs(value)) + 2 * jnp.log(largest) - 2 * jnp.log(scale)
    sign, log = slogdet(matrix)
    return sign, log - matrix.shape[0] * jnp.log(scale)


def _turn_and_flip(matrix: FloatArray) -> tuple[FloatScalar, FloatScalar]:
    # A 2x2 matrix is a rotation times `turn` plus a reflection times `flip`, whose sum is
    # 2 sigma_1 and whose difference is, up to its sign, 2 sigma_2: no cancellation in the first.
    (a, b), (c, d) = matrix
    return _hypot(a + d, c - b), _hypot(a - d, b + c)


@jax.custom_jvp
def _hypot(x: FloatScalar, y: FloatScalar) -> FloatScalar:
    return jnp.hypot(x, y)


@_hypot.defjvp
def _hypot_jvp(primals, tangents):
    size = _hypot(*primals)
    safe = jnp.where(size > 0, size, 1)
    # 0 at the corner of the cone: equal singular values then move together, by their mean.
    (x, y), (moved_x, moved_y) = primals, tangents
    return size, x / safe * moved_x + y / safe * moved_y


def no_matrix(shape: tuple[int, ...]) -> str:
    """Why a tensor has no singular values, and what to ask for instead."""
    return (
        f"The product is a tensor of order {len(shape)}, which has no singular values of its own: "
        "ask for `multilinear_rank` or `unfolding_effective_rank`, which are about its unfoldings."
    )
