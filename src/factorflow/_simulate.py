"""The one numerical entry point."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from factorflow._certificate import Certificate, certify_from_invariants
from factorflow._dynamics import AbstractDynamics, AbstractState, is_solver
from factorflow._dynamics.base import where
from factorflow._factorization import AbstractFactorization
from factorflow._measure import Measure, Snapshot, as_measures
from factorflow._observe import DEFAULT_MAX_STEPS, AbstractObservation, Stop
from factorflow._problem import AbstractProblem
from factorflow._results import RESULTS, failed
from factorflow._trajectory import Trajectory
from factorflow._types import Factors, RandomKey

__all__ = ["RunSpec", "core", "follow", "prepare", "simulate"]


class RunSpec(eqx.Module):
    """A run with every number as an array and everything else static: what is compiled.

    Two runs with equal structure and shapes share one compilation, and can be stacked.
    """

    problem: AbstractProblem
    factorization: AbstractFactorization
    dynamics: AbstractDynamics
    factors: Factors
    levels: jax.Array
    stop: Stop
    key: RandomKey
    observed_at: str = eqx.field(static=True)
    # Whether the run goes on to a limit of `Stop` after its last row.
    limited: bool = eqx.field(static=True)
    measures: tuple[Measure, ...] = eqx.field(static=True)

    @property
    def ends_at_level(self) -> bool:
        """Whether rows are at losses and the run ends at one, the first time it is reached."""
        at_once = self.stop.every == self.stop.patience == 1
        return self.observed_at == "loss" and self.stop.loss is not None and at_once


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


def prepare(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    dynamics: AbstractDynamics,
    factors: Factors,
    *,
    observe: AbstractObservation,
    stop: Stop,
    measures: Any,
    key: RandomKey | None = None,
) -> RunSpec:
    """Validate a run and turn every number in it into an array of the factors' dtype."""
    factors = jax.tree.map(jnp.asarray, factors)
    dtype = _check_factors(problem, factorization, factors)
    dynamics.check(problem, factorization, factors)
    observed_at, levels = observe.resolve(stop)
    if key is None:
        if getattr(dynamics, "batch_size", None) or getattr(dynamics, "label_noise", None):
            raise ValueError("Minibatches and label noise are random: give simulate a `key=`.")
        key = jax.random.key(0)
    limited = any(
        limit is not None
        for limit in (stop.loss, stop.gradient_norm, stop.max_steps, stop.max_time)
    )
    if stop.max_steps is None:
        stop = eqx.tree_at(
            lambda s: s.max_steps, stop, DEFAULT_MAX_STEPS, is_leaf=lambda leaf: leaf is None
        )
    return RunSpec(
        problem=as_arrays(problem, dtype),
        factorization=factorization,
        dynamics=as_arrays(dynamics, dtype),
        factors=factors,
        levels=jnp.asarray(levels, jnp.int32 if observed_at == "step" else dtype),
        stop=as_arrays(stop, dtype),
        key=key,
        observed_at=observed_at,
        limited=limited,
        measures=as_measures(measures),
    )


def core(spec: RunSpec) -> Trajectory:
    """The traced runs of a stacked spec: a scan over rows around a loop of steps.

    Everything has a leading axis of lanes. The loop runs while any lane needs it, and a lane that
    does not is left unchanged by its dynamics: cheaper than `vmap` of a loop, which would copy and
    select every array of the state at every step. Measures are evaluated once per row, outside any
    branch, because batched branches run both sides.
    """

    def unfinished(carry, levels):
        return jnp.any(_lanes(_unfinished)(spec, *carry, levels))

    def row(carry, levels):
        carry, _ = carry
        state, passed = lax.while_loop(
            lambda c: unfinished(c, levels), lambda c: _lanes(_advance)(spec, *c, levels), carry
        )
        located, rows = _lanes(_observe)(spec, state, levels)
        return ((state, passed), located), rows

    state, initial_sign = _lanes(_start)(spec)
    passed = jnp.zeros(state.step.shape, jnp.int32)
    carry = state, _lanes(_count_checks)(spec, state, passed)
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
    return ~_crossed(spec.observed_at, state, level) & ~_ended(spec.stop, state, passed)


def _advance(spec: RunSpec, state: AbstractState, passed: jax.Array, level: jax.Array):
    active = _unfinished(spec, state, passed, level)
    before = state.step
    state = spec.dynamics.advance(spec.problem, spec.factorization, state, active)
    if spec.stop.loss is None and spec.stop.gradient_norm is None:
        return state, passed
    # Nothing new to check after a rejected step of a flow.
    moved = state.step != before
    return state, jnp.where(moved, _count_checks(spec, state, passed), passed)


def _observe(
    spec: RunSpec, state: AbstractState, level: jax.Array
) -> "tuple[AbstractState, _Rows]":
    reached = _crossed(spec.observed_at, state, level) & jnp.isfinite(state.loss)
    if spec.ends_at_level:
        # No row lies beyond the end; the last row, at no level, is then the end itself.
        level = jnp.maximum(level, spec.stop.loss)
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
    state, result = _final(spec, state, passed, located)
    reached = rows.reached
    if spec.dynamics.continuous:
        # A step may overshoot the end and cross levels that lie beyond it.
        reached = reached & _before_end(spec, rows, state, result)

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
        certificate=_certificate(spec, end, initial_sign, rows.signs, reached),
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


def as_arrays(tree: Any, dtype) -> Any:
    """Every number in a pytree as an array; floating ones in `dtype`."""

    def convert(leaf):
        if isinstance(leaf, bool) or callable(leaf):
            return leaf
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    def leaf_of(leaf):
        return convert(leaf) if eqx.is_array_like(leaf) else leaf

    # A solver's numbers are its own business: some must be Python's.
    return jax.tree.map(leaf_of, tree, is_leaf=is_solver)


def _check_factors(problem, factorization, factors) -> np.dtype:
    expected = jax.tree.map(lambda struct: tuple(struct.shape), factorization.shapes())
    actual = jax.tree.map(lambda leaf: tuple(leaf.shape), factors)
    if expected != actual:
        raise ValueError(
            f"factors must have the factorization's shapes {expected}, got {actual}. Initializers "
            "give the right ones: `initializer(factorization, key)`."
        )
    if factorization.shape != problem.shape:
        raise ValueError(
            f"The factorization's product has shape {factorization.shape}, the problem's has "
            f"{problem.shape}; they must agree."
        )
    leaves = jax.tree.leaves(factors)
    dtype = leaves[0].dtype
    for leaf in leaves:
        if leaf.dtype != dtype or not jnp.issubdtype(dtype, jnp.floating):
            found = sorted({str(leaf.dtype) for leaf in leaves})
            raise ValueError(f"factors must share one floating dtype, got {found}.")
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise ValueError("factors hold NaN or infinity; start from finite numbers.")
    if all(bool(jnp.any(leaf != 0)) for leaf in leaves):
        size = float(jnp.max(jnp.abs(factorization.compose(factors))))
        if size < float(jnp.finfo(dtype).tiny):
            raise ValueError(
                f"The product of these factors underflows {dtype}: its largest entry is "
                f"{size:.3g}. Use a larger initialization scale or a wider dtype."
            )
    elif len(leaves) > 1 and sum(not bool(jnp.any(leaf != 0)) for leaf in leaves) > 1:
        raise ValueError(
            "Two or more factors are zero, a stationary point that no dynamics leaves. Use a small "
            "positive initialization scale."
        )
    return dtype


def _crossed(observed_at: str, state: AbstractState, level) -> jax.Array:
    if observed_at == "loss":
        return state.loss <= level
    return (state.time if observed_at == "time" else state.step) >= level


def _holds(spec: RunSpec, state: AbstractState) -> tuple[jax.Array, jax.Array]:
    stop, never = spec.stop, jnp.asarray(False)
    loss = never if stop.loss is None else state.loss <= stop.loss
    gradient = never
    if stop.gradient_norm is not None:
        norm = spec.dynamics.gradient_norm(spec.problem, spec.factorization, state)
        gradient = norm <= stop.gradient_norm
    return loss, gradient


def _count_checks(spec: RunSpec, state: AbstractState, passed: jax.Array) -> jax.Array:
    stop = spec.stop
    if stop.loss is None and stop.gradient_norm is None:
        return passed
    loss, gradient = _holds(spec, state)
    counted = jnp.where(loss | gradient, passed + 1, 0)
    if stop.every == 1:
        return counted
    return jnp.where(state.step % stop.every == 0, counted, passed)


def _ended(stop: Stop, state: AbstractState, passed: jax.Array) -> jax.Array:
    ended = (state.step >= stop.max_steps) | ~jnp.isfinite(state.loss)
    ended = ended | (state.result != RESULTS.successful)
    if stop.loss is not None or stop.gradient_norm is not None:
        ended = ended | (passed >= stop.patience)
    if stop.max_time is not None:
        ended = ended | (state.time >= stop.max_time)
    return ended


def _final(spec: RunSpec, state: AbstractState, passed: jax.Array, located: AbstractState):
    """The end of the run, located exactly for a flow, and why it ended."""
    stop, dynamics = spec.stop, spec.dynamics
    result = RESULTS.observations_complete
    result = RESULTS.where(state.step >= stop.max_steps, RESULTS.step_limit_reached, result)
    loss_held, gradient_held = _holds(spec, state)
    done = passed >= stop.patience
    result = RESULTS.where(done & gradient_held, RESULTS.gradient_norm_reached, result)
    if stop.max_time is not None:
        over = state.time >= stop.max_time
        result = RESULTS.where(over, RESULTS.time_limit_reached, result)
        at_time = dynamics.locate(spec.problem, spec.factorization, state, time=stop.max_time)
        state = where(over, at_time, state)
        # Within the same step the loss may be reached only after the time limit.
        loss_held = loss_held & (state.loss <= stop.loss) if stop.loss is not None else loss_held
    if stop.loss is not None and stop.every == stop.patience == 1:
        if not spec.ends_at_level:
            located = dynamics.locate(spec.problem, spec.factorization, state, loss=stop.loss)
        state = where(done & loss_held, located, state)
    result = RESULTS.where(done & loss_held, RESULTS.loss_reached, result)
    result = RESULTS.where(state.result == RESULTS.successful, result, state.result)
    return state, RESULTS.where(jnp.isfinite(state.loss), result, RESULTS.loss_nonfinite)


def _before_end(spec: RunSpec, rows: _Rows, state: AbstractState, result: RESULTS) -> jax.Array:
    slack = 8 * jnp.finfo(state.loss.dtype).eps
    if spec.observed_at != "loss":
        return rows.times <= state.time * (1 + slack)
    last = state.loss
    if spec.stop.loss is not None:
        # Located only up to the rounding of time; the level that ended the run is itself reached.
        at_level = result == RESULTS.loss_reached
        last = jnp.where(at_level, jnp.minimum(last, spec.stop.loss), last)
    return spec.levels >= last * (1 - slack)


def _sign(snapshot: Snapshot) -> jax.Array:
    shape = snapshot.problem.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        return jnp.zeros((), snapshot.loss.dtype)
    return snapshot.log_determinant[0]


def _certificate(spec: RunSpec, end: Snapshot, initial_sign, signs, reached) -> Certificate:
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
        steps=end.step,
        initial_sign=initial_sign,
        signs=signs,
        reached=reached,
    )
