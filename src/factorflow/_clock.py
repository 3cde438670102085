r"""How long, on the whole way, a run has needed to lower its loss.

Two runs that have arrived at the same place do not tell any more when each of them left another
one. Their clocks do. The logarithm of the loss is divided into cells, from the start's down, and
for each a clock keeps the mean of the logarithm of the time $\tau$ since the cell before was
entered:

$$\int_{\text{cell } k} \ln \tau_k \; (-d \log_2 \ell)$$

A run that rounding has taken off an invariant set has another reading than one that started beside
it, in the cell in which it left, long after both have converged. Times since the start would not
do: after a plateau of 1e24 units nothing is seen of a second one of 1e8.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics import AbstractState

__all__ = ["CELL_WIDTHS", "Clock"]

# Cells in halvings of the loss, finer where a plateau's loss may be near that of the one before:
# (how many, how wide). Down to 4e-15 of the start's; all that falls further counts for nothing.
_CELLS = ((8, 0.125), (12, 0.25), (12, 0.5), (14, 1.0), (1, 24.0))
# How far the mean over the first step, where the loss begins to fall, is open; and that over a step
# which says nothing, for its time begins within it: any logarithm of a time differs by less.
_FIRST_STEP, _UNKNOWN = 0.25, 1e3
# Steps of descent are many, and are counted together until they lower the loss by this share of a
# halving, or take this share of the time in their cell.
_TOGETHER = 1 / 16


class Clock(eqx.Module):
    """The integrals so far, and how far the steps leave them open; an entry per cell.

    They lag behind the run: the last steps, for `gone` units of time and the last one whole, are
    not in them yet. A row within the last step is then read without taking anything back.
    """

    mean: jax.Array
    spread: jax.Array
    # The time since the cell was entered, and how much of it is uncertain.
    since: jax.Array
    uncertain: jax.Array
    start: jax.Array  # the loss at the beginning
    halved: jax.Array  # how often it has been halved since
    recent: jax.Array  # the time of the present cell
    gone: jax.Array

    @classmethod
    def begun(cls, state: AbstractState) -> "Clock":
        """Before the first step."""
        zero, zeros = jnp.zeros_like(state.loss), jnp.zeros(_EDGES.size, state.loss.dtype)
        return cls(zeros, zeros, zeros, zeros, state.loss, zero, zero, zero)

    def due(self, state: AbstractState) -> jax.Array:
        """Whether what led to this state can no longer be counted as one step."""
        fallen = jnp.abs(self._halved(state.loss) - self.halved)
        return (fallen >= _TOGETHER) | (self.gone >= _TOGETHER * self.recent)

    def stepped(self, before: AbstractState, after: AbstractState) -> "Clock":
        """After an attempted step, which is not counted yet."""
        passed = jnp.where(after.step != before.step, after.elapsed(before), 0)
        return eqx.tree_at(lambda clock: clock.gone, self, self.gone + passed)

    def ticked(self, state: AbstractState) -> "Clock":
        """With all that led to this state counted."""
        return self._counted(self._halved(state.loss), self.gone)

    def read(self, located: AbstractState, end: AbstractState) -> dict[str, jax.Array]:
        """At a row within the step that has led to `end`: readings, what is open, and weights."""
        halved = self._halved(located.loss)
        there = self._counted(halved, self.gone - end.elapsed(located))
        weight = jnp.clip(halved - _like(_EDGES, halved), 0, _like(CELL_WIDTHS, halved))
        return {"clock": there.mean, "clock_spread": there.spread, "clock_weight": weight}

    def _counted(self, halved: jax.Array, span: jax.Array) -> "Clock":
        first, fall, edges = self.halved, halved - self.halved, _like(_EDGES, halved)
        # Where in a step a loss lies is known the better the less it falls.
        vague = jnp.where(jnp.abs(fall) > 0.5, 0.5, 0.25)
        inside = (edges <= first) | (self.since > 0)
        entered = (edges <= halved) & ~inside
        beyond = span * (halved - edges) / jnp.where(fall == 0, 1, fall)
        since = jnp.where(inside, self.since + span, jnp.where(entered, beyond, 0))
        uncertain = jnp.where(entered, vague * span, self.uncertain)
        part, middle = _parts(first, halved)
        begin, end, off = (_cell_before(x) for x in (self.since, since, uncertain))
        mean, width = _logarithms(begin, end, middle)
        open_ = vague * width + 2 * off / jnp.where(end > 0, end, 1)
        known = (begin > 2 * off) & (fall >= 0)  # a loss that rises is rounding, or no flow
        open_ = jnp.where(known, open_, _UNKNOWN)
        # The first step begins at time zero, in proportion to which the loss then falls.
        at_start = (begin <= 0) & (off <= 0) & (fall >= 0)
        half = part / (2 * jnp.where(fall == 0, 1, fall))
        mean = jnp.where(at_start, _mean_logarithm(span * (middle - half), span * half * 2), mean)
        open_ = jnp.where(at_start, _FIRST_STEP, open_)
        return Clock(
            mean=self.mean + part * mean,
            spread=self.spread + jnp.abs(part) * open_,
            since=since,
            uncertain=uncertain,
            start=self.start,
            halved=halved,
            recent=jnp.min(jnp.where(edges <= halved, end, jnp.inf)),
            gone=jnp.zeros_like(self.gone),
        )

    def _halved(self, loss: jax.Array) -> jax.Array:
        """How often the loss has been halved since the start, as a number with digits."""
        known = (loss > 0) & (self.start > 0)
        share = jnp.where(known, loss, 1) / jnp.where(known, self.start, 1)
        gone = jnp.where(self.start > 0, _END, 0.0)
        return jnp.where(known, jnp.clip(-jnp.log2(share), 0, _END), gone)


CELL_WIDTHS = np.concatenate([np.full(count, width) for count, width in _CELLS])
_EDGES = np.cumsum(CELL_WIDTHS) - CELL_WIDTHS
_END = float(np.sum(CELL_WIDTHS))


def _like(cells: np.ndarray, other: jax.Array) -> jax.Array:
    return jnp.asarray(cells, other.dtype)


def _parts(first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of a fall within a step: its part in every cell, and the share of the step at its middle."""
    edges, widths, fall = _like(_EDGES, first), _like(CELL_WIDTHS, first), last - first
    entered, left = jnp.clip(first - edges, 0, widths), jnp.clip(last - edges, 0, widths)
    middle = ((entered + left) / 2 + edges - first) / jnp.where(fall == 0, 1, fall)
    return left - entered, jnp.clip(middle, 0, 1)


def _cell_before(values: jax.Array) -> jax.Array:
    """What is known of the cell before; the first has none before."""
    return jnp.concatenate([values[:1], values[:-1]])


def _logarithms(begin: jax.Array, end: jax.Array, middle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The logarithm of time at the middle, and how much it grows on the way to `end`."""
    last = jnp.log(jnp.where(end > 0, end, 1))
    first = jnp.log(jnp.where(begin > 0, begin, 1))
    width = jnp.where(begin > 0, last - first, 0)
    return first + width * middle, width


def _mean_logarithm(begin: jax.Array, width: jax.Array) -> jax.Array:
    """From `begin` to `begin + width`, both 0 or more."""

    def times_logarithm(time: jax.Array) -> jax.Array:
        return jnp.where(time > 0, time * jnp.log(jnp.where(time > 0, time, 1)), 0)

    begin = jnp.maximum(begin, 0)
    change = times_logarithm(begin + width) - times_logarithm(begin)
    return jnp.where(width > 0, change / jnp.where(width > 0, width, 1) - 1, 0)
