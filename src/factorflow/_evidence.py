"""What a run records for its certificate, row by row, and how the record is judged."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._certificate import DOUBTS, REFUTING, VERDICTS, Certificate
from factorflow._dynamics import AbstractDynamics
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._linalg import singular_values
from factorflow._measure import Snapshot
from factorflow._problem import razin_cohen_parameters
from factorflow._results import failed
from factorflow._spec import RunSpec
from factorflow._types import Factors, FloatScalar
from factorflow.reference import bounds_for, escape_horizon

__all__ = ["Comparison", "Witness", "judge", "witness_of", "witness_row"]

# Entries of the product that companions are compared on.
_SAMPLES = 256
# Sizes up to which the smallest singular value of a factor is watched.
_WATCHED_DIM = 16
# How near companions must be: of flows, relative to the largest entry; of descent, whose error is
# first order in its step and drawn as a curve, one per cent.
_FLOW_TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
_DESCENT_TOLERANCE = 1e-2
_ENERGY = {"float64": 1e-9, "float32": 1e-3}
# The drift of what is conserved, over the larger of the imbalance and the smallest squared singular
# value of a factor: below this it decides nothing. At depth 2 the entry then errs by 1e-6.
_DRIFT = 1e-3
# Entries beyond this share of the horizon that the drift allows are not trusted.
_HORIZON = 0.3
# Rounding alone moves a conserved quantity by about eps times its scale per step, in a random walk.
# A drift this many times larger comes from the step size.
_ROUNDING_MARGIN = 30.0


class Witness(eqx.Module):
    """The record: `rows` holds an array per name with rows first, `run` a scalar per name."""

    rows: dict[str, Any]
    run: dict[str, Any]


class Comparison(eqx.Module):
    """A companion's rows: `kind` is the name of its error in the evidence."""

    kind: str = eqx.field(static=True)
    rows: dict[str, Any]
    times: Any
    reached: Any


def witness_row(
    dynamics: AbstractDynamics, snapshot: Snapshot, start: Factors, loss: FloatScalar, state: Any
) -> dict[str, jax.Array]:
    """What one row leaves behind."""
    fz = snapshot.factorization
    assert fz is not None
    zero = jnp.zeros((), loss.dtype)
    drift, smallest = zero, jnp.full((), jnp.inf, loss.dtype)
    if not dynamics.balanced:
        now, before = fz.conserved(snapshot.factors), fz.conserved(start)
        drift = _largest([a - b for a, b in zip(now, before, strict=True)], zero)
        smallest = _smallest_square(fz, snapshot.factors, smallest)
    energy = getattr(state, "energy_defect", jnp.full((), jnp.nan, loss.dtype))
    return {
        "sample": snapshot.product.at(jnp.asarray(_places(snapshot.problem.shape))),
        "loss": loss,
        "sign": sign_of(snapshot),
        "drift": drift,
        "smallest": smallest,
        "energy": jnp.asarray(energy, loss.dtype),
    }


def witness_of(
    fz: AbstractFactorization, start: Factors, end: Factors, initial_sign: FloatScalar, steps: Any
) -> dict[str, jax.Array]:
    """What a whole run leaves behind."""

    def square(factors):
        return jnp.max(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(factors)]))

    zero = jnp.zeros((), initial_sign.dtype)
    now, before = fz.conserved(end), fz.conserved(start)
    return {
        "initial_sign": initial_sign,
        "gap": _largest(before, zero),
        "drift": _largest([a - b for a, b in zip(now, before, strict=True)], zero),
        "initial_scale": square(start),
        "scale": square(end),
        "steps": steps,
    }


def sign_of(snapshot: Snapshot) -> jax.Array:
    """Sign of the determinant; 0 where the product is not square."""
    shape = snapshot.problem.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        return jnp.zeros((), snapshot.loss.dtype)
    return snapshot.log_determinant[0]


def judge(
    spec: RunSpec, reached, times, result, witness: Witness, companions: list[Comparison]
) -> Certificate:
    """The certificate of one run, from its record and those of its companions."""
    dtype = np.asarray(times).dtype
    rows = {name: np.asarray(value) for name, value in witness.rows.items()}
    run = {name: np.asarray(value).item() for name, value in witness.run.items()}
    reached = np.asarray(reached)
    continuous = spec.dynamics.continuous
    tolerance = _FLOW_TOLERANCE[dtype.name] if continuous else _DESCENT_TOLERANCE

    # A single factor conserves nothing, and may change the sign of its determinant.
    layered = isinstance(spec.factorization, DeepMatrix) and spec.factorization.depth > 1
    balanced = layered and run["gap"] <= 1e2 * np.finfo(dtype).eps * run["initial_scale"]
    flipped = reached & (rows["sign"] * run["initial_sign"] < 0)
    # Once lost, always lost: a sign that returns does not restore the flow.
    contradicted = balanced & (np.cumsum(flipped) > 0) & reached
    violated = _violations(spec, rows, reached)
    errors = {c.kind: _distance(rows["sample"], c, tolerance) for c in companions}
    time_errors = [_time_error(times, c) for c in companions if c.kind == "companion_error"]

    doubts = _Doubts(reached)
    doubts.add("not_reached", ~reached)
    doubts.add("determinant_sign", contradicted)
    doubts.add("static_bound", np.cumsum(violated) > 0)
    moved = {"flow_error": "flow", "wider_dtype_error": "wider_dtype"}
    for kind, error in errors.items():
        # Half the step moves a curve by half of its error.
        share = 2 if kind == "companion_error" and not continuous else 1
        doubts.add(moved.get(kind, "companion"), share * error > tolerance)
    for error in errors.values():
        # A companion that did not get there says nothing.
        doubts.add("unconfirmed", reached & np.isnan(error))
    if continuous and not spec.dynamics.balanced and not balanced_is_moot(rows):
        lost = reached & ~(rows["drift"] <= _DRIFT * _balance_known(run, rows))
        doubts.add("drift", np.cumsum(lost) > 0)
        if balanced:
            doubts.add("horizon", _beyond_horizon(spec, rows))
    energy = np.isfinite(rows["energy"])
    allowed = np.maximum(_ENERGY[dtype.name], _unresolved_energy(spec, rows, times))
    doubts.add("energy", energy & ~(rows["energy"] <= allowed))
    if not companions:
        doubts.add("unconfirmed", reached)

    largest = {kind: _largest_finite(error[reached]) for kind, error in errors.items()}
    # Where balance holds by construction, the drift of the reported factors says nothing.
    explained = _ROUNDING_MARGIN * np.finfo(dtype).eps * run["scale"] * math.sqrt(1 + run["steps"])
    rounding = not spec.dynamics.balanced and run["drift"] <= explained
    code = _verdict(doubts.codes, reached, errors, bool(rounding), bool(failed(result)))
    evidence = {
        "balancedness_gap": run["gap"],
        "balancedness_drift": run["drift"],
        "determinant_sign_changed": bool(np.any(flipped)),
        "bound_violations": int(np.sum(violated)),
        "energy_defect": _largest_finite(rows["energy"][reached]),
        "tolerance": tolerance,
        "companion_error": largest.get("companion_error", np.nan),
        "wider_dtype_error": largest.get("wider_dtype_error", np.nan),
        "flow_error": largest.get("flow_error", np.nan),
        "companion_time_error": _largest_finite(np.concatenate([[np.nan], *time_errors])),
    }
    return Certificate(
        code=np.asarray(code, np.int32),
        doubt_codes=doubts.codes,
        contradicted=contradicted | (np.cumsum(violated) > 0) & reached,
        evidence={name: np.asarray(value) for name, value in evidence.items()},
    )


class _Doubts:
    """The first doubt about every row."""

    def __init__(self, reached: np.ndarray):
        self.codes: Any = np.zeros(reached.shape, np.int32)

    def add(self, name: str, rows: np.ndarray) -> None:
        code = tuple(DOUBTS).index(name)
        self.codes = np.where((self.codes == 0) & rows, code, self.codes).astype(np.int32)


def _verdict(codes, reached, errors, rounding: bool, has_failed: bool) -> int:
    names = tuple(DOUBTS)
    if reached.any() and not codes[reached].any() and not has_failed:
        return VERDICTS.index("flow_faithful")
    refuted = reached & np.isin(codes, [names.index(name) for name in REFUTING])
    if not refuted.any():
        return VERDICTS.index("unverified")
    # What moves the curve more is what limits it.
    if "wider_dtype_error" in errors and "companion_error" in errors:
        by_step, by_rounding = (
            np.nanmax(errors[kind][refuted], initial=0)
            for kind in ("companion_error", "wider_dtype_error")
        )
        rounding = bool(by_rounding > by_step)
    return VERDICTS.index("rounding_limited" if rounding else "step_limited")


def _distance(sample: np.ndarray, companion: Comparison, tolerance: float) -> np.ndarray:
    """Relative distance row by row; NaN where the companion has no row."""
    other = np.asarray(companion.rows["sample"])
    size = np.max(np.abs(sample), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.max(np.abs(sample - other), axis=1) / size
    return np.where(np.asarray(companion.reached), error, np.nan)


def _time_error(times, companion: Comparison) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(np.asarray(companion.times, float) / np.asarray(times, float) - 1)


def _violations(spec: RunSpec, rows, reached) -> np.ndarray:
    """Where the static bound on the entry fails although the determinant has its sign."""
    parameters = razin_cohen_parameters(spec.problem)
    if parameters is None:
        return np.zeros(reached.shape, bool)
    dim, z, z_prime, eps = parameters
    applies = reached & (rows["sign"] * np.sign(z * z_prime) >= 0) & (z * z_prime != 0)
    if not applies.any():
        return applies
    bound = bounds_for(dim, z, z_prime, eps)[0]
    holds = np.asarray(bound.holds(rows["loss"], rows["sample"][:, 0]))
    return applies & ~holds


def _balance_known(run, rows) -> np.ndarray:
    """What the drift must be small beside: the imbalance, or singular values far above it.

    Where the determinant has changed its sign since the row before, they were not: on the way a
    singular value was zero, and the imbalance alone decided when.
    """
    before = np.concatenate([[run["initial_sign"]], rows["sign"][:-1]])
    apart = np.where(rows["sign"] * before < 0, 0, rows["smallest"])
    return np.maximum(run["gap"], apart)


def balanced_is_moot(rows) -> bool:
    """Whether nothing is known about the smallest singular values."""
    return bool(np.all(~np.isfinite(rows["smallest"])))


def _beyond_horizon(spec: RunSpec, rows) -> np.ndarray:
    fz = spec.factorization
    known = razin_cohen_parameters(spec.problem) is not None
    if not known or not isinstance(fz, DeepMatrix) or fz.depth < 3:
        return np.zeros(rows["drift"].shape, bool)
    with np.errstate(divide="ignore"):
        horizon = np.asarray(escape_horizon(rows["drift"], fz.depth))
    return np.abs(rows["sample"][:, 0]) > _HORIZON * horizon


def _unresolved_energy(spec: RunSpec, rows, times) -> np.ndarray:
    r"""The part of the energy defect that rounding makes, where the chart has no residuals.

    Observed entries round by eps times their size; the dissipation multiplies the square of that
    by its largest weight, $L \sigma_1^{2 - 2/L}$. In the residual chart nothing cancels; it holds
    to the end where the first entry is unbounded.
    """
    fz, parameters = spec.factorization, razin_cohen_parameters(spec.problem)
    if not isinstance(fz, DeepMatrix):
        return np.zeros(rows["loss"].shape)
    entries = np.max(np.abs(rows["sample"]), axis=1)
    rounding = np.finfo(entries.dtype).eps * np.maximum(1, _observed_size(spec))
    weight = fz.depth * entries ** (2 - 2 / fz.depth)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        unresolved = weight * np.asarray(times) * rounding**2 / rows["loss"]
    if spec.dynamics.integrator_name != "spectral" or parameters is None or parameters[3] != 0:
        return unresolved
    _, z, z_prime, _ = parameters
    return np.where(np.where(rows["sign"] < 0, -1, 1) * z * z_prime > 0, 0, unresolved)


def _observed_size(spec: RunSpec) -> float:
    values = np.asarray(getattr(spec.problem, "values", np.ones(1)))
    return float(np.max(np.abs(values)))


def _largest_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else math.nan


def _largest(matrices: Any, zero: jax.Array) -> jax.Array:
    leaves = jax.tree.leaves(list(matrices))
    return jnp.max(jnp.stack([zero, *(jnp.max(jnp.abs(leaf)) for leaf in leaves)]))


def _smallest_square(fz: AbstractFactorization, factors: Factors, unknown: jax.Array) -> jax.Array:
    if not isinstance(fz, DeepMatrix) or max(fz.widths) > _WATCHED_DIM:
        return unknown
    if min(fz.widths) < max(fz.widths):
        return unknown
    return jnp.min(jnp.stack([singular_values(factor)[-1] for factor in factors])) ** 2


def _places(shape: tuple[int, ...]) -> np.ndarray:
    """All entries of a small product, the first of them first, or a fixed draw of a large one."""
    if math.prod(shape) <= _SAMPLES:
        return np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), -1)
    draw = np.random.default_rng(0)
    columns = [draw.integers(size, size=_SAMPLES) for size in shape]
    places = np.stack(columns, -1)
    places[0] = 0
    return places
