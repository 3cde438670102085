"""The one numerical entry point."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from factorflow._certificate import Certificate, certify_from_invariants
from factorflow._dynamics import AbstractDynamics, AbstractState
from factorflow._ending import before_end, count_checks, crossed, ended, final_state
from factorflow._factorization import AbstractFactorization
from factorflow._measure import Snapshot
from factorflow._observe import AbstractObservation, Stop
from factorflow._problem import AbstractProblem
from factorflow._results import RESULTS, failed
from factorflow._spec import RunSpec, prepare
from factorflow._trajectory import Trajectory
from factorflow._types import Factors, RandomKey

__all__ = ["core", "follow", "simulate"]


def simulate(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    dynamics: AbstractDynamics,
    factors: Factors,
    *,
    observe: AbstractObservation,
    stop: Stop,
    measures: Any = ("loss",),
    key: RandomKey | None = None,
    certify: Literal["cheap"] = "cheap",
    throw: bool = True,
    progress_meter: Callable[[str], None] | None = None,
) -> Trajectory:
    """Follow `factors` under `dynamics` on `problem`, and observe.

    **Arguments:**

    - `problem`: what is fitted, e.g. `Completion`.
    - `factorization`: how factors compose, e.g. `DeepMatrix`.
    - `dynamics`: `GradientDescent`, `GradientFlow` or `EndToEndFlow`.
    - `factors`: where to start. Their dtype is the dtype of the run.
    - `observe`: `AtLosses`, `AtTimes`, `AtSteps` or `LogSpaced`; one row per slot.
    - `stop`: a `Stop`. The run also ends once every row is observed if `stop` names no limit.
    - `measures`: names, `Measure`s, or functions of a `Snapshot`.
    - `key`: a random key, needed by minibatches and label noise only.
    - `certify`: `"cheap"` checks the invariants of the run itself.
    - `throw`: raise on non-finite values, solver failure and underflow; `False` leaves the result
        code to the caller.
    - `progress_meter`: called with a line before and after the run, e.g. `print`.

    **Returns:** a `Trajectory`.

    **Raises:** `ValueError` for input that cannot be run, `RuntimeError` for a run that failed.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=3)
        >>> trajectory = ff.simulate(
        ...     problem, fz, ff.GradientDescent(1e-2), ff.Identity(product_scale=1e-2)(fz),
        ...     observe=ff.AtLosses([1e-1, 1e-2]), stop=ff.Stop(loss=1e-2),
        ...     measures=["loss", "effective_rank"])
        >>> trajectory.result_name
        'loss_reached'

        ```
    """
    if certify != "cheap":
        raise ValueError(f"certify must be 'cheap', got {certify!r}.")
    spec = prepare(
        problem,
        factorization,
        dynamics,
        factors,
        observe=observe,
        stop=stop,
        measures=measures,
        key=key,
    )
    if progress_meter is not None:
        progress_meter(f"following {len(spec.levels)} rows")
    # Arrays without dimensions, not NumPy scalars, which an enumeration cannot read.
    trajectory = jax.tree.map(lambda leaf: np.asarray(leaf[0]), follow([spec]))
    if progress_meter is not None:
        progress_meter(f"ended: {trajectory.result_name}")
    if throw and failed(trajectory.result):
        steps, time, loss = (trajectory.stats[name] for name in ("num_steps", "time", "loss"))
        raise RuntimeError(
            f"{RESULTS[trajectory.result]} It ended after {int(steps)} steps at time "
            f"{float(time):.6g} with loss {float(loss):.6g}; `throw=False` returns the rows so far."
        )
    return trajectory


def core(spec: RunSpec) -> Trajectory:
    """The traced runs of a stacked spec: a scan over rows around a loop of steps.

    Everything has a leading axis of lanes. The loop runs while any lane needs it, and a lane that
    does not is left unchanged by its dynamics: cheaper than `vmap` of a loop, which would copy and
    select every array of the state at every step. Measures are evaluated once per row, outside any
    branch, because batched branches run both sides.
    """

    def row(carry, levels):
        carry, _ = carry
        active = _lanes(_unfinished)(spec, *carry, levels)
        state, passed, _ = lax.while_loop(
            lambda c: jnp.any(c[-1]), lambda c: _lanes(_advance)(spec, *c, levels), (*carry, active)
        )
        located, rows = _lanes(_observe)(spec, state, levels)
        return ((state, passed), located), rows

    state, initial_sign = _lanes(_start)(spec)
    passed = jnp.zeros(state.step.shape, jnp.int32)
    carry = state, _lanes(count_checks)(spec, state, passed)
    levels = spec.levels
    if spec.limited:
        # The last row need not be the end: a level that is never reached goes on to the limit.
        never = {"loss": -jnp.inf, "time": jnp.inf, "step": jnp.iinfo(jnp.int32).max}
        levels = jnp.pad(levels, ((0, 0), (0, 1)), constant_values=never[spec.observed_at])
    (carry, located), rows = lax.scan(row, (carry, state), levels.T)
    # Lanes first, and without the row that only led to the end.
    rows = jax.tree.map(lambda leaf: jnp.moveaxis(leaf[: spec.levels.shape[1]], 0, 1), rows)
    return _lanes(_finish)(spec, *carry, located, initial_sign, rows)


def _lanes(function: Callable) -> Callable:
    return eqx.filter_vmap(function)


def _view(spec: RunSpec, state: AbstractState) -> Snapshot:
    return Snapshot(
        spec.problem,
        spec.dynamics.product(spec.factorization, state),
        factorization=spec.factorization,
        factors=lambda: spec.dynamics.factors(spec.factorization, state),
        time=state.time,
        step=state.step,
    )


def _start(spec: RunSpec) -> tuple[AbstractState, jax.Array]:
    state = spec.dynamics.init(spec.problem, spec.factorization, spec.factors, spec.key)
    # Constants such as `RESULTS.successful` are no JAX arrays, and would not get an axis of lanes.
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, state)
    return state, _sign(_view(spec, state))


def _unfinished(spec: RunSpec, state: AbstractState, passed: jax.Array, level: jax.Array):
    return ~crossed(spec.observed_at, state, level) & ~ended(spec, state, passed)


def _advance(
    spec: RunSpec, state: AbstractState, passed: jax.Array, active: jax.Array, level: jax.Array
):
    before = state.step
    state = spec.dynamics.advance(spec.problem, spec.factorization, state, active)
    if spec.stop.loss is not None or spec.stop.gradient_norm is not None:
        # Nothing new to check after a rejected step of a flow.
        moved = state.step != before
        passed = jnp.where(moved, count_checks(spec, state, passed), passed)
    return state, passed, _unfinished(spec, state, passed, level)


def _observe(
    spec: RunSpec, state: AbstractState, level: jax.Array
) -> "tuple[AbstractState, _Rows]":
    reached = crossed(spec.observed_at, state, level) & jnp.isfinite(state.loss)
    if spec.ends_at_level:
        # No row lies beyond the end; the last row, at no level, is then the end itself.
        level = jnp.maximum(level, jnp.asarray(spec.stop.loss))
    target = {} if spec.observed_at == "step" else {spec.observed_at: level}
    located = spec.dynamics.locate(spec.problem, spec.factorization, state, **target)
    snapshot = _view(spec, located)
    return located, _Rows(
        reached=reached,
        times=located.time,
        steps=located.step,
        losses=located.loss,
        signs=_sign(snapshot),
        measures={measure.name: measure(snapshot) for measure in spec.measures},
    )


class _Rows(eqx.Module):
    reached: jax.Array
    times: jax.Array
    steps: jax.Array
    losses: jax.Array
    signs: jax.Array
    measures: dict[str, jax.Array]


def _finish(
    spec: RunSpec,
    state: AbstractState,
    passed: jax.Array,
    located: AbstractState,
    initial_sign: jax.Array,
    rows: _Rows,
) -> Trajectory:
    state, result = final_state(spec, state, passed, located)
    reached = rows.reached
    if spec.dynamics.continuous:
        # A step may overshoot the end and cross levels that lie beyond it.
        reached = reached & before_end(spec, rows.times, state, result)

    def mask(values):
        shape = (-1,) + (1,) * (values.ndim - 1)
        blank = -1 if jnp.issubdtype(values.dtype, jnp.integer) else jnp.nan
        return jnp.where(reached.reshape(shape), values, jnp.asarray(blank, values.dtype))

    end = _view(spec, state)
    return Trajectory(
        times=mask(rows.times),
        steps=mask(rows.steps),
        levels=spec.levels,
        measures=jax.tree.map(mask, rows.measures),
        reached=reached,
        factors=end.factors,
        result=result,
        certificate=_certificate(spec, end, state.step, initial_sign, rows.signs, reached),
        stats={"loss": state.loss, "time": state.time, **state.stats()},
        observed_at=spec.observed_at,
        dims={measure.name: measure.dims for measure in spec.measures},
    )


_compiled = eqx.filter_jit(core)


def follow(specs: Sequence[RunSpec], width: int = 2) -> Trajectory:
    """The trajectories of runs of one structure, with a leading axis; each lane stops on its own.

    Fewer runs than `width` are padded: batches of one width share a compilation, and a single run
    gets the bits it has in any batch (lanes are bitwise independent of the width from two on,
    measured for 2 to 256, while one lane alone compiles to other code).
    """
    padded = [*specs, *[specs[0]] * (max(width, 2) - len(specs))]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *padded
    )
    batched = jax.block_until_ready(_compiled(stacked))
    return jax.tree.map(lambda leaf: leaf[: len(specs)], jax.device_get(batched))


def _sign(snapshot: Snapshot) -> jax.Array:
    shape = snapshot.problem.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        return jnp.zeros((), snapshot.loss.dtype)
    return snapshot.log_determinant[0]


def _certificate(
    spec: RunSpec, end: Snapshot, steps: jax.Array, initial_sign, signs, reached
) -> Certificate:
    before = spec.factorization.conserved(spec.factors)
    after = spec.factorization.conserved(end.factors)
    zero = jnp.zeros((), initial_sign.dtype)

    def square(factors):
        return jnp.max(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(factors)]))

    def size(matrices):
        return jnp.max(jnp.stack([zero, *(jnp.max(jnp.abs(matrix)) for matrix in matrices)]))

    drift = size([b - a for a, b in zip(before, after, strict=True)])
    return certify_from_invariants(
        gap=size(before),
        drift=drift,
        initial_scale=square(spec.factors),
        scale=square(end.factors),
        steps=steps,
        initial_sign=initial_sign,
        signs=signs,
        reached=reached,
    )
