r"""When, on the whole way, a run has lowered its loss.

Two runs that have arrived at the same place do not tell any more when each of them left another
one. Their clocks do. For every halving of the loss, from the start's down, a clock keeps the mean
of the logarithm of time, weighted by the logarithm of the loss:

$$\int_{2^{-k} \ge \ell / \ell_0 \ge 2^{-k - 1}} \ln t \; (-d \log_2 \ell)$$

A run that rounding has taken off an invariant set has another reading than one that started beside
it, in the halving in which it left, long after both have converged.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics import AbstractState

__all__ = ["Clock"]

# Down to 4e-15 of the loss at the start; all that falls further counts for the last one.
_HALVINGS = 48
# How far the mean over the first step, where the loss begins to fall, is open.
_FIRST_STEP = 0.25


class Clock(eqx.Module):
    """The integrals so far, and how far the steps leave them open."""

    mean: jax.Array
    spread: jax.Array
    start: jax.Array  # the loss at the beginning

    @classmethod
    def begun(cls, state: AbstractState) -> "Clock":
        """Before the first step."""
        zero = jnp.zeros(_HALVINGS, state.loss.dtype)
        return cls(zero, zero, state.loss)

    def ticked(self, before: AbstractState, after: AbstractState) -> "Clock":
        """After an attempted step."""
        moved = after.step != before.step
        part, middle, open_ = self._parts(before, after)
        return Clock(
            self.mean + jnp.where(moved, part * middle, 0),
            self.spread + jnp.where(moved, jnp.abs(part) * open_, 0),
            self.start,
        )

    def read(self, located: AbstractState, end: AbstractState) -> dict[str, jax.Array]:
        """At a row within the step that has led to `end`: readings, what is open, and weights."""
        part, middle, _ = self._parts(located, end)
        there = (located.time < end.time) & (located.loss > end.loss)
        _, span = _logarithms(located, end)
        last = jnp.where(there, located.loss, end.loss)
        return {
            "clock": self.mean - jnp.where(there, part * middle, 0),
            "clock_spread": self.spread + jnp.where(there, part * span / 2, 0),
            "clock_weight": jnp.clip(self._halved(last) - _edges(last), 0, 1),
        }

    def _parts(self, before: AbstractState, after: AbstractState):
        """Of a step: its share in every halving, the logarithm of time there, and what is open."""
        first, last = self._halved(before.loss), self._halved(after.loss)
        edges = _edges(first)
        entered = jnp.clip(first - edges, 0, 1)
        left = jnp.clip(last - edges, 0, 1)
        fall = last - first
        middle = ((entered + left) / 2 + edges - first) / jnp.where(fall == 0, 1, fall)
        start, span = _logarithms(before, after)
        # Within a step the loss falls smoothly: near a power of time where it falls by little.
        open_ = jnp.where(jnp.abs(fall) > 0.5, span / 2, span**2 / 4)
        # From time zero on in proportion to time, whose logarithm has this mean.
        first_step = before.time <= 0
        mean = jnp.where(first_step, start - 1, start + span * jnp.clip(middle, 0, 1))
        open_ = jnp.where(first_step, _FIRST_STEP, open_)
        # A loss that rises is rounding, or no flow: nothing is known here.
        return left - entered, mean, jnp.where(fall < 0, 1, open_)

    def _halved(self, loss: jax.Array) -> jax.Array:
        """How often the loss has been halved since the start, as a number with digits."""
        known = (loss > 0) & (self.start > 0)
        share = jnp.where(known, loss, 1) / jnp.where(known, self.start, 1)
        gone = jnp.where(self.start > 0, float(_HALVINGS), 0.0)
        return jnp.where(known, jnp.clip(-jnp.log2(share), 0, _HALVINGS), gone)


def _edges(like: jax.Array) -> jax.Array:
    return jnp.asarray(np.arange(_HALVINGS), like.dtype)


def _logarithms(before: AbstractState, after: AbstractState) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the earlier moment, and how much larger that of the later one is."""
    end = jnp.log(jnp.where(after.time > 0, after.time, 1))
    # The first step begins at time zero; what it covers happens at its end, on this scale.
    start = jnp.where(before.time > 0, jnp.log(jnp.where(before.time > 0, before.time, 1)), end)
    return start, end - start
