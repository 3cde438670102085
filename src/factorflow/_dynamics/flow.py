"""Following an ordinary differential equation one attempted step at a time.

`diffrax.diffeqsolve` owns its loop; here the loop belongs to `simulate`, which needs to stop at
loss levels, lane by lane. This module therefore drives diffrax's solvers and step-size controllers
through their public stepping interface.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from factorflow._dynamics.base import AbstractState, tree_norm, where
from factorflow._results import RESULTS
from factorflow._types import FloatScalar, IntScalar

__all__ = ["FlowState", "Integrator", "first_step"]

# Of false position, for a row at a loss; and how many that do not improve mean rounding.
_LOCATE_ITERATIONS = 40
_NOISY = 3


class FlowState(AbstractState):
    """Position `y` and everything needed to go on, or to step again from the step before.

    After a long plateau steps may be shorter than the distance between two representable times.
    Flows do not ask what time it is: `span` is the length of the last step, `part` that of its part
    up to here, `size` that of the next, and `lost` what rounding has left out of `time`.
    """

    step: IntScalar
    time: FloatScalar
    loss: FloatScalar
    result: RESULTS
    y: Any
    rejected: IntScalar
    lost: FloatScalar
    size: FloatScalar
    span: FloatScalar
    part: FloatScalar
    previous_time: FloatScalar
    previous_loss: FloatScalar
    previous_y: Any
    made_jump: jax.Array
    solver_state: Any
    controller_state: Any

    def elapsed(self, before: AbstractState) -> FloatScalar:
        assert isinstance(before, FlowState)
        return self.part - jnp.where(self.step == before.step, before.part, 0)

    def stats(self) -> dict[str, Any]:
        stats = {"num_steps": self.step, "num_rejected": self.rejected}
        # Only solvers whose cost varies from step to step count for themselves.
        counted = getattr(self.solver_state, "num_evaluations", None)
        return stats if counted is None else {**stats, "num_gradients": counted}


class Integrator(eqx.Module):
    """A vector field, a loss along it, a diffrax solver and a step-size controller."""

    field: Callable[[Any], Any]
    loss: Callable[[Any], FloatScalar]
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    dt0: FloatScalar | None

    def init(self, y: Any) -> FlowState:
        """The state at time 0."""
        loss = self.loss(y)
        zero = jnp.zeros_like(loss)
        terms, horizon = self._terms(), jnp.full_like(loss, jnp.inf)
        order = self._error_order(terms)
        dt0 = self.dt0
        if dt0 is None:
            dt0 = first_step(tree_norm(y), tree_norm(self.field(y))).astype(loss.dtype)
        size, controller_state = self.controller.init(
            terms, zero, horizon, y, dt0, None, self.solver.func, order
        )
        return FlowState(
            step=jnp.zeros((), jnp.int32),
            time=zero,
            loss=loss,
            result=RESULTS.successful,  # pyright: ignore[reportArgumentType]
            y=y,
            rejected=jnp.zeros((), jnp.int32),
            lost=zero,
            size=jnp.asarray(size),
            span=zero,
            part=zero,
            previous_time=zero,
            previous_loss=loss,
            previous_y=y,
            made_jump=jnp.asarray(False),
            solver_state=self.solver.init(terms, zero, size, y, None),
            controller_state=controller_state,
        )

    def advance(self, state: FlowState, active: jax.Array) -> FlowState:
        """One attempted step; a rejected one changes only the next step's size."""
        return where(active, self._attempt(state), state)

    def speed(self, state: FlowState) -> FloatScalar:
        """Norm of the field at the state."""
        return tree_norm(self.field(state.y))

    def velocity(self, state: FlowState) -> Any:
        """The field right after a step that was kept, from solvers that remember it."""
        return ravel_pytree(state.y)[1](state.solver_state.derivative)

    def _attempt(self, state: FlowState) -> FlowState:
        terms, zero = self._terms(), jnp.zeros_like(state.time)
        y, error, _, solver_state, solver_result = self.solver.step(
            terms,
            zero,
            state.size,
            state.y,
            None,
            state.solver_state,
            state.made_jump,
        )
        keep, begin, end, made_jump, controller_state, controller_result = (
            self.controller.adapt_step_size(
                zero,
                state.size,
                state.y,
                y,
                None,
                error,
                self._error_order(terms),
                state.controller_state,
            )
        )

        # diffrax types these as anything scalar; here they are arrays.
        keep, size = jnp.asarray(keep), jnp.asarray(end) - jnp.asarray(begin)
        gained = state.size + state.lost
        time = state.time + gained

        # A solver that failed inside a step (Newton diverged) has left an infinite error, which the
        # controller rejects; only a step that cannot shrink any further ends the run.
        result = RESULTS.promote(controller_result)
        result = RESULTS.where(keep, _worse(result, RESULTS.promote(solver_result)), result)
        # Nor can one that was refused for its error, where there is no shorter one.
        stuck = ~(size > 0) | ~(keep | (size < state.size))
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, result)
        result = RESULTS.where(keep & jnp.isinf(time + size), RESULTS.came_to_rest, result)

        y = where(keep, y, state.y)
        return FlowState(
            step=state.step + keep.astype(jnp.int32),
            time=jnp.where(keep, time, state.time),
            loss=jnp.where(keep, self.loss(y), state.loss),
            result=_worse(state.result, result),
            y=y,
            rejected=state.rejected + (~keep).astype(jnp.int32),
            lost=jnp.where(keep, gained - (time - state.time), state.lost),
            size=size,
            span=jnp.where(keep, state.size, state.span),
            part=jnp.where(keep, state.size, state.span),
            previous_time=jnp.where(keep, state.time, state.previous_time),
            previous_loss=jnp.where(keep, state.loss, state.previous_loss),
            previous_y=where(keep, state.y, state.previous_y),
            # A jump that no step has been made from yet is still to come.
            made_jump=jnp.where(keep, jnp.asarray(made_jump), state.made_jump),
            solver_state=where(keep, solver_state, _rejected(state.solver_state, solver_state)),
            controller_state=controller_state,
        )

    def locate(
        self, state: FlowState, *, time: FloatScalar | None, loss: FloatScalar | None
    ) -> FlowState:
        """The state within the last step at exactly this time or loss."""
        if time is not None:
            return self.at_time(state, time)
        return self.at_loss(state, loss) if loss is not None else state

    def at_time(self, state: FlowState, time: FloatScalar) -> FlowState:
        """The state at a time within the last step, by stepping again at the solver's order."""
        time = jnp.clip(time, state.previous_time, state.time)
        part = jnp.clip(time - state.previous_time, 0, state.span)
        part = jnp.where(time < state.time, part, state.span)
        y = self._restep(state, part)
        return self._moved(state, time, part, y, self.loss(y))

    def at_loss(self, state: FlowState, level: FloatScalar) -> FlowState:
        """The state within the last step where the loss equals `level`, to rounding.

        The loss is solved for, not interpolated: a row at a level is as accurate as the steps.
        """
        # A level that was not reached has no place in this step: the end of the step stands in.
        level = jnp.maximum(level, state.loss)
        log_level = jnp.log(level)
        eps = jnp.finfo(level.dtype).eps

        def unfinished(carry):
            iteration, bracket, _, best, worse, _ = carry
            low, _, high, _ = bracket
            narrow = high - low <= 2 * eps * jnp.abs(high)
            # Rounding of the entries moves a small loss by more than its last digit: from there on
            # the row would only move within that noise.
            noisy = (worse >= _NOISY) & (best < jnp.sqrt(eps))
            return (iteration < _LOCATE_ITERATIONS) & ~(best <= 4 * eps) & ~noisy & ~narrow

        def improve(carry):
            iteration, (low, above_low, high, above_high), side, best, worse, found = carry
            # False position in the logarithm, with Illinois' halving of an end that stays. The
            # slope along the flow is no guide: steps that suppress stiff modes do not resolve it.
            secant = high - above_high * (high - low) / (above_high - above_low)
            inside = (secant > low) & (secant < high)
            part = jnp.where(inside, secant, (low + high) / 2)
            y = self._restep(state, part)
            loss = self.loss(y)
            distance = jnp.log(loss) - log_level
            is_low = distance > 0
            again = jnp.where(is_low, side > 0, side < 0)
            kept = jnp.where(again, 0.5, 1).astype(distance.dtype)
            bracket = (
                jnp.where(is_low, part, low),
                jnp.where(is_low, distance, above_low * kept),
                jnp.where(is_low, high, part),
                jnp.where(is_low, above_high * kept, distance),
            )
            side = jnp.where(is_low, 1, -1).astype(jnp.int32)
            off = jnp.abs(distance)
            better = off < best
            found = where(better, (part, y, loss), found)
            worse = jnp.where(better, 0, worse + 1).astype(jnp.int32)
            return iteration + 1, bracket, side, jnp.minimum(off, best), worse, found

        ends = jnp.log(state.previous_loss) - log_level, jnp.log(state.loss) - log_level
        none = jnp.zeros((), jnp.int32)
        start = (
            none,
            (jnp.zeros_like(state.span), ends[0], state.span, ends[1]),
            none,
            jnp.abs(ends[1]),
            none,
            (state.span, state.y, state.loss),
        )
        *_, (part, y, loss) = lax.while_loop(unfinished, improve, start)
        time = jnp.where(part < state.span, state.previous_time + part, state.time)
        # A level at or above the loss before the step is the state before the step.
        early = level >= state.previous_loss
        time = jnp.where(early, state.previous_time, time)
        part = jnp.where(early, 0, part)
        loss = jnp.where(early, state.previous_loss, loss)
        y = where(early, state.previous_y, y)
        return self._moved(state, time, part, y, loss)

    def _restep(self, state: FlowState, part: FloatScalar) -> Any:
        """Where the last step was after this part of its length."""
        terms, start, before = self._terms(), jnp.zeros_like(part), state.previous_y
        solver: Any = self.solver
        if hasattr(solver, "retake"):
            # Solvers that change with the step must take the one they took.
            y = solver.retake(terms, start, part, before, None, state.solver_state)
        else:
            # A jump makes solvers recompute what they would otherwise reuse from the step before.
            jump = jnp.asarray(True)
            y, *_ = solver.step(terms, start, part, before, None, state.solver_state, jump)
        return where(part <= 0, state.previous_y, y)

    def _moved(
        self, state: FlowState, time: FloatScalar, part: FloatScalar, y: Any, loss: FloatScalar
    ) -> FlowState:
        fields = (time, part, y, loss)
        return eqx.tree_at(lambda s: (s.time, s.part, s.y, s.loss), state, fields)

    def _error_order(self, terms: diffrax.ODETerm) -> Any:
        # `None` is for solvers of stochastic equations of unknown order, which these are not.
        return self.solver.error_order(terms)

    def _terms(self) -> diffrax.ODETerm:
        return diffrax.ODETerm(lambda t, y, args: self.field(y))


def first_step(size: FloatScalar, speed: FloatScalar) -> FloatScalar:
    """A hundredth of the time in which the field would move the state by its own size.

    The controller corrects it at once. Zero has no size: one stands for it.
    """
    return 0.01 * jnp.where(size > 0, size, 1) / jnp.where(speed > 0, speed, 1)


def _worse(first: RESULTS, second: RESULTS) -> RESULTS:
    return RESULTS.where(first == RESULTS.successful, second, first)


def _rejected(kept: Any, attempted: Any) -> Any:
    """The solver's state after a rejected step, with what that has cost where it counts."""
    return kept.rejected(attempted) if hasattr(kept, "rejected") else kept
