"""What a run writes down, inside the trace, for those who judge it afterwards."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics import AbstractDynamics
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._linalg import singular_values
from factorflow._measure import Measure, Snapshot
from factorflow._types import Factors, FloatArray, FloatScalar

__all__ = [
    "EVERY_ENTRY",
    "LARGEST_PRODUCT",
    "Witness",
    "on_a_set",
    "sign_of",
    "witness_of",
    "witness_row",
]

# Products up to this many entries are written down whole.
EVERY_ENTRY = 4096
# Larger ones up to this size as two sketches of 2048 sums with random signs each, see `_sketch`.
_SUMS, _SKETCHES = 2048, 2
# Even larger ones are never made, and entries are drawn.
LARGEST_PRODUCT = 2**24
# Sizes up to which the singular values of factors are watched.
_WATCHED_DIM = 64


class Witness(eqx.Module):
    """The record: `rows` holds an array per name with rows first, `run` a scalar per name.

    `noise`, by measure, is how far rounding moves it: in companions only, and no exact one.
    """

    rows: dict[str, Any]
    run: dict[str, Any]
    noise: dict[str, Any] = eqx.field(default_factory=dict)


def witness_row(
    dynamics: AbstractDynamics,
    snapshot: Snapshot,
    start: Factors,
    state: Any,
    measures: tuple[Measure, ...],
) -> dict[str, jax.Array]:
    """What one row leaves behind."""
    fz = snapshot.factorization
    assert fz is not None
    loss = state.loss
    zero = jnp.zeros((), loss.dtype)
    drift, smallest, size = zero, jnp.full((), jnp.inf, loss.dtype), zero
    if not dynamics.balanced:
        now, before = fz.conserved(snapshot.factors), fz.conserved(start)
        drift = _largest([a - b for a, b in zip(now, before, strict=True)], zero)
        smallest = _smallest_square(fz, snapshot.factors, smallest)
    if any(measure.error == "factors" for measure in measures):
        size = _operator_square(snapshot.factors)
    energy = getattr(state, "energy_defect", jnp.full((), jnp.nan, loss.dtype))
    seen, corner, largest = _seen(snapshot)
    return {
        "seen": seen,
        "on_a_set": on_a_set(fz, seen, start),
        "corner": corner,
        "largest": largest,
        "loss": loss,
        "sign": sign_of(snapshot),
        "drift": drift,
        "smallest": smallest,
        "size": size,
        "energy": jnp.asarray(energy, loss.dtype),
    }


def witness_of(
    fz: AbstractFactorization, start: Factors, end: Factors, initial_sign: FloatScalar, steps: Any
) -> dict[str, jax.Array]:
    """What a whole run leaves behind."""
    zero = jnp.zeros((), initial_sign.dtype)
    now, before = fz.conserved(end), fz.conserved(start)
    return {
        "initial_sign": initial_sign,
        "gap": _largest(before, zero),
        "drift": _largest([a - b for a, b in zip(now, before, strict=True)], zero),
        "initial_scale": _largest_square(start),
        "scale": _largest_square(end),
        "steps": steps,
    }


def sign_of(snapshot: Snapshot) -> jax.Array:
    """Sign of the determinant; 0 where the product is not square."""
    shape = snapshot.problem.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        return jnp.zeros((), snapshot.loss.dtype)
    return snapshot.log_determinant[0]


def _seen(snapshot: Snapshot) -> tuple[FloatArray, FloatScalar, FloatScalar]:
    """What companions are compared on, the first entry, and the size of the largest."""
    shape = snapshot.problem.shape
    count = math.prod(shape)
    if count > LARGEST_PRODUCT:
        seen = snapshot.product.at(jnp.asarray(_places(shape)))
        return seen, seen[0], jnp.max(jnp.abs(seen))
    entries = snapshot.dense.reshape(-1)
    seen = entries if count <= EVERY_ENTRY else _sketch(entries)
    return seen, entries[0], jnp.max(jnp.abs(entries))


def on_a_set(fz: AbstractFactorization, seen: FloatArray, start: Factors) -> jax.Array:
    """Whether a row lies, to the last bit, on a set that a flow from this start cannot leave.

    Entries that are exactly zero, or a product that is exactly symmetric, where the start has them
    in exact arithmetic too: by its own zeros, or by factors that mirror each other. Rounding, had
    it counted, would have left neither. What is not seen whole is on no such set.
    """
    if math.prod(fz.shape) > EVERY_ENTRY:
        return jnp.asarray(False)
    pattern = jax.tree.map(lambda leaf: (leaf != 0).astype(leaf.dtype), start)
    absent = fz.compose(pattern).reshape(-1) == 0
    found = jnp.any((seen == 0) & absent)
    if len(fz.shape) != 2 or fz.shape[0] != fz.shape[1]:
        return found
    chain = fz.matrix_chain(start)
    pairs = [(matrix, other.T) for matrix, other in zip(chain, chain[::-1], strict=True)]
    if any(one.shape != other.shape for one, other in pairs):
        return found
    mirrored = jnp.all(jnp.stack([jnp.all(one == other) for one, other in pairs]))
    entries = seen.reshape(fz.shape)
    return found | (mirrored & jnp.all(entries == entries.T))


def _sketch(entries: FloatArray) -> FloatArray:
    """Sums of all entries with random signs, each entry in one sum of either sketch.

    The squared norm of the sketch of an error has the squared norm of the error as its mean and a
    variance of at most 2/2048 times its square. By Chebyshev's inequality one sketch shows less
    than half of an error's Frobenius norm with a probability below 1.8e-3, both with one below
    3.1e-6, whatever the error is.
    """
    groups = -(-entries.shape[0] // _SUMS)
    padded = jnp.pad(entries, (0, groups * _SUMS - entries.shape[0]))
    sums = []
    for number in range(_SKETCHES):
        draw = np.random.default_rng(number)
        order = draw.permutation(groups * _SUMS)
        signs = jnp.asarray(draw.choice([-1.0, 1.0], size=order.shape), entries.dtype)
        sums.append(jnp.sum((signs * padded[order]).reshape(_SUMS, groups), axis=1))
    return jnp.concatenate(sums)


def _places(shape: tuple[int, ...]) -> np.ndarray:
    """A fixed draw of places in a product too large to be made, the first entry among them."""
    draw = np.random.default_rng(0)
    places = np.stack([draw.integers(size, size=EVERY_ENTRY) for size in shape], -1)
    places[0] = 0
    return places


def _largest(matrices: Any, zero: jax.Array) -> jax.Array:
    leaves = jax.tree.leaves(list(matrices))
    return jnp.max(jnp.stack([zero, *(jnp.max(jnp.abs(leaf)) for leaf in leaves)]))


def _largest_square(factors: Factors) -> jax.Array:
    return jnp.max(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(factors)]))


def _operator_square(factors: Factors) -> jax.Array:
    """In the norm of the gaps that are compared with it: the operator norm, of matrices."""
    squares = [
        singular_values(leaf)[0] ** 2 if leaf.ndim == 2 else jnp.sum(leaf**2)
        for leaf in jax.tree.leaves(factors)
    ]
    return jnp.max(jnp.stack(squares))


def _smallest_square(fz: AbstractFactorization, factors: Factors, unknown: jax.Array) -> jax.Array:
    """The smallest square of a factor's singular values on which the product's rank rests.

    With hidden layers wider than the narrowest layer, further ones belong to directions that the
    product never sees.
    """
    if not isinstance(fz, DeepMatrix) or max(fz.widths) > _WATCHED_DIM:
        return unknown
    last = min(fz.widths) - 1
    return jnp.min(jnp.stack([singular_values(factor)[last] for factor in factors])) ** 2
