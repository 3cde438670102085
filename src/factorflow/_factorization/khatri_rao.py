r"""Sums of outer products: dense, at chosen entries, and the pullbacks of both.

The gradient of a loss with respect to the factors of $\sum_r a_r^1 \otimes \dots \otimes a_r^N$
multiplies unfoldings of the loss's gradient by Khatri-Rao products of the other factors. Written
out, it takes three matrix multiplications together with the loss, and no reduction that XLA would
do number by number: on CPU, half the time of automatic differentiation.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from factorflow._types import FloatArray

__all__ = ["dense", "entries", "khatri_rao", "picked", "pullback"]

# Up to this size of a mode, rows are picked and added by multiplication with a one-hot matrix: on
# CPU a scatter costs as much as multiplications with some tens of numbers.
_ONE_HOT = 32
# Up to this many terms of a sum over an axis are written out.
_WRITTEN_OUT = 16
# Factors stacked by one operation.
_GROUP = 32


def khatri_rao(factors: tuple[FloatArray, ...]) -> FloatArray:
    """Column-wise Kronecker product, shape `(d_1 ... d_n, R)`, the last mode varying fastest."""
    return functools.reduce(
        lambda left, right: (left[:, None, :] * right[None, :, :]).reshape(-1, right.shape[1]),
        factors,
    )


@jax.custom_vjp
def dense(factors: tuple[FloatArray, ...]) -> FloatArray:
    """The whole tensor, shape `(d_1, ..., d_N)`."""
    return _dense(factors)


def _dense(factors: tuple[FloatArray, ...]) -> FloatArray:
    left, right = _halves(factors)
    shape = tuple(factor.shape[0] for factor in factors)
    return (khatri_rao(left) @ khatri_rao(right).T).reshape(shape)


def pullback(factors: tuple[FloatArray, ...], cotangent: FloatArray) -> tuple[FloatArray, ...]:
    """Gradients with respect to the factors, from the gradient with respect to the tensor.

    For each mode the unfolding of `cotangent` times the Khatri-Rao product of the other factors
    (MTTKRP), `(d_k, R)` each: the two halves of the modes are contracted first, and shared.
    """
    left, right = _halves(factors)
    unfolded = cotangent.reshape(math.prod(factor.shape[0] for factor in left), -1)
    # Transposed in memory: XLA would have the multiplication read it the slow way round.
    flipped = lax.optimization_barrier(unfolded.T)
    return (
        *_within(left, unfolded @ khatri_rao(right)),
        *_within(right, flipped @ khatri_rao(left)),
    )


def _halves(factors: tuple[FloatArray, ...]) -> tuple[tuple, tuple]:
    # The larger half first: of three modes, the last alone needs no reduction.
    middle = (len(factors) + 1) // 2
    return factors[:middle], factors[middle:]


def _within(factors: tuple[FloatArray, ...], outer: FloatArray) -> tuple[FloatArray, ...]:
    """Gradients of a group of modes, whose complement is already contracted: `(d_1 ... d_n, R)`."""
    if len(factors) == 1:
        return (outer,)
    left, right = _halves(factors)
    parts = outer.reshape(math.prod(f.shape[0] for f in left), -1, outer.shape[1])
    return (
        *_within(left, _weighted(parts, khatri_rao(right), axis=1)),
        *_within(right, _weighted(parts, khatri_rao(left), axis=0)),
    )


def _weighted(parts: FloatArray, weights: FloatArray, axis: int) -> FloatArray:
    """Sum over one of the first two axes, with a weight for every component."""
    terms = parts * jnp.expand_dims(weights, 1 - axis)
    if parts.shape[axis] > _WRITTEN_OUT:
        return jnp.sum(terms, axis=axis)
    # Half onto half: over an axis that is not the last, XLA would sum number by number.
    odd: list[FloatArray] = []
    while (count := terms.shape[axis]) > 1:
        half = count // 2
        if count % 2:
            odd.append(lax.slice_in_dim(terms, count - 1, count, axis=axis))
        low = lax.slice_in_dim(terms, 0, half, axis=axis)
        terms = low + lax.slice_in_dim(terms, half, 2 * half, axis=axis)
    return jnp.squeeze(functools.reduce(jnp.add, odd, terms), axis)


# Forward mode over this rule works, as Hessians and spectral radii need; on its own it does not.
dense.defvjp(
    lambda factors: (_dense(factors), factors),
    lambda factors, cotangent: (pullback(factors, cotangent),),
)


@jax.custom_vjp
def entries(factors: tuple[FloatArray, ...], indices: jax.Array) -> FloatArray:
    """The entries at `indices` `(n, N)`: the tensor itself is never made."""
    product, _ = _prefixes(_stacked(factors), indices)
    return jnp.sum(product, axis=1)


def _prefixes(stacked: FloatArray, indices: jax.Array) -> tuple[FloatArray, FloatArray]:
    """Products over all modes, `(n, R)`, and before each of them, `(N, n, R)`."""
    ones = jnp.ones((indices.shape[0], stacked.shape[2]), stacked.dtype)
    # Modes one after the other: the compilation of an unrolled loop would grow with the order.
    return lax.scan(
        lambda prefix, mode: (prefix * picked(*mode), prefix), ones, (stacked, indices.T)
    )


def _entries_forward(factors, indices):
    product, prefixes = _prefixes(_stacked(factors), indices)
    return jnp.sum(product, axis=1), (factors, indices, prefixes)


def _entries_backward(saved, cotangent):
    factors, indices, prefixes = saved
    stacked = _stacked(factors)

    def multiply(suffix, mode):
        factor, places, prefix = mode
        gradient = _add_rows(factor.shape[0], places, prefix * suffix)
        # Rows are gathered once more rather than kept: half of the memory.
        return suffix * picked(factor, places), gradient

    weight = jnp.broadcast_to(cotangent[:, None], prefixes.shape[1:])
    _, gradients = lax.scan(multiply, weight, (stacked, indices.T, prefixes), reverse=True)
    sizes = [factor.shape[0] for factor in factors]
    return tuple(g[:size] for g, size in zip(gradients, sizes, strict=True)), None


entries.defvjp(_entries_forward, _entries_backward)


def _stacked(factors: tuple[FloatArray, ...]) -> FloatArray:
    """All factors in one array `(N, d, R)`, shorter modes padded with zeros."""
    longest = max(factor.shape[0] for factor in factors)
    if min(factor.shape[0] for factor in factors) < longest:
        pads = [((0, longest - factor.shape[0]), (0, 0)) for factor in factors]
        factors = tuple(jnp.pad(f, pad) for f, pad in zip(factors, pads, strict=True))
    # In groups kept apart: compiling one concatenation takes a time quadratic in its operands.
    groups = [jnp.stack(factors[k : k + _GROUP]) for k in range(0, len(factors), _GROUP)]
    return jnp.concatenate(lax.optimization_barrier(groups)) if len(groups) > 1 else groups[0]


def picked(factor: FloatArray, places: jax.Array) -> FloatArray:
    """`factor[places]`, in the way whose gradient is cheap."""
    if factor.shape[0] > _ONE_HOT:
        return factor[places]
    return jax.nn.one_hot(places, factor.shape[0], dtype=factor.dtype) @ factor


def _add_rows(size: int, places: jax.Array, rows: FloatArray) -> FloatArray:
    if size > _ONE_HOT:
        return jnp.zeros((size, rows.shape[1]), rows.dtype).at[places].add(rows)
    return jax.nn.one_hot(places, size, dtype=rows.dtype, axis=0) @ rows
