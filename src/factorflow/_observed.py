"""What is seen of a state, and measured at a row."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from factorflow._dynamics import AbstractState
from factorflow._measure import Measure, Snapshot
from factorflow._product import Rounding
from factorflow._spec import RunSpec

__all__ = ["Measured", "measured", "view"]

# How often numbers are read off a product that is rounded anew: in one reading, one in a hundred of
# those that rounding decides would look right by accident. Counts and signs have few values, and
# are read more often and with so many times as much: a long run rounds more than a few operations.
# Of large products once is enough: the numbers that rounding decides are many there.
_DRAWS, _TOSSES, _LONGER, _LARGE = 3, 12, 64, 4096


def view(
    spec: RunSpec,
    state: AbstractState,
    rounding: jax.Array | None = None,
    draw: jax.Array | int = 0,
) -> Snapshot:
    product = spec.dynamics.product(spec.problem, spec.factorization, state)
    return Snapshot(
        spec.problem,
        product
        if rounding is None
        else product.rounded(Rounding(rounding[0], draw, spec.problem.separate, rounding[1])),
        factorization=spec.factorization,
        factors=lambda: spec.dynamics.factors(spec.problem, spec.factorization, state),
        time=state.time,
        step=state.step,
    )


class Measured(NamedTuple):
    """Every measure of a row, and how far rounding once more moves it; nothing in a run itself."""

    values: dict[str, jax.Array]
    noise: dict[str, jax.Array]


def measured(spec: RunSpec, located: AbstractState) -> Measured:
    """Every measure of a row. Counts and signs that rounding tosses like a coin are no numbers."""
    dtype = spec.rounding.dtype
    count = 1 + (_DRAWS if math.prod(spec.problem.shape) <= _LARGE else 1)

    def drawn(draw: jax.Array) -> dict[str, jax.Array]:
        # The first draw is none.
        snapshot = view(spec, located, jnp.where(draw > 0, spec.rounding, 0), draw)
        return {measure.name: measure(snapshot) for measure in spec.measures}

    draws = jax.vmap(drawn)(jnp.arange(count, dtype=dtype))
    values, noise = {}, {}
    for measure in spec.measures:
        read = draws[measure.name]
        value = read[0]
        if measure.error == "exact":
            tosses = jax.vmap(lambda draw, measure=measure: _tossed(spec, located, measure, draw))
            same = tosses(jnp.arange(1, _TOSSES + 1, dtype=dtype)) == value
            value = jnp.where(jnp.all(same, axis=0), value, jnp.nan)
        else:
            # Measures of a user's own may be truths or counts, which have no difference.
            apart = jnp.abs(read.astype(dtype) - value.astype(dtype))
            apart = jnp.where(read == value, 0, apart)
            noise[measure.name] = jnp.max(apart, axis=0)
        values[measure.name] = value
    return Measured(values, noise)


def _tossed(spec: RunSpec, located: AbstractState, measure: Measure, draw: jax.Array) -> jax.Array:
    return measure(view(spec, located, _LONGER * spec.rounding, draw))
