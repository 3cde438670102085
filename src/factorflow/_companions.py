"""Which other runs a run is compared with before it is believed.

Companions take other steps, start where rounding might have put the run, and round what they
measure once more, or are in double precision: an error of either kind that moves a number by more
than the tolerance shows.
Some can be followed in one batch with the run itself; others must know its rows first, to be
observed at the same moments.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._balance import is_balanced
from factorflow._compare import Lane
from factorflow._dynamics import AbstractDynamics, GradientDescent, GradientFlow
from factorflow._dynamics.perturbation import moved_by_rounding
from factorflow._factorization import DeepMatrix, balanced_factors
from factorflow._observe import Stop
from factorflow._results import result_name
from factorflow._spec import RunSpec, as_arrays

__all__ = ["Companion", "SecondLook", "afterwards", "at_once", "once_more", "starts_alike"]

# The flow beside a descent needs hundreds of steps; a stalled one must end all the same. Other
# companions get this many times the steps of the run, for smaller ones of their own.
_FLOW_STEPS = 5_000
_MORE_STEPS, _FEW_STEPS = 30, 1_000
# By how much, in units of the last place of the largest entry, at most: an operation rounds by half
# of one, and of several draws the one that matters most counts.
_ROUNDING_ULPS = 2.0
# Counters are 32 bits wide.
_MOST_STEPS = 2**31 - 1
# Random numbers of the perturbed starts: of the first companion, of the finer one, and of the flow
# beside a descent.
_FIRST, _FINER, _FLOW = range(1, 4)


class Companion(NamedTuple):
    """A run to compare with; `kind` is the name of its error in the evidence."""

    kind: str
    spec: RunSpec


class SecondLook(NamedTuple):
    """Where the first companions did not agree: finer ones, and ones from the run's own start.

    **Attributes:**

    - `finer`: in the order of the first ones; may be empty.
    - `unmoved`: one for every `counts[i]` of the first ones, in their order.
    """

    finer: list[Companion]
    unmoved: list[Companion]
    counts: list[int]


def at_once(spec: RunSpec) -> list[Companion]:
    """Companions that need not know how the run goes."""
    if not _is_early(spec):
        return []
    cheap: Any = spec.dynamics.companion()
    beside = _with(spec, cheap)
    ended = dataclasses.replace(beside, goes_on=jnp.zeros_like(spec.goes_on))
    return _beside(Companion("companion_error", ended), _FIRST)


def afterwards(spec: RunSpec, run: Lane, certify: str) -> list[Companion]:
    """Those observed at the run's own moments; none where it has reached no row."""
    if _is_early(spec) or not np.any(run.trajectory.reached):
        return []
    planned = _of(spec, run, certify, finer=False)
    return [one for companion, seed in planned for one in _beside(companion, seed)]


def once_more(spec: RunSpec, run: Lane, certify: str) -> SecondLook:
    """What is followed where the first companions did not agree."""
    again = _of(spec, run, certify, finer=True)
    known = spec.dynamics.companion() is not None
    return SecondLook(
        [moved for one, _ in again for moved in _beside(one, _FINER)] if known else [],
        # They round as the run does, down to entries that should be zero.
        [_rounded(companion, beside=True) for companion, _ in again],
        [len(_ways(companion, seed)) for companion, seed in again],
    )


def starts_alike(spec: RunSpec) -> bool:
    """Whether companions of the run's own dynamics start where the run does.

    In single precision they do, where there is one in double precision: it shows what rounding has
    decided.
    """
    return spec.dynamics.companion() is None and not _is_double(spec)


def _is_early(spec: RunSpec) -> bool:
    """Whether its companions need not know where its rows are."""
    return spec.dynamics.companion() is not None and spec.observed_at not in ("step", "end")


def _ways(companion: Companion, seed: int | None) -> tuple[bool, ...]:
    """For each start of a companion whether it is mirrored.

    If its start is moved by about the run's own error, in the same direction, the two agree and the
    error is hidden; a second start on the other side shows it. In balanced charts errors are far
    smaller than that; but a sign that grows from zero is that of its perturbation.
    """
    spec = companion.spec
    signs = any(measure.error == "exact" for measure in spec.measures)
    twice = seed is not None and (signs or not spec.dynamics.balanced)
    return (False, True) if twice else (False,)


def _beside(companion: Companion, seed: int | None) -> list[Companion]:
    """The companion from starts beside the run's own, drawn from this seed; from its own if none.

    Single precision would drown small singular values if it rounded what it measures; double
    precision beside it does not.
    """
    if seed is None:
        return [_rounded(companion) if _is_double(companion.spec) else companion]
    return [_moved(companion, seed, way) for way in _ways(companion, seed)]


def _of(spec: RunSpec, run: Lane, certify: str, finer: bool) -> list[tuple[Companion, int | None]]:
    """Companions from the run's own start, each with the seed of its perturbation, if any."""
    dynamics: Any = spec.dynamics
    cheap = dynamics.companion()
    if cheap is not None:
        other = dynamics.refined() if finer else cheap
        return [(Companion("companion_error", _at_rows(_with(spec, other), run)), _FIRST)]
    refined = dynamics.refined()
    if certify == "cheap" or refined is None:
        return []
    refined = refined.resolving(spec.factorization, spec.factors)
    observed = _at_rows(_with(spec, refined), run)
    seed = None if starts_alike(spec) else _FIRST
    found: list[tuple[Companion, int | None]] = []
    if isinstance(dynamics, GradientDescent):
        found.append((Companion("companion_error", _twice_the_steps(observed)), seed))
        flow = _flow(spec, run)
        if flow is not None:
            found.append((Companion("flow_error", flow), _FLOW))
        observed = _at_rows(spec, run)
    else:
        found.append((Companion("companion_error", observed), seed))
        observed = _with(observed, dynamics)
    if not _is_double(spec):
        found.append((Companion("wider_dtype_error", _wider(observed)), None))
    return found


def _with(spec: RunSpec, dynamics: AbstractDynamics) -> RunSpec:
    dtype = jax.tree.leaves(spec.factors)[0].dtype
    return eqx.tree_at(lambda s: s.dynamics, spec, as_arrays(dynamics, dtype))


def _moved(companion: Companion, seed: int, mirrored: bool) -> Companion:
    kind, spec = _rounded(companion)
    with jax.enable_x64(_is_double(spec)):
        factors = moved_by_rounding(spec.factors, spec.dynamics.balanced, seed, mirrored)
    return Companion(kind, eqx.tree_at(lambda s: s.factors, spec, factors))


def _rounded(companion: Companion, beside: bool = False) -> Companion:
    """With products that are rounded once more before they are measured."""
    kind, spec = companion
    dtype = jax.tree.leaves(spec.factors)[0].dtype
    with jax.enable_x64(_is_double(spec)):
        size = _ROUNDING_ULPS * jnp.asarray([1.0, float(beside)], dtype) * jnp.finfo(dtype).eps
    return Companion(kind, eqx.tree_at(lambda s: s.rounding, spec, size))


def _is_double(spec: RunSpec) -> bool:
    return jax.tree.leaves(spec.factors)[0].dtype == jnp.float64


def _at_rows(spec: RunSpec, run: Lane) -> RunSpec:
    """Observed where the run's rows are: a flow at its times or losses, descent at its steps.

    Beyond the last row that the run has reached nothing is asked for, and it ends there.
    """
    rows = run.trajectory
    observed_at, levels = spec.observed_at, np.asarray(spec.levels)
    steps = int(np.asarray(run.witness.run["steps"]))
    given: Any = spec.stop.max_steps  # a number, or an array in a prepared run
    most = min(max(int(given), _MORE_STEPS * steps + _FEW_STEPS), _MOST_STEPS)
    stop = eqx.tree_at(lambda s: s.max_steps, spec.stop, jnp.asarray(most, jnp.int32))
    if observed_at != "end":
        # Its last row ends it. A limit that has ended the run might come before.
        stop = _moot(stop)
    limited = spec.limited
    if not spec.dynamics.continuous:
        # Descent passes levels; its rows lie where it then was.
        if observed_at == "end":
            stop = spec.stop
        elif observed_at == "loss":
            levels = np.asarray(run.witness.rows["loss"])
        elif observed_at == "time":
            # A quarter of a step before: sums round, and may be of twice as many steps.
            quarter = 0.25 / np.maximum(np.asarray(rows.steps), 1)
            levels = np.asarray(rows.times) * (1 - quarter)
    elif observed_at == "step" or (
        observed_at == "end"
        and result_name(rows.result) not in ("loss_reached", "time_limit_reached")
    ):
        # The same number of steps of another size ends elsewhere.
        observed_at, levels = "time", np.asarray(rows.times)
        stop, limited = as_arrays(Stop(max_steps=most), levels.dtype), False
    with jax.enable_x64(_is_double(spec)):
        return dataclasses.replace(
            spec,
            observed_at=observed_at,
            levels=jnp.asarray(_filled(levels, rows.reached), spec.levels.dtype)
            if observed_at == spec.observed_at
            else jnp.asarray(_filled(levels, rows.reached)),
            stop=stop,
            limited=limited,
            goes_on=jnp.asarray(False),
        )


def _moot(stop: Stop) -> Stop:
    """Without limits but that of steps; those that are given stay, as numbers never met."""
    found = stop
    for name, never in (("loss", 0.0), ("gradient_norm", 0.0), ("max_time", np.inf)):
        given: Any = getattr(stop, name)
        if given is not None:
            value = jnp.full_like(given, never)
            found = eqx.tree_at(lambda s, name=name: getattr(s, name), found, value)
    return found


def _filled(levels: np.ndarray, reached: Any) -> np.ndarray:
    """The last level that was reached, in place of those that were not."""
    there = np.flatnonzero(np.asarray(reached))
    last = levels[there[-1]]
    return np.where(np.asarray(reached), levels, last)


def _twice_the_steps(spec: RunSpec) -> RunSpec:
    stop: Any = spec.stop
    most = jnp.minimum(stop.max_steps, _MOST_STEPS // 2) * 2
    doubled = eqx.tree_at(lambda s: s.max_steps, stop, most)
    levels = 2 * spec.levels if spec.observed_at == "step" else spec.levels
    return eqx.tree_at(lambda s: (s.stop, s.levels), spec, (doubled, levels))


def _wider(spec: RunSpec) -> RunSpec:
    """The run in double precision, balanced anew where its start was balanced up to rounding."""
    with jax.enable_x64(True):
        wide = as_arrays(spec, jnp.float64)
        fz, factors = spec.factorization, spec.factors
        if jax.tree.leaves(wide.factors)[0].dtype == jax.tree.leaves(factors)[
            0
        ].dtype or not is_balanced(fz, factors):
            return wide
        # Rounding to single precision has made the start slightly unbalanced: from there even the
        # exact flow would leave the balanced one that is meant.
        assert isinstance(fz, DeepMatrix)
        rebalanced = balanced_factors(fz, fz.compose(wide.factors))
        return eqx.tree_at(lambda s: s.factors, wide, rebalanced)


def _flow(spec: RunSpec, run: Lane) -> RunSpec | None:
    """The gradient flow from the same start, where the run's rows have losses or times."""
    wide = _wider(spec)
    with jax.enable_x64(True):
        flow = GradientFlow().resolve(wide.problem, wide.factorization, wide.factors)
        rows = run.trajectory
        if spec.observed_at == "loss":
            observed_at, levels = "loss", np.asarray(run.witness.rows["loss"])
        else:
            observed_at, levels = "time", np.asarray(rows.times)
        levels = _filled(levels, rows.reached)
        if not np.all(np.isfinite(levels)):
            return None  # steps of this optimizer have no time
        return dataclasses.replace(
            wide,
            dynamics=as_arrays(flow, jnp.float64),
            levels=jnp.asarray(levels, jnp.float64),
            observed_at=observed_at,
            stop=as_arrays(Stop(max_steps=_FLOW_STEPS), jnp.float64),
            limited=False,
            goes_on=jnp.asarray(False),
        )
