"""What is seen of a state, and measured at a row."""

import jax
import jax.numpy as jnp

from factorflow._dynamics import AbstractState
from factorflow._measure import Measure, Snapshot
from factorflow._product import Rounding
from factorflow._spec import RunSpec

__all__ = ["measured", "view"]

# How often counts and signs are read off a product that is rounded anew, and by how many times as
# much: a long run rounds more often than the few operations behind a number.
_TOSSES, _LONGER = 12, 64


def view(
    spec: RunSpec,
    state: AbstractState,
    rounding: jax.Array | None = None,
    draw: jax.Array | int = 0,
) -> Snapshot:
    product = spec.dynamics.product(spec.problem, spec.factorization, state)
    return Snapshot(
        spec.problem,
        product if rounding is None else product.rounded(Rounding(rounding, draw)),
        factorization=spec.factorization,
        factors=lambda: spec.dynamics.factors(spec.problem, spec.factorization, state),
        time=state.time,
        step=state.step,
    )


def measured(spec: RunSpec, located: AbstractState) -> dict[str, jax.Array]:
    """Every measure of a row. Counts and signs that rounding tosses like a coin are no numbers."""
    values = {}
    first = view(spec, located, spec.rounding)
    for measure in spec.measures:
        value = measure(first)
        if measure.error == "exact":
            tosses = jax.vmap(lambda draw, measure=measure: _tossed(spec, located, measure, draw))
            same = tosses(jnp.arange(1, _TOSSES + 1, dtype=spec.rounding.dtype)) == value
            value = jnp.where(jnp.all(same, axis=0), value, jnp.nan)
        values[measure.name] = value
    return values


def _tossed(spec: RunSpec, located: AbstractState, measure: Measure, draw: jax.Array) -> jax.Array:
    return measure(view(spec, located, _LONGER * spec.rounding, draw))
