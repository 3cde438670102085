"""Which moment a run has reached, whether it is over, and why."""

from typing import Any

import jax
import jax.numpy as jnp

from factorflow._dynamics import AbstractState
from factorflow._dynamics.base import where
from factorflow._results import RESULTS
from factorflow._spec import RunSpec

__all__ = ["before_end", "count_checks", "crossed", "ended", "final_state", "over"]

# `Stop` declares plain numbers; inside a trace they are arrays, which `Any` leaves room for.


def crossed(observed_at: str, state: AbstractState, level) -> jax.Array:
    """Whether a row's loss, time or step has been reached; the end is not known in advance."""
    if observed_at == "end":
        return jnp.asarray(False)
    if observed_at == "loss":
        return state.loss <= level
    return (state.time if observed_at == "time" else state.step) >= level


def _holds(spec: RunSpec, state: AbstractState) -> tuple[jax.Array, jax.Array]:
    stop: Any = spec.stop
    never = jnp.asarray(False)
    loss = never if stop.loss is None else state.loss <= stop.loss
    gradient = never
    if stop.gradient_norm is not None:
        norm = spec.dynamics.gradient_norm(spec.problem, spec.factorization, state)
        gradient = norm <= stop.gradient_norm
    return loss, gradient


def count_checks(spec: RunSpec, state: AbstractState, passed: jax.Array) -> jax.Array:
    """How many checks of loss or gradient norm in a row have held."""
    stop: Any = spec.stop
    if stop.loss is None and stop.gradient_norm is None:
        return passed
    loss, gradient = _holds(spec, state)
    counted = jnp.where(loss | gradient, passed + 1, 0)
    if stop.every == 1:
        return counted
    return jnp.where(state.step % stop.every == 0, counted, passed)


def ended(spec: RunSpec, state: AbstractState, passed: jax.Array) -> jax.Array:
    """Whether any limit is reached, or the run cannot go on."""
    stop: Any = spec.stop
    found = (state.step >= stop.max_steps) | ~jnp.isfinite(state.loss)
    found = found | (state.result != RESULTS.successful)
    if stop.loss is not None or stop.gradient_norm is not None:
        found = found | (passed >= stop.patience)
    if stop.max_time is not None:
        found = found | (state.time >= stop.max_time)
    return found


def over(spec: RunSpec, state: AbstractState, passed: jax.Array, level) -> jax.Array:
    """Whether the run has ended short of this level, and so of all that follow."""
    return ended(spec, state, passed) & ~crossed(spec.observed_at, state, level)


def final_state(
    spec: RunSpec, state: AbstractState, passed: jax.Array, located: AbstractState | None
):
    """The end of the run, located exactly for a flow, and why it ended.

    `located` is what the last row has found; at the end observed as a row, the end itself.
    """
    stop: Any = spec.stop
    dynamics = spec.dynamics
    result = RESULTS.observations_complete
    result = RESULTS.where(state.step >= stop.max_steps, RESULTS.step_limit_reached, result)
    loss_held, gradient_held = _holds(spec, state)
    done = passed >= stop.patience
    result = RESULTS.where(done & gradient_held, RESULTS.gradient_norm_reached, result)
    if stop.max_time is not None:
        late = state.time >= stop.max_time
        result = RESULTS.where(late, RESULTS.time_limit_reached, result)
        at_time = dynamics.locate(spec.problem, spec.factorization, state, time=stop.max_time)
        state = where(late, at_time, state)
        # Within the same step the loss may be reached only after the time limit.
        loss_held = loss_held & (state.loss <= stop.loss) if stop.loss is not None else loss_held
    if stop.loss is not None and stop.every == stop.patience == 1:
        # Where time may end it first, the end is found in two steps.
        row_is_end = spec.observed_at == "end" and stop.max_time is None
        if located is None or not (spec.ends_at_level or row_is_end):
            located = dynamics.locate(spec.problem, spec.factorization, state, loss=stop.loss)
        state = where(done & loss_held, located, state)
    result = RESULTS.where(done & loss_held, RESULTS.loss_reached, result)
    result = RESULTS.where(state.result == RESULTS.successful, result, state.result)
    return state, RESULTS.where(jnp.isfinite(state.loss), result, RESULTS.loss_nonfinite)


def before_end(spec: RunSpec, times: jax.Array, state: AbstractState, result: RESULTS) -> jax.Array:
    """Which rows of a flow do not lie beyond its end, in the step that overshot it."""
    slack = 8 * jnp.finfo(state.loss.dtype).eps
    if spec.observed_at == "end":
        return jnp.ones(times.shape, bool)
    if spec.observed_at != "loss":
        return times <= state.time * (1 + slack)
    last = state.loss
    if spec.stop.loss is not None:
        # Located only up to the rounding of time; the level that ended the run is itself reached.
        at_level = result == RESULTS.loss_reached
        last = jnp.where(at_level, jnp.minimum(last, spec.stop.loss), last)
    return spec.levels >= last * (1 - slack)
