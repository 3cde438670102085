"""Following runs: the traced loop, and batches of it."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from factorflow._certificate import Certificate
from factorflow._clock import Clock
from factorflow._compiler import compiler_options
from factorflow._dynamics import AbstractState
from factorflow._dynamics.base import where
from factorflow._ending import before_end, count_checks, crossed, ended, final_state, over
from factorflow._interrupt import check
from factorflow._measure import Snapshot
from factorflow._observed import measured, view
from factorflow._product import Factored
from factorflow._results import RESULTS
from factorflow._settings import own_settings
from factorflow._spec import RunSpec
from factorflow._threads import one_blas_thread
from factorflow._trajectory import Trajectory
from factorflow._witness import Witness, sign_of, witness_of, witness_row

__all__ = ["follow"]

# Attempts between two looks whether a flow gets on: with all of them rejected it never will.
_LOOK_EVERY = 256
# What a row, or a look, costs beside a step.
_ROW_COST = 4
# Compiled code is left about as often as this, in seconds: Ctrl-C is only heard between.
_PIECE = 0.2
_FIRST_BUDGET, _LARGEST_BUDGET = 64, 2**30


class _Run(eqx.Module):
    """Runs on their way, between two pieces of work; everything but `row` and `tried` in lanes."""

    row: jax.Array
    # Attempted steps since the last row, by the lanes that still need some.
    tried: jax.Array
    state: AbstractState
    passed: jax.Array
    clock: Clock
    # What the last row has found, and all rows so far.
    located: AbstractState
    rows: "_Rows"
    # The steps at the last look whether the runs get on.
    seen: jax.Array
    initial_sign: jax.Array


def begun(spec: RunSpec) -> _Run:
    """Traced runs at their start; the spec, as everywhere here, has a leading axis of lanes."""
    state, initial_sign = _lanes(_start)(spec)
    none = jnp.zeros((), jnp.int32)
    passed = _lanes(count_checks)(spec, state, jnp.zeros(state.step.shape, jnp.int32))
    lanes, count = spec.levels.shape
    clock = _lanes(Clock.begun)(state)
    row = eqx.filter_eval_shape(_lanes(_row), spec, state, jnp.isfinite(state.loss), clock, state)
    return _Run(
        row=none,
        tried=none,
        state=state,
        passed=passed,
        clock=clock,
        located=state,
        rows=jax.tree.map(lambda s: jnp.zeros((lanes, count, *s.shape[1:]), s.dtype), row),
        seen=state.step,
        initial_sign=initial_sign,
    )


def proceeded(spec: RunSpec, run: _Run, budget: jax.Array) -> _Run:
    """The runs after about `budget` more attempted steps each, or at their end.

    A loop over rows around a loop of steps, which runs while any lane needs it, and a lane that
    does not is left unchanged by its dynamics: cheaper than `vmap` of a loop, which would copy and
    select every array of the state at every step. Measures are evaluated at rows only, outside any
    batched branch, because batched branches run both sides. Where the work is interrupted changes
    no bit of it.
    """
    levels = _all_levels(spec)
    end = levels.shape[1]

    def unfinished(carry):
        run, left = carry
        return (run.row < end) & (left > 0)

    def work(carry):
        run, left = carry
        level = levels[:, jnp.minimum(run.row, end - 1)]
        active = _lanes(_unfinished)(spec, run.state, run.passed, level)
        most = jnp.minimum(left, _LOOK_EVERY - run.tried % _LOOK_EVERY) if _looks(spec) else left

        def step(carry):
            done, state, passed, clock, active = carry
            due = active & _lanes(Clock.due)(clock, state)
            # In a branch of the whole batch, which descent seldom takes.
            clock = lax.cond(jnp.any(due), _tick, lambda clock, *_: clock, clock, state, due)
            return done + 1, *_lanes(_advance)(spec, state, passed, clock, active, level)

        start = jnp.zeros_like(left), run.state, run.passed, run.clock, active
        done, state, passed, clock, active = lax.while_loop(
            lambda c: jnp.any(c[-1]) & (c[0] < most), step, start
        )
        run = eqx.tree_at(
            lambda r: (r.tried, r.state, r.passed, r.clock),
            run,
            (run.tried + done, state, passed, clock),
        )
        run = lax.cond(jnp.any(active), look, observe, run, active, level)
        return run, left - done - _ROW_COST

    def observe(run, active, level):
        del active
        located, found = _lanes(_observe)(
            spec, run.state, run.passed, run.clock, level, run.located
        )
        rows = jax.tree.map(
            # Without the row that only leads to the end.
            lambda all_rows, one: all_rows.at[:, run.row].set(one, mode="drop"),
            run.rows,
            found,
        )
        # What a run that has ended has not crossed, it never will, nor any level after that: on to
        # the last row.
        done = jnp.all(_lanes(over)(spec, run.state, run.passed, level))
        row = jnp.where(done, jnp.maximum(run.row + 1, end - 1), run.row + 1)
        return eqx.tree_at(
            lambda r: (r.row, r.tried, r.located, r.rows),
            run,
            (row, jnp.zeros_like(run.tried), located, rows),
        )

    def look(run, active, level):
        del level
        if not _looks(spec):
            return run
        due = active & (run.tried % _LOOK_EVERY == 0)
        stuck = due & (run.state.step == run.seen)
        result = _lanes(_or_rejected)(stuck, run.state.result)
        seen = jnp.where(due, run.state.step, run.seen)
        return eqx.tree_at(lambda r: (r.state.result, r.seen), run, (result, seen))

    run, _ = lax.while_loop(unfinished, work, (run, budget))
    return run


def finished(spec: RunSpec, run: _Run) -> tuple[Trajectory, Witness]:
    """What the runs leave behind."""
    return _lanes(_finish)(spec, run.state, run.passed, run.located, run.initial_sign, run.rows)


def _all_levels(spec: RunSpec) -> jax.Array:
    if not spec.limited or spec.observed_at == "end":
        return spec.levels
    # The last row need not be the end: a level that is never reached goes on to the limit.
    never = {"loss": -jnp.inf, "time": jnp.inf, "step": jnp.iinfo(jnp.int32).max}
    last = spec.levels[:, -1]
    further = jnp.where(spec.goes_on, jnp.asarray(never[spec.observed_at], last.dtype), last)
    return jnp.concatenate([spec.levels, further[:, None]], axis=1)


def _or_rejected(stuck: jax.Array, result: RESULTS) -> RESULTS:
    return RESULTS.where(stuck, RESULTS.every_step_rejected, result)


def _looks(spec: RunSpec) -> bool:
    # Every step of descent is one that `Stop(max_steps=)` counts.
    return spec.dynamics.continuous


def _lanes(function: Callable) -> Callable:
    return eqx.filter_vmap(function)


def _start(spec: RunSpec) -> tuple[AbstractState, jax.Array]:
    state = spec.dynamics.init(spec.problem, spec.factorization, spec.factors, spec.key)
    # Constants such as `RESULTS.successful` are no JAX arrays, and would not get an axis of lanes.
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf) if eqx.is_array_like(leaf) else leaf, state)
    product = Factored(spec.factorization, spec.factors)
    return state, sign_of(Snapshot(spec.problem, product))


def _unfinished(spec: RunSpec, state: AbstractState, passed: jax.Array, level: jax.Array):
    return ~crossed(spec.observed_at, state, level) & ~ended(spec, state, passed)


def _tick(clock: Clock, state: AbstractState, due: jax.Array) -> Clock:
    ticked = _lanes(Clock.ticked)(clock, state)
    return _lanes(where)(due, ticked, clock)


def _advance(
    spec: RunSpec,
    state: AbstractState,
    passed: jax.Array,
    clock: Clock,
    active: jax.Array,
    level: jax.Array,
):
    start, before = state, state.step
    state = spec.dynamics.advance(spec.problem, spec.factorization, state, active)
    clock = clock.stepped(start, state)
    if spec.stop.loss is not None or spec.stop.gradient_norm is not None:
        # Nothing new to check after a rejected step of a flow.
        moved = state.step != before
        passed = jnp.where(moved, count_checks(spec, state, passed), passed)
    return state, passed, clock, _unfinished(spec, state, passed, level)


def _observe(
    spec: RunSpec,
    state: AbstractState,
    passed: jax.Array,
    clock: Clock,
    level: jax.Array,
    before: AbstractState,
) -> "tuple[AbstractState, _Rows]":
    """The state at a level; `before` is that of the row before."""
    if spec.observed_at == "end":
        located, _ = final_state(spec, state, passed, None)
        return located, _row(spec, located, jnp.isfinite(state.loss), clock, state)
    reached = crossed(spec.observed_at, state, level) & jnp.isfinite(state.loss)
    known = jnp.asarray(False)
    if spec.ends_at_level:
        # No row lies beyond the end; the last row, at no level, is then the end itself.
        level = jnp.maximum(level, jnp.asarray(spec.stop.loss))
        # What the row before has found is not looked for again: level 0 asks for nothing.
        known = (before.step == state.step) & (before.loss <= level * (1 + _SAME))
        level = jnp.where(known, 0, level)
    target = {} if spec.observed_at == "step" else {spec.observed_at: level}
    located = spec.dynamics.locate(spec.problem, spec.factorization, state, **target)
    located = where(known, before, located)
    return located, _row(spec, located, reached, clock, state)


def _row(
    spec: RunSpec, located: AbstractState, reached: jax.Array, clock: Clock, end: AbstractState
) -> "_Rows":
    snapshot = view(spec, located)
    witness = witness_row(spec.dynamics, snapshot, spec.factors, located, spec.measures)
    values, noise = measured(spec, located)
    return _Rows(
        reached=reached,
        times=located.time,
        steps=located.step,
        witness=witness | clock.read(located, end),
        measures=values,
        noise=noise,
    )


class _Rows(eqx.Module):
    reached: jax.Array
    times: jax.Array
    steps: jax.Array
    witness: dict[str, jax.Array]
    measures: dict[str, jax.Array]
    noise: dict[str, jax.Array]


def _finish(
    spec: RunSpec,
    state: AbstractState,
    passed: jax.Array,
    located: AbstractState,
    initial_sign: jax.Array,
    rows: _Rows,
) -> tuple[Trajectory, Witness]:
    state, result = final_state(spec, state, passed, located)
    reached = rows.reached
    if spec.dynamics.continuous:
        # A step may overshoot the end and cross levels that lie beyond it.
        reached = reached & before_end(spec, rows.times, state, result)

    def mask(values):
        shape = (-1,) + (1,) * (values.ndim - 1)
        blank = -1 if jnp.issubdtype(values.dtype, jnp.integer) else jnp.nan
        return jnp.where(reached.reshape(shape), values, jnp.asarray(blank, values.dtype))

    end = view(spec, state)
    trajectory = Trajectory(
        times=mask(rows.times),
        steps=mask(rows.steps),
        levels=spec.levels,
        measures=jax.tree.map(mask, rows.measures),
        reached=reached,
        factors=end.factors,
        result=result,
        certificate=Certificate.unjudged(reached),
        counters={"loss": state.loss, "time": state.time, **state.stats()},
        integrator=spec.dynamics.integrator_name,
        observed_at=spec.observed_at,
        dims={measure.name: measure.dims for measure in spec.measures},
    )
    run = witness_of(spec.factorization, spec.factors, end.factors, initial_sign, state.step)
    return trajectory, Witness(rows.witness, run, rows.noise)


# Losses this near, relatively, are the same level.
_SAME = 1e-6
# Stands for an array among the leaves that are compiled in.
_ARRAY = object()
# With fewer numbers in a lane, kernels over two lanes are so small that they compile to other code.
_FEW_NUMBERS = 64
# Structures that stay compiled: at some 60 MB each, a long sweep must let go of what it has done.
_KEPT = 12


@functools.lru_cache(maxsize=_KEPT)
def _compiled(treedef: Any, constants: tuple) -> "_Code":
    """The code for specs of this structure, as functions of their arrays."""

    def of_arrays(function, **options):
        def traced(arrays, *rest):
            given = iter(arrays)
            leaves = [next(given) if leaf is _ARRAY else leaf for leaf in constants]
            return function(jax.tree.unflatten(treedef, leaves), *rest)

        return jax.jit(traced, compiler_options=compiler_options(), **options)

    return _Code(of_arrays(begun), of_arrays(proceeded, donate_argnums=1), of_arrays(finished), {})


class _Code(NamedTuple):
    begin: Callable
    proceed: Callable
    finish: Callable
    # Attempts that take about as long as a piece of work may, by the number of lanes.
    budgets: dict[int, int]


def _call(spec: RunSpec) -> tuple[Trajectory, Witness]:
    """Follow stacked runs to their end, leaving compiled code often enough to be interrupted."""
    leaves, treedef = jax.tree.flatten(spec)
    constants = tuple(_ARRAY if eqx.is_array(leaf) else leaf for leaf in leaves)
    code = _compiled(treedef, constants)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    lanes, count = spec.levels.shape
    rows = count + (spec.limited and spec.observed_at != "end")
    budget = code.budgets.get(lanes, _FIRST_BUDGET)
    run = code.begin(arrays)
    while True:
        check()
        start = time.perf_counter()
        run = code.proceed(arrays, run, np.int32(budget))
        if int(run.row) >= rows:
            break
        took = time.perf_counter() - start
        # The first call compiles, too, and seems slow: budgets recover by factors of four.
        faster = _PIECE / max(took, _PIECE / 4)
        budget = int(np.clip(budget * faster, _FIRST_BUDGET // 8, _LARGEST_BUDGET))
        code.budgets[lanes] = budget
    return code.finish(arrays, run)


@own_settings()
@one_blas_thread()
def follow(specs: Sequence[RunSpec], width: int = 2) -> tuple[Trajectory, Witness]:
    """Runs of one structure, with a leading axis, and their records; each lane stops on its own.

    Fewer runs than `width` are padded: batches of one width share a compilation, and a single run
    gets the bits it has in any batch. Lanes are bitwise independent of the width from two on, from
    four on where a lane has few numbers (measured for 2 to 256; a tensor of 16 numbers still
    differs in its last digit from 16 lanes on): one lane alone, and kernels of fewer than eight
    numbers, compile to other code. Dynamics that are to be followed alone always are.
    """
    dynamics: Any = specs[0].dynamics
    if dynamics.alone and len(specs) > 1:
        runs = [follow([spec], 1) for spec in specs]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *runs)
    few = sum(leaf.size for leaf in jax.tree.leaves(specs[0].factors)) < _FEW_NUMBERS
    narrowest = 4 if few and not dynamics.continuous else 2
    least = 1 if dynamics.alone else max(width, narrowest)
    padded = [*specs, *[specs[0]] * (least - len(specs))]
    stacked = jax.tree.map(_stacked, *padded)
    batched = jax.block_until_ready(_call(stacked))
    return jax.tree.map(lambda leaf: leaf[: len(specs)], jax.device_get(batched))


def _stacked(*leaves: Any) -> Any:
    if not eqx.is_array(leaves[0]):
        return leaves[0]
    if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        data = _stacked(*[jax.random.key_data(leaf) for leaf in leaves])
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaves[0]))
    if leaves[0].weak_type:
        return jnp.stack(leaves)  # NumPy knows no such thing
    # In NumPy, and put where it belongs: `jnp` would compile a kernel for every shape of either.
    return jax.device_put(np.stack([np.asarray(leaf) for leaf in leaves]))
