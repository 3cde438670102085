"""What is seen of a state, and measured at a row."""

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._dynamics import AbstractState
from factorflow._measure import Snapshot
from factorflow._product import AbstractProduct
from factorflow._spec import RunSpec

__all__ = ["measured", "view"]

# How often counts and signs are read off a product that is rounded anew.
_TOSSES = 6


def view(
    spec: RunSpec, state: AbstractState, rounding: jax.Array | None = None, draw: int = 0
) -> Snapshot:
    product = spec.dynamics.product(spec.problem, spec.factorization, state)
    return Snapshot(
        spec.problem,
        product if rounding is None else _rounded(product, rounding, draw),
        factorization=spec.factorization,
        factors=lambda: spec.dynamics.factors(spec.problem, spec.factorization, state),
        time=state.time,
        step=state.step,
    )


def measured(spec: RunSpec, located: AbstractState) -> dict[str, jax.Array]:
    """Every measure of a row. Counts and signs that rounding tosses like a coin are no numbers."""
    values = {}
    first = view(spec, located, spec.rounding)
    others = [view(spec, located, spec.rounding, draw) for draw in range(1, _TOSSES)]
    for measure in spec.measures:
        value = measure(first)
        if measure.error == "exact":
            for other in others:
                value = jnp.where(measure(other) == value, value, jnp.nan)
        values[measure.name] = value
    return values


def _rounded(product: AbstractProduct, size: jax.Array, draw: int) -> AbstractProduct:
    """The product with its entries, or those of its factors, changed by this share of the largest.

    As integrators round them: an entry far below the largest is not known to its last digit, but
    in coordinates made for it.
    """

    leaves, structure = jax.tree.flatten(product)
    changed, place = [], 1
    for leaf in leaves:
        if (
            eqx.is_array(leaf) and leaf.ndim >= 2
        ):  # not logarithms and signs, which are known better
            sizes = leaf if product.entrywise else jnp.max(jnp.abs(leaf))
            leaf = leaf + size * sizes * _noise(leaf, place, draw)
            place += leaf.size
        changed.append(leaf)
    return jax.tree.unflatten(structure, changed)


def _noise(leaf: jax.Array, place: int, draw: int) -> jax.Array:
    """Numbers in (-1, 1), as good as random and no table to compile in."""
    places = jnp.arange(place, place + leaf.size, dtype=leaf.dtype)
    # Digits far behind the point: the sines alone would make a matrix of rank two.
    large = 43758.5453 * jnp.sin((12.9898 + draw) * places)
    return (2 * (large - jnp.floor(large)) - 1).reshape(leaf.shape)
