"""How the record of a run is judged, beside those of its companions."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from factorflow._balance import BALANCE_ULPS
from factorflow._certificate import DOUBTS, REFUTING, VERDICTS, Certificate
from factorflow._compare import Comparison, Lane
from factorflow._factorization import DeepMatrix
from factorflow._problem import razin_cohen_parameters
from factorflow._results import failed
from factorflow._spec import RunSpec
from factorflow._witness import EVERY_ENTRY, LARGEST_PRODUCT
from factorflow.reference import bounds_for, escape_horizon

__all__ = ["Agreement", "agreement", "judge"]

# How near companions must be: of flows, relative to the largest entry; of descent, whose error is
# first order in its step and drawn as a curve, one per cent.
_FLOW_TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
_DESCENT_TOLERANCE = 1e-2
# Times that differ by more, relatively, are no matter of tolerances: from a perturbed start a run
# leaves an unstable set earlier by a fixed share of the time on it, the logarithm of 64 ulp or more
# over that of 2^52: a tenth. Of flows in double precision, and of others, whose errors are larger.
_CHANCE = {True: 1e-2, False: 3e-2}
# Where both have arrived, what the loss fell by on leaving counts by its share of a halving. Errors
# of descent and of single precision are no smaller there than at rows.
_SHARE = {True: 0.3, False: 1.0}
# The share of the tolerance within which two runs must agree, so that neither errs by more than it.
# What is read off vanishing singular values is rounding in both, and no nearer in one of them: less
# is allowed where there is one companion alone.
_MARGIN, _MARGIN_OF_MEASURES, _OF_A_SINGLE_ONE = 0.6, 0.5, 1 / 3
# What the flow itself shows of descent is all of its error, relative to the larger of two values
# that differ by as much as one per cent: which may be so much more than the true one.
_MARGIN_OF_FLOW = 0.98
# The drift of what is conserved, over the larger of the imbalance and the smallest squared singular
# value of a factor: below this it decides nothing. At depth 2 the entry then errs by 1e-6.
_DRIFT = 1e-3
# Entries beyond this share of the horizon that the drift allows are not trusted.
_HORIZON = 0.3
# Rounding alone moves a conserved quantity by about eps times its scale per step, in a random walk.
# A drift this many times larger comes from the step size.
_ROUNDING_MARGIN = 30.0
# That both sketches of a large product show less than half of an error, see `_witness`.
_MISSED = 3.1e-6


def tolerance_of(spec: RunSpec) -> float:
    """What the numbers of a trusted row hold to."""
    if not spec.dynamics.continuous:
        return _DESCENT_TOLERANCE
    return _FLOW_TOLERANCE[jax.tree.leaves(spec.factors)[0].dtype.name]


class Agreement(NamedTuple):
    """How near a companion must be: in time and in the product, in measures, and by its clock."""

    place: float
    measures: float
    clock: float


def agreement(spec: RunSpec, kind: str, kinds: Sequence[str]) -> Agreement:
    """How near a companion of this kind must be, where there are companions of these kinds."""
    tolerance = tolerance_of(spec)
    precise = _is_precise(spec)
    clock = _CHANCE[precise] * _SHARE[precise]
    if spec.dynamics.continuous:
        share = _OF_A_SINGLE_ONE if spec.dynamics.balanced else _MARGIN_OF_MEASURES
        return Agreement(tolerance * _MARGIN, tolerance * share, clock)
    if kind != "companion_error":
        # The flow itself shows the whole error, a wider dtype all of rounding's.
        shown = _MARGIN_OF_FLOW * tolerance
        return Agreement(shown, shown, clock)
    if "flow_error" in kinds:
        # What half the step can only guess at; it still tells what limits the run.
        return Agreement(np.inf, np.inf, clock)
    # Half the step moves a curve by half of its error, in the first order only.
    half = tolerance / 2 * _MARGIN
    return Agreement(half, half, clock)


def _is_precise(spec: RunSpec) -> bool:
    double = jax.tree.leaves(spec.factors)[0].dtype.name == "float64"
    return spec.dynamics.continuous and double


def judge(spec: RunSpec, lane: Lane, companions: list[Comparison], on_set) -> Certificate:
    """The certificate of one run, from its record and its distances from its companions.

    `on_set` flags the rows that only companions on the run's own invariant set confirm.
    """
    times, result = np.asarray(lane.trajectory.times), lane.trajectory.result
    dtype = times.dtype
    rows = {name: np.asarray(value) for name, value in lane.witness.rows.items()}
    run = {name: np.asarray(value).item() for name, value in lane.witness.run.items()}
    reached = np.asarray(lane.trajectory.reached)
    continuous = spec.dynamics.continuous
    tolerance = tolerance_of(spec)
    count = math.prod(spec.problem.shape)

    # A single factor conserves nothing, and may change the sign of its determinant.
    layered = isinstance(spec.factorization, DeepMatrix) and spec.factorization.depth > 1
    balanced = layered and (run["gap"] <= BALANCE_ULPS * np.finfo(dtype).eps * run["initial_scale"])
    flipped = reached & (rows["sign"] * run["initial_sign"] < 0)
    # Once lost, always lost: a sign that returns does not restore the flow.
    contradicted = balanced & (np.cumsum(flipped) > 0) & reached
    violated = _violations(spec, rows, reached)

    chance = _CHANCE[_is_precise(spec)]
    doubts = _Doubts(reached)
    doubts.add("not_reached", ~reached)
    doubts.add("determinant_sign", contradicted)
    doubts.add("static_bound", np.cumsum(violated) > 0)
    moved = {"flow_error": "flow", "wider_dtype_error": "wider_dtype"}
    measured = {measure.name: np.zeros(reached.shape, bool) for measure in spec.measures}
    kinds = [companion.kind for companion in companions]
    for companion in companions:
        near = agreement(spec, companion.kind, kinds)
        doubts.add(moved.get(companion.kind, "companion"), companion.product > near.place)
        # Two runs that never left a set differ in time by their tolerances only.
        late = (companion.time > max(chance, near.place)) | (companion.clock > near.clock)
        late &= ~np.asarray(on_set)
        # What has left its way once does not come back to it.
        doubts.add("chance", reached & (np.cumsum(reached & late) > 0))
        for name, error in companion.measures.items():
            measured[name] |= error > near.measures
    for companion in companions:
        # A companion that did not get there says nothing.
        doubts.add("unconfirmed", reached & np.isnan(companion.product))
    for companion in companions:
        doubts.add("time", companion.time > agreement(spec, companion.kind, kinds).place)
    if not companions or count > LARGEST_PRODUCT:
        doubts.add("unconfirmed", reached)
    doubts.add("level", reached & (_missed(spec, rows, times) > _MARGIN * tolerance))
    explained = _ROUNDING_MARGIN * np.finfo(dtype).eps * run["scale"] * math.sqrt(1 + run["steps"])
    # Rounding is another in every companion: one that agrees all the same has shown that it decides
    # nothing here, and so has one whose drift is another.
    rounded = rows["drift"] <= explained
    harmless = np.any([(c.apart | rounded) & ~(c.product > tolerance) for c in companions], axis=0)
    doubts.add("drift", _drifted(spec, lane) & ~harmless)
    if continuous and balanced and not spec.dynamics.balanced:
        doubts.add("horizon", _beyond_horizon(spec, rows))
    energy = np.isfinite(rows["energy"])
    # A step that crosses a kink of the loss misses the identity by more than it errs, but not by
    # more than is promised.
    allowed = np.maximum(tolerance, _unresolved_energy(spec, rows, times))
    doubts.add("energy", energy & ~(rows["energy"] <= allowed))
    doubts.add("measure", reached & np.any([*measured.values(), np.zeros(reached.shape)], axis=0))

    errors: dict[str, np.ndarray] = {}
    for companion in companions:
        known = errors.get(companion.kind, companion.product)
        errors[companion.kind] = np.fmax(known, companion.product)
    largest = {kind: _largest_finite(error[reached]) for kind, error in errors.items()}
    # Where balance holds by construction, the drift of the reported factors says nothing.
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
        "companion_time_error": _over(reached, [c.time for c in companions]),
        "measure_error": _over(reached, [e for c in companions for e in c.measures.values()]),
        "failure_probability": 0.0 if count <= EVERY_ENTRY else _MISSED,
    }
    return Certificate(
        code=np.asarray(code, np.int32),
        doubt_codes=doubts.codes,
        contradicted=contradicted | (np.cumsum(violated) > 0) & reached,
        on_invariant_set=np.asarray(on_set) & reached,
        measure_doubts=measured,
        evidence={name: np.asarray(value) for name, value in evidence.items()},
    )


def _drifted(spec: RunSpec, lane: Lane) -> NDArray[np.bool_]:
    """Rows from which on what gradient flow conserves has drifted so far that it might matter."""
    rows = lane.witness.rows
    reached = np.asarray(lane.trajectory.reached)
    if not spec.dynamics.continuous or spec.dynamics.balanced or _is_moot(rows):
        return np.zeros(reached.shape, bool)
    allowed = _DRIFT * _balance_known(lane.witness.run, rows)
    return reached & (np.cumsum(reached & ~(rows["drift"] <= allowed)) > 0)


def _missed(spec: RunSpec, rows, times) -> np.ndarray:
    """How far from its loss a row of a flow lies, relatively.

    Times have as many digits as anything. A flow that has waited for 1e16 of its own units of time
    passes a loss between two neighbouring ones.
    """
    if not spec.dynamics.continuous or spec.observed_at != "loss":
        return np.zeros(times.shape)
    missed = np.abs(rows["loss"] / np.asarray(spec.levels) - 1)
    # A level above that of the start is reached at once, as it is.
    return np.where(times > 0, missed, 0)


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
    holds = np.asarray(bound.holds(rows["loss"], rows["corner"]))
    return applies & ~holds


def _balance_known(run, rows) -> np.ndarray:
    """What the drift must be small beside: the imbalance, or singular values far above it.

    Where the determinant has changed its sign since the row before, they were not: on the way a
    singular value was zero, and the imbalance alone decided when.
    """
    before = np.concatenate([[run["initial_sign"]], rows["sign"][:-1]])
    apart = np.where(rows["sign"] * before < 0, 0, rows["smallest"])
    return np.maximum(run["gap"], apart)


def _is_moot(rows) -> bool:
    """Whether nothing is known about the smallest singular values."""
    return bool(np.all(~np.isfinite(rows["smallest"])))


def _beyond_horizon(spec: RunSpec, rows) -> np.ndarray:
    fz = spec.factorization
    known = razin_cohen_parameters(spec.problem) is not None
    if not known or not isinstance(fz, DeepMatrix) or fz.depth < 3:
        return np.zeros(rows["drift"].shape, bool)
    with np.errstate(divide="ignore"):
        horizon = np.asarray(escape_horizon(rows["drift"], fz.depth))
    return np.abs(rows["corner"]) > _HORIZON * horizon


def _unresolved_energy(spec: RunSpec, rows, times) -> np.ndarray:
    r"""The part of the energy defect that rounding makes, where the chart has no residuals.

    Observed entries round by eps times their size, which moves a loss by that over the residual;
    the dissipation multiplies the square of that by its largest weight, $L \sigma_1^{2 - 2/L}$. In
    the residual chart nothing cancels; it holds to the end where the first entry is unbounded.
    """
    fz, parameters = spec.factorization, razin_cohen_parameters(spec.problem)
    if not isinstance(fz, DeepMatrix):
        return np.zeros(rows["loss"].shape)
    entries = rows["largest"]
    rounding = np.finfo(entries.dtype).eps * np.maximum(1, _observed_size(spec))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        weight = fz.depth * entries ** (2 - 2 / fz.depth)
        unresolved = weight * np.asarray(times) * rounding**2 / rows["loss"]
        digit = np.finfo(entries.dtype).eps * np.maximum(entries, _observed_size(spec))
        unresolved = unresolved + 2 * digit * np.sqrt(_observed_count(spec) / rows["loss"])
    if spec.dynamics.integrator_name != "spectral" or parameters is None or parameters[3] != 0:
        return unresolved
    _, z, z_prime, _ = parameters
    return np.where(np.where(rows["sign"] < 0, -1, 1) * z * z_prime > 0, 0, unresolved)


def _observed_count(spec: RunSpec) -> int:
    return np.size(getattr(spec.problem, "values", np.ones(1)))


def _observed_size(spec: RunSpec) -> float:
    values = np.asarray(getattr(spec.problem, "values", np.ones(1)))
    return float(np.max(np.abs(values)))


def _over(reached: np.ndarray, errors: list) -> float:
    """The largest error in any reached row."""
    return _largest_finite(np.concatenate([[np.nan], *(error[reached] for error in errors)]))


def _largest_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else math.nan
