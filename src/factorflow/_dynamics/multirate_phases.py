"""The phases of the multirate flow: what moves in each, and what leads from one to the next."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from factorflow._dynamics.base import AbstractState, tree_norm, where
from factorflow._dynamics.flow import FlowState, Integrator, first_step
from factorflow._dynamics.integrators import with_tolerances
from factorflow._dynamics.solver import Stabilized
from factorflow._factorization import CP, AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import Dense
from factorflow._results import RESULTS
from factorflow._types import (
    BoolArray,
    BoolScalar,
    Factors,
    FloatArray,
    FloatScalar,
    IntScalar,
)

__all__ = ["FAST", "FULL", "SLOW", "Clock", "MultirateState", "Phases", "columns", "merged", "when"]

# What moves: everything; the small components, under a force that stands still; the large ones.
FULL, SLOW, FAST = 0, 1, 2

# Components are set apart when they are this much smaller than they may become.
_ROOM = 0.25
# The first step of a slow phase, over the time in which the fastest component doubles.
_FIRST_STEP = 0.05
# Beyond this multiple of the tolerance, what a fast phase leaves out is followed after all.
_EXCESS = 4.0


class Clock(eqx.Module):
    """Estimates that decide what moves next."""

    # Of the large components: the size of their gradient, when it was that, and how fast it falls.
    slope: FloatScalar
    seen: FloatScalar
    decay: FloatScalar
    # How fast the fastest small component grows, at which loss; and what rest has cost it so far.
    growth: FloatScalar
    growth_loss: FloatScalar
    neglected: FloatScalar


class MultirateState(AbstractState):
    step: IntScalar
    time: FloatScalar
    loss: FloatScalar
    result: RESULTS
    # The phase of the last step, and that of the next.
    phase: IntScalar
    following: IntScalar
    # All components, and the large ones alone, which are the first `count` of the columns `chosen`.
    every: FlowState
    few: FlowState
    chosen: jax.Array
    count: IntScalar
    # Whether the others are too small to change the force.
    separate: BoolScalar
    # In a slow phase the force; in a fast one the product of the components that rest.
    apart: FloatArray
    # When the last fast phase began and ended, and whether that was before all was at rest.
    began: FloatScalar
    ended: FloatScalar
    early: BoolScalar
    clock: Clock
    neglected: FloatScalar
    slow_steps: IntScalar
    fast_steps: IntScalar

    def stats(self) -> dict[str, Any]:
        every, few = self.every.stats(), self.few.stats()
        return {
            "num_steps": self.step,
            "num_rejected": every["num_rejected"] + few["num_rejected"],
            "num_gradients": every["num_gradients"],
            "num_small_gradients": few["num_gradients"],
            "num_slow_steps": self.slow_steps,
            "num_fast_steps": self.fast_steps,
            "neglected": self.neglected,
        }


class Phases:
    """The equations of the phases, and what leads from one to the next, for one run.

    `flow` is the `MultirateFlow`, for its tolerances.
    """

    def __init__(self, flow: Any, problem: AbstractProblem, fz: AbstractFactorization):
        assert isinstance(fz, CP)  # resolve saw to it
        self.flow, self.problem, self.fz = flow, problem, fz
        self.capacity = min(flow.capacity, fz.num_components)

    def compose(self, factors: Factors) -> FloatArray:
        return self.fz.compose(factors)

    def force(self, product: FloatArray) -> FloatArray:
        return -jax.grad(lambda dense: self.problem.loss(Dense(dense)))(product)

    def velocity(self, factors: Factors) -> Factors:
        product, pull = jax.vjp(self.compose, factors)
        return pull(self.force(product))[0]

    def all(self, state: MultirateState | None) -> Integrator:
        """All components, of which the large ones rest in a slow phase."""
        if state is None:
            return self._integrator(self.velocity, self.compose)
        slow = state.phase == SLOW
        moving = jnp.where(slow & self._large(state), 0, 1).astype(state.loss.dtype)

        def velocity(factors):
            product, pull = jax.vjp(self.compose, factors)
            (toward,) = pull(jnp.where(slow, state.apart, self.force(product)))
            return tuple(part * moving for part in toward)

        return self._integrator(velocity, self.compose)

    def large(self, resting: FloatArray, dt0: FloatScalar | None = None) -> Integrator:
        """The large components alone, beside the product of those that rest."""

        def product(factors):
            return resting + self.compose(factors)

        def velocity(factors):
            dense, pull = jax.vjp(product, factors)
            return pull(self.force(dense))[0]

        return self._integrator(velocity, product, dt0)

    def _integrator(
        self, velocity: Callable, product: Callable, dt0: FloatScalar | None = None
    ) -> Integrator:
        def loss(factors):
            return self.problem.loss(Dense(product(factors)))

        flow = self.flow
        dtype = jnp.asarray(flow.rtol).dtype
        solver, controller = with_tolerances(Stabilized(), flow.rtol, flow.atol, dtype)
        return Integrator(velocity, loss, solver, controller, dt0)

    def _large(self, state: MultirateState) -> BoolArray:
        """Whether each component is a large one."""
        none = jnp.zeros(self.fz.num_components, bool)
        return none.at[state.chosen].set(jnp.arange(self.capacity, dtype=jnp.int32) < state.count)

    def step_all(self, state: MultirateState) -> MultirateState:
        # Those that only catch up stop where the others are.
        last = jnp.where(state.early, state.ended, jnp.inf).astype(state.loss.dtype)
        size = jnp.minimum(state.every.size, last - state.every.time)
        state = eqx.tree_at(lambda s: s.every.size, state, size)
        every = self.all(state).advance(state.every, jnp.asarray(True))
        kept = (every.step != state.every.step).astype(jnp.int32)
        slow = state.phase == SLOW
        state = eqx.tree_at(
            lambda s: (s.every, s.step, s.time, s.loss, s.result, s.slow_steps),
            state,
            (
                every,
                state.step + kept,
                # The small components first make up for the fast phase in which they rested.
                jnp.maximum(every.time, jnp.minimum(state.ended, state.time)),
                every.loss,
                every.result,
                state.slow_steps + jnp.where(slow, kept, 0),
            ),
        )
        state = when((kept > 0) & slow, self.survey_small, state)
        return when((kept > 0) & ~slow, self.survey_all, state)

    def step_large(self, state: MultirateState) -> MultirateState:
        few = self.large(state.apart).advance(state.few, jnp.asarray(True))
        kept = (few.step != state.few.step).astype(jnp.int32)
        state = eqx.tree_at(
            lambda s: (s.few, s.step, s.time, s.loss, s.result, s.fast_steps),
            state,
            (
                few,
                state.step + kept,
                state.began + few.time,
                few.loss,
                few.result,
                state.fast_steps + kept,
            ),
        )
        return when(kept > 0, self.survey_large, state)

    def survey_all(self, state: MultirateState) -> MultirateState:
        """After a full step: which components are large, and whether the others can be left."""
        y, tolerance = state.every.y, self.flow.tolerance
        force, velocity = self.force(self.compose(y)), self.all(state).velocity(state.every)
        norms = self.fz.component_norms(y)
        # Of a quadratic loss, twice over the gradient is the residual, whatever its normalization.
        residual = _ratio(2 * state.loss, tree_norm(force))
        ascending = jnp.cumsum(jnp.sort(norms))
        needed = jnp.sum(ascending > _ROOM * tolerance * residual)
        separate = needed <= self.capacity
        count = jnp.minimum(needed, self.capacity).astype(jnp.int32)
        chosen = lax.top_k(norms, self.capacity)[1].astype(jnp.int32)
        state = eqx.tree_at(
            lambda s: (s.chosen, s.count, s.separate), state, (chosen, count, separate)
        )
        large = self._large(state)
        growth = jnp.max(jnp.where(large, 0, _rates(y, velocity)))
        slope = jnp.sqrt(sum(jnp.sum(jnp.where(large, part, 0) ** 2) for part in velocity))
        clock = self._watch(state, slope, growth, state.loss)
        left = self._unrest(state, clock)
        resting = left <= tolerance
        # How far the small components would move meanwhile: in their own size, and in the residual.
        share = _ratio(jnp.sum(jnp.where(large, 0, norms)), residual)
        moved = growth * left * jnp.maximum(1, share)
        relaxing = ~resting & (clock.decay > 0) & (moved <= tolerance * clock.decay)
        resting = resting & separate
        following = jnp.where(resting, SLOW, jnp.where(relaxing, FAST, FULL)).astype(jnp.int32)
        return eqx.tree_at(lambda s: (s.following, s.clock), state, (following, clock))

    def survey_small(self, state: MultirateState) -> MultirateState:
        """After a slow step: whether the small components still are."""
        norms = jnp.where(self._large(state), 0, self.fz.component_norms(state.every.y))
        # That at the beginning of the phase: the loss moves with what escapes.
        residual = _ratio(2 * state.clock.growth_loss, tree_norm(state.apart))
        escaped = jnp.sum(norms) > self.flow.tolerance * residual
        caught_up = state.early & (state.every.time >= state.ended)
        following = jnp.where(escaped | caught_up, FULL, SLOW).astype(jnp.int32)
        return eqx.tree_at(lambda s: s.following, state, following)

    def survey_large(self, state: MultirateState) -> MultirateState:
        """After a fast step: whether the large components have come to rest."""
        few, tolerance = state.few, self.flow.tolerance
        slope = tree_norm(self.large(state.apart).velocity(few))
        old = state.clock
        # The force that makes the small ones grow falls with the residual.
        growth = old.growth * jnp.sqrt(_ratio(few.loss, old.growth_loss))
        clock = self._watch(state, slope, growth, few.loss)
        left = self._unrest(state, clock)
        missed = growth * left * few.span
        neglected = old.neglected + missed
        clock = eqx.tree_at(lambda c: c.neglected, clock, neglected)
        resting = left <= tolerance
        over = resting | (neglected > _EXCESS * tolerance)
        next_one = jnp.where(state.separate, SLOW, FULL)
        following = jnp.where(over, next_one, FAST).astype(jnp.int32)
        return eqx.tree_at(
            lambda s: (s.following, s.clock, s.neglected, s.early),
            state,
            (following, clock, state.neglected + missed, state.separate & over & ~resting),
        )

    def _watch(self, state, slope, growth, loss) -> Clock:
        old, passed = state.clock, state.time - state.clock.seen
        falls = jnp.log(_ratio(old.slope, slope)) / jnp.where(passed > 0, passed, 1)
        known = (passed > 0) & (old.slope > 0) & (slope > 0)
        # While they relax, noise at the end of it says nothing about how fast they do.
        held = (state.phase == FAST) & (falls <= 0)
        decay = jnp.where(known & ~held, falls, old.decay)
        return Clock(slope, state.time, decay, growth, loss, old.neglected)

    def _unrest(self, state: MultirateState, clock: Clock) -> FloatScalar:
        """Relative change of the force that the large components' relaxation has still to bring."""
        rate = _ratio(clock.slope**2, state.loss)
        share = jnp.sqrt(_ratio(rate, 2 * jnp.maximum(clock.decay, 0)))
        unknown = jnp.where(clock.decay > 0, jnp.minimum(share, 1), 1)
        return jnp.where(state.count == 0, 0, unknown).astype(state.loss.dtype)

    def switch(self, state: MultirateState) -> MultirateState:
        """The state at the beginning of the next phase."""
        old, new = state.phase, state.following
        to_fast, from_fast = new == FAST, old == FAST
        y = where(from_fast, merged(state), state.every.y)
        large = self._large(state)
        resting = tuple(jnp.where(large, 0, part) for part in y)
        # One composition serves both: the product at rest, or the one that makes the force.
        product = self.compose(where(to_fast, resting, y))
        apart = jnp.where(to_fast, product, self.force(product))
        few = when(to_fast, lambda few: self._begin(few, state, product), state.few)
        # After a fast phase the small components catch up, unless they are not small.
        late = from_fast & (new == FULL)
        time = jnp.where(late, state.time, state.every.time)
        late = late | (state.early & (new == FULL))
        growth = state.clock.growth
        first = jnp.where(growth > 0, _FIRST_STEP / jnp.where(growth > 0, growth, 1), 0)
        size = jnp.where((new == SLOW) & (growth > 0), first, state.every.size)
        size = jnp.where(late, state.few.size, size)
        none = jnp.zeros_like(state.loss)
        every = eqx.tree_at(
            lambda s: (
                s.y,
                s.loss,
                s.time,
                s.lost,
                s.size,
                s.span,
                s.previous_y,
                s.previous_loss,
                s.previous_time,
                s.made_jump,
            ),
            state.every,
            (y, state.loss, time, none, size, none, y, state.loss, time, jnp.asarray(True)),
        )
        clock = eqx.tree_at(lambda c: c.neglected, state.clock, jnp.zeros_like(state.loss))
        return eqx.tree_at(
            lambda s: (s.phase, s.every, s.few, s.apart, s.began, s.ended, s.early, s.clock),
            state,
            (
                new,
                every,
                few,
                apart,
                jnp.where(to_fast, state.time, state.began),
                jnp.where(from_fast, state.time, state.ended),
                state.early & (new == SLOW),
                clock,
            ),
        )

    def _begin(self, few: FlowState, state: MultirateState, resting: FloatArray) -> FlowState:
        """The large components on their own; counters go on."""
        y = columns(state.every.y, state.chosen, state.count)
        # How fast they move is known from the step before.
        dt0 = first_step(tree_norm(y), state.clock.slope)
        start = self.large(resting, dt0).init(y)
        spent = few.solver_state.num_evaluations + start.solver_state.num_evaluations
        return eqx.tree_at(
            lambda s: (s.rejected, s.solver_state.common.num_evaluations),
            start,
            (few.rejected, spent),
        )


def when(wanted: jax.Array, function: Callable, value: Any) -> Any:
    """`function(value)` where wanted; in a batch at no cost where no lane wants it.

    A loop of length 0 or 1: of a `lax.cond`, `vmap` computes both sides.
    """
    _, result = lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.asarray(False), function(carry[1])),
        (wanted, value),
    )
    return result


def columns(factors: Factors, chosen: jax.Array, count: IntScalar) -> Factors:
    used = jnp.arange(chosen.shape[0], dtype=jnp.int32) < count
    return tuple(jnp.where(used, factor[:, chosen], 0) for factor in factors)


def merged(state: MultirateState) -> Factors:
    """All factors, the large components where the fast phase has taken them."""
    used = jnp.arange(state.chosen.shape[0], dtype=jnp.int32) < state.count
    return tuple(
        factor.at[:, state.chosen].set(jnp.where(used, alone, factor[:, state.chosen]))
        for factor, alone in zip(state.every.y, state.few.y, strict=True)
    )


def _rates(factors: Factors, velocity: Factors) -> FloatArray:
    r"""Rate at which every component changes, relative to its size: growing, shrinking, turning."""
    return sum(
        jnp.sqrt(_ratio(jnp.sum(v**2, axis=0), jnp.sum(a**2, axis=0)))
        for a, v in zip(factors, velocity, strict=True)
    )  # pyright: ignore[reportReturnType]


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
