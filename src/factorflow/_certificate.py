"""Can a curve be believed? The verdict on a trajectory, and the evidence behind it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

__all__ = ["DOUBTS", "REFUTING", "VERDICTS", "Certificate"]

VERDICTS = ("unverified", "step_limited", "rounding_limited", "flow_faithful")

# Why a row is not trusted: a code, its name and what it means. The first that applies counts.
DOUBTS = {
    "none": "",
    "not_reached": "the row was not reached",
    "unconfirmed": "nothing independent confirms it (`certify='full'` adds companion runs)",
    "failed": "the run failed after its last row",
    "determinant_sign": (
        "from balanced factors the determinant must keep its sign under gradient flow, but here it "
        "changed"
    ),
    "static_bound": "a bound that holds for every product with this determinant sign is violated",
    "flow": "the certified gradient flow from the same start is elsewhere",
    "wider_dtype": "a run in double precision is elsewhere",
    "companion": "a companion run with another step size is elsewhere",
    "drift": "quantities that gradient flow conserves have drifted too far",
    "horizon": "the entry is near the horizon that the drift of the balance allows",
    "energy": "the loss has not fallen by the integral of the squared gradient norm",
    "time": "a companion run is at the same place at another time",
    "level": "between two neighbouring times the flow passes the loss of this row",
    "chance": (
        "a companion from a start beside it comes there so much earlier or later that rounding may "
        "have led the run off a set that the flow never leaves"
    ),
    "measure": "a companion run has another value of a measure (see `trusted_measures`)",
}

# Doubts that show a row to be elsewhere than the flow; the others only fail to confirm it.
REFUTING = (
    "determinant_sign",
    "static_bound",
    "flow",
    "wider_dtype",
    "companion",
    "time",
    "chance",
)
_NONE, _TIME, _MEASURE = (tuple(DOUBTS).index(name) for name in ("none", "time", "measure"))


class Certificate(eqx.Module):
    """Evidence about a trajectory.

    **Attributes:**

    - `verdict`: `"flow_faithful"` where the run did not fail and every reached row is trusted,
        `"step_limited"` or `"rounding_limited"` where some are not gradient flow, by what limits
        them, and `"unverified"` where nothing decides.
    - `trusted`: a flag per row: whether the evidence supports every number of this row as gradient
        flow's to the `tolerance` below: its time, relative; every entry of the product, relative to
        the largest; every measure, relative to what its `error` names (see `Measure`).
    - `trusted_measures`: a flag per row by the name of each measure: rows that are trusted, and
        those where only the time or other measures are in doubt. `trusted_times`: rows where at
        most measures are.
    - `on_invariant_set`: a flag per row: it lies, as its start does, on a set that the exact flow
        never leaves, such as symmetric products, but from which a perturbation of the size of
        rounding leads elsewhere, or was not tried: explicit runs in single precision.
    - `contradicted`: a flag per row: whether an invariant of gradient flow is violated there, so
        that the row cannot be gradient flow.
    - `doubts`: a name per row: why it is not trusted, or `"none"`.
    - `evidence`: the numbers behind it, see below.
    - `explanation`: one sentence.

    Evidence: `balancedness_gap` at the start and `balancedness_drift` at the end (largest absolute
    entry), `determinant_sign_changed`, `bound_violations`, `energy_defect` (relative, largest of a
    step), and the largest relative distance of the rows from each companion that ran, compared
    with `tolerance`: `companion_error` (another tolerance or half the step, from a start perturbed
    like rounding), `wider_dtype_error` (double precision), `flow_error` (descent against the
    flow); `companion_time_error` and `measure_error`, the largest of any of them.
    `failure_probability` is that of an error of twice the tolerance that the comparison of a large
    product by random projections misses, 0 where all entries are compared.
    NaN stands for what was not measured.

    It is strong a-posteriori evidence, not an interval proof.
    """

    code: Any
    doubt_codes: Any
    contradicted: Any
    on_invariant_set: Any
    measure_doubts: dict[str, Any]
    evidence: dict[str, Any]

    @classmethod
    def unjudged(cls, reached: Any) -> "Certificate":
        """The certificate of rows that nobody has looked at."""
        doubts = jnp.full(reached.shape, tuple(DOUBTS).index("unconfirmed"), jnp.int32)
        none = jnp.zeros_like(reached)
        return cls(jnp.zeros((), jnp.int32), doubts, none, none, {}, {})

    @property
    def verdict(self) -> str:
        """The verdict of one (not batched) certificate."""
        return VERDICTS[int(np.asarray(self.code))]

    @property
    def trusted(self) -> np.ndarray:
        """A flag per row."""
        return np.asarray(self.doubt_codes) == _NONE

    @property
    def trusted_times(self) -> np.ndarray:
        """A flag per row: whether its time is to be trusted."""
        return np.isin(np.asarray(self.doubt_codes), (_NONE, _MEASURE))

    @property
    def trusted_measures(self) -> dict[str, np.ndarray]:
        """A flag per row for each measure: whether that number is to be trusted."""
        held = np.isin(np.asarray(self.doubt_codes), (_NONE, _TIME, _MEASURE))
        return {name: held & ~np.asarray(doubted) for name, doubted in self.measure_doubts.items()}

    @property
    def doubts(self) -> list[str]:
        """Why each row of one (not batched) certificate is not trusted."""
        names = tuple(DOUBTS)
        return [names[code] for code in np.asarray(self.doubt_codes)]

    @property
    def explanation(self) -> str:
        """One sentence with the numbers that decided."""
        numbers = {name: float(np.asarray(value)) for name, value in self.evidence.items()}
        measured = ", ".join(
            f"{name.replace('_', ' ')} {numbers[name]:.2g}"
            for name in (
                "companion_error",
                "wider_dtype_error",
                "flow_error",
                "companion_time_error",
                "measure_error",
                "energy_defect",
                "balancedness_drift",
            )
            if np.isfinite(numbers.get(name, np.nan))
        )
        doubts = self.doubts
        reached = [i for i, name in enumerate(doubts) if name != "not_reached"]
        if not reached:
            return "No row was reached, so there is nothing to believe."
        if self.verdict == "flow_faithful":
            kept = int(np.sum(np.asarray(self.on_invariant_set)))
            note = (
                f" {kept} of them lie on an invariant set of the flow that a perturbation of the "
                "size of rounding leaves."
                if kept
                else ""
            )
            return f"Every reached row is confirmed as gradient flow ({measured}).{note}"
        if self.verdict == "unverified":
            # Rows that are all trusted are not confirmed where the run itself has failed.
            first = next((i for i in reached if doubts[i] != "none"), None)
            if first is None:
                return f"Not confirmed: {DOUBTS['failed']} ({measured})."
            others = [n for n, rows in self.measure_doubts.items() if np.asarray(rows)[first]]
            which = f": {', '.join(others)}" if doubts[first] == "measure" else ""
            return (
                f"Not confirmed from row {first} on: {DOUBTS[doubts[first]]}{which} ({measured})."
            )
        first = next(i for i in reached if doubts[i] in REFUTING)
        cause = "rounding" if self.verdict == "rounding_limited" else "its step size or tolerance"
        return (
            f"Limited by {cause}: row {first} and some after it are not gradient flow, because "
            f"{DOUBTS[doubts[first]]} ({measured})."
        )
