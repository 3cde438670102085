r"""When, on the whole way, a run has lowered its loss.

Two runs that have arrived at the same place do not tell any more when each of them left another
one. Their clocks do: the mean of the logarithm of time, weighted by what the loss has fallen,
$\int \ln t \, (-d\ell) / \ell_0$. A run that rounding has taken off an invariant set has another
reading than one that started beside it, long after both have converged.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._dynamics import AbstractState

__all__ = ["Clock"]


class Clock(eqx.Module):
    """The integral so far, and how far the steps leave it open, in units of the loss."""

    mean: jax.Array
    spread: jax.Array
    start: jax.Array  # the loss at the beginning

    @classmethod
    def begun(cls, state: AbstractState) -> "Clock":
        """Before the first step."""
        zero = jnp.zeros_like(state.loss)
        return cls(zero, zero, state.loss)

    def ticked(self, before: AbstractState, after: AbstractState) -> "Clock":
        """After an attempted step."""
        moved = after.step != before.step
        fall, middle, span = _fall(before, after)
        return Clock(
            self.mean + jnp.where(moved, fall * middle, 0),
            # Within a step the loss falls smoothly: the trapezoidal rule errs by this and less.
            self.spread + jnp.where(moved, jnp.abs(fall) * span**2 / 4, 0),
            self.start,
        )

    def read(self, located: AbstractState, end: AbstractState) -> tuple[jax.Array, jax.Array]:
        """Reading and spread at a row within the step that has led to `end`."""
        fall, middle, span = _fall(located, end)
        there = (located.time < end.time) & (fall > 0)
        mean = self.mean - jnp.where(there, fall * middle, 0)
        spread = self.spread + jnp.where(there, fall * span / 2, 0)
        size = jnp.where(self.start > 0, self.start, 1)
        return mean / size, spread / size


def _fall(before: AbstractState, after: AbstractState):
    """How far the loss falls between two moments, the middle of their logarithms, their span."""
    end = jnp.log(jnp.where(after.time > 0, after.time, 1))
    # The first step begins at time zero; what it covers happens at its end, on this scale.
    start = jnp.where(before.time > 0, jnp.log(jnp.where(before.time > 0, before.time, 1)), end)
    return before.loss - after.loss, (start + end) / 2, end - start
