"""Companion runs: what a trajectory is compared with before it is believed."""

import contextlib
import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics import AbstractDynamics, GradientDescent, GradientFlow, is_balanced
from factorflow._evidence import Comparison, judge
from factorflow._factorization import DeepMatrix, balanced_factors
from factorflow._follow import follow
from factorflow._names import named
from factorflow._observe import Stop
from factorflow._spec import RunSpec, as_arrays, structure
from factorflow._trajectory import Trajectory

__all__ = ["CERTIFY", "Certify", "follow_certified"]

Certify = Literal["cheap", "full"]
CERTIFY = ("cheap", "full")

# The flow beside a descent needs hundreds of steps; a stalled one must end all the same.
_FLOW_STEPS = 5_000


class _Companion(NamedTuple):
    kind: str
    spec: RunSpec


def follow_certified(
    specs: Sequence[RunSpec], width: int = 2, certify: str = "cheap"
) -> Trajectory:
    """Runs of one structure with their certificates, stacked on a leading axis.

    Companions of the same structure are further lanes of the same batch; others are batches of
    their own.
    """
    named("certify", certify, CERTIFY)
    companions = [_companions(spec, certify) for spec in specs]
    groups: dict[Hashable, list[tuple[int, _Companion | None]]] = {}
    main = structure(specs[0])
    groups[main] = [(index, None) for index in range(len(specs))]
    for index, several in enumerate(companions):
        for companion in several:
            groups.setdefault(structure(companion.spec), []).append((index, companion))

    trajectory: Any = None
    witness: Any = None
    compared: list[list[Comparison]] = [[] for _ in specs]
    for name, members in groups.items():
        lanes = [specs[index] if c is None else c.spec for index, c in members]
        # Widths of batches are few, so that batches of a structure share their compilation.
        padded = max(2, width * -(-len(members) // len(specs)))
        with _precision(lanes[0]):
            batch, record = follow(lanes, padded)
        for lane, (index, companion) in enumerate(members):
            if companion is None:
                continue
            rows = jax.tree.map(lambda leaf, lane=lane: leaf[lane], record.rows)
            compared[index].append(
                Comparison(companion.kind, rows, batch.times[lane], batch.reached[lane])
            )
        if name == main:
            trajectory, witness = jax.tree.map(lambda leaf: leaf[: len(specs)], (batch, record))
    certificates = []
    for index, spec in enumerate(specs):
        lane, record = jax.tree.map(
            lambda leaf, i=index: np.asarray(leaf[i]), (trajectory, witness)
        )
        certificates.append(
            judge(spec, lane.reached, lane.times, lane.result, record, compared[index])
        )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *certificates)
    return eqx.tree_at(lambda t: t.certificate, trajectory, stacked)


def _companions(spec: RunSpec, certify: str) -> list[_Companion]:
    dynamics: Any = spec.dynamics
    cheap = dynamics.companion()
    if cheap is not None:
        return [_Companion("companion_error", _with(spec, cheap))]
    if certify == "cheap":
        return []
    found = []
    refined = dynamics.refined()
    if refined is not None:
        found.append(_Companion("companion_error", _with(spec, refined)))
    if isinstance(dynamics, GradientDescent) and refined is not None:
        found[0] = _Companion("companion_error", _twice_the_steps(found[0].spec))
        flow = _flow(spec)
        if flow is not None:
            found.append(_Companion("flow_error", flow))
    if found and jax.tree.leaves(spec.factors)[0].dtype == jnp.float32:
        found.append(_Companion("wider_dtype_error", _wider(spec)))
    return found


def _with(spec: RunSpec, dynamics: AbstractDynamics) -> RunSpec:
    dtype = jax.tree.leaves(spec.factors)[0].dtype
    return eqx.tree_at(lambda s: s.dynamics, spec, as_arrays(dynamics, dtype))


def _twice_the_steps(spec: RunSpec) -> RunSpec:
    stop: Any = spec.stop
    # Counters are 32 bits wide.
    most = jnp.minimum(stop.max_steps, jnp.iinfo(jnp.int32).max // 2) * 2
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


def _flow(spec: RunSpec) -> RunSpec | None:
    """The gradient flow from the same start, where coordinates are known that can be trusted."""
    if spec.observed_at == "end":
        return None  # where the run will end is not known before it has
    wide = _wider(spec)
    with jax.enable_x64(True):
        flow = GradientFlow().resolve(wide.problem, wide.factorization, wide.factors)
        if flow.companion() is None:
            return None
        levels, observed_at = wide.levels, spec.observed_at
        if observed_at == "step":
            rate: Any = wide.dynamics
            if not eqx.is_array(rate.optimizer):
                return None
            levels, observed_at = levels * rate.optimizer, "time"
        return dataclasses.replace(
            wide,
            dynamics=as_arrays(flow, jnp.float64),
            levels=jnp.asarray(levels, jnp.float64),
            observed_at=observed_at,
            stop=as_arrays(Stop(max_steps=_FLOW_STEPS), jnp.float64),
            limited=False,
            measures=(),
        )


def _precision(spec: RunSpec) -> Any:
    double = jax.tree.leaves(spec.factors)[0].dtype == jnp.float64
    return jax.enable_x64(True) if double else contextlib.nullcontext()
