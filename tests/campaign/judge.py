"""Rows of a run against the exact flow: what is trusted and wrong, what is right and doubted."""

import dataclasses

import numpy as np

from campaign.exact.measures import measure
from campaign.truth import Truth

__all__ = ["Judgement", "Row", "compare", "judge"]

LINEAR = ("product", "entry[")
LOGARITHMS = ("log_singular_values", "log_abs_determinant")
# Doubts that only say that nothing was looked at.
UNASKED = ("unconfirmed",)


@dataclasses.dataclass
class Row:
    """One reached row: its errors by quantity, and what the certificate says of it."""

    index: int
    trusted: bool
    doubt: str
    # Quantities that are promised to hold, and their errors; NaN where the truth is not known.
    promised: tuple[str, ...]
    errors: dict[str, float]
    known: bool
    # Of the exact flow, where it was there.
    time: float
    why: str = ""

    @property
    def unknown(self) -> bool:
        """Whether the truth of something that is doubted is not known well enough."""
        doubted = [e for name, e in self.errors.items() if name not in self.promised]
        return bool(np.any(np.isnan(doubted)))

    def wrong(self, tolerance: float) -> dict[str, float]:
        return {name: e for name, e in self.errors.items() if e > tolerance}


@dataclasses.dataclass
class Judgement:
    """One run."""

    name: str
    about: str
    integrator: str
    tolerance: float
    result: str
    reached: int
    rows: list[Row]
    ending: str
    steps: int
    # Whether every companion there is was asked for.
    full: bool

    def forget_after(self, time: float) -> None:
        """Nothing is known from where two references part; infinite where they do not."""
        for row in self.rows:
            if np.isfinite(time) and row.time >= time:
                row.known, row.why = False, f"references part at {time:.4g}"

    @property
    def asked(self) -> list[Row]:
        """Rows that were looked at."""
        return [row for row in self.rows if self.full or row.doubt not in UNASKED]

    @property
    def false_trusts(self) -> list[Row]:
        return [
            row
            for row in self.rows
            if row.known and any(row.errors.get(name, 0) > self.tolerance for name in row.promised)
        ]

    @property
    def false_doubts(self) -> list[Row]:
        return [
            row
            for row in self.asked
            if row.known and not row.trusted
            and not row.wrong(self.tolerance) and not row.unknown
        ]  # fmt: skip


def compare(name: str, value, truth, factor_size: float) -> float:
    """The error of one quantity by the contract of certificates; NaN where nothing is known."""
    value, truth = np.asarray(value, float), np.asarray(truth, float)
    if name.startswith(LINEAR):
        scale = np.max(np.abs(truth))
    elif name in LOGARITHMS:
        scale = np.maximum(1.0, np.abs(truth))
    elif name == "balancedness_gap":
        scale = factor_size**2
    else:
        scale = np.abs(truth)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(value - truth) / scale
    error = np.where(value == truth, 0.0, error)
    error = np.where(np.isnan(truth), np.nan, np.where(np.isfinite(value), error, np.inf))
    known = error[~np.isnan(error)]
    return float(np.max(known)) if known.size else float("nan")


def judge(run, lane, truth: Truth, second: Truth | None, kind: str, asked, full) -> Judgement:
    """`lane` is the run's trajectory, `asked` the indices of rows the truth was asked for."""
    descends = not run.spec.dynamics.continuous
    certificate = lane.certificate
    tolerance = float(certificate.evidence["tolerance"])
    trusted = np.asarray(certificate.trusted)
    by_measure = getattr(certificate, "trusted_measures", None)
    by_time = getattr(certificate, "trusted_times", None)
    names = tuple(lane.measures)
    rows = []
    for position, index in enumerate(asked):
        promised = []
        if trusted[index]:
            promised = ["time", *names]
        else:
            if by_time is not None and np.asarray(by_time)[index]:
                promised.append("time")
            if by_measure is not None:
                promised += [n for n in names if np.asarray(by_measure[n])[index]]
        if kind != "loss" and "time" in promised:
            promised.remove("time")
        if kind == "loss" and descends and "loss" in promised:
            # The first step at or below the level, which says itself how far below.
            promised.remove("loss")
        time = lane.times[index] if kind != "loss" else truth.rows.times[position]
        row = Row(
            int(index),
            bool(trusted[index]),
            certificate.doubts[index],
            tuple(promised),
            {},
            True,
            float(time) if truth.rows.reached[position] else np.inf,
        )
        rows.append(row)
        flow = truth.rows
        if not flow.reached[position]:
            # Past the time of the run's own row: at that time the true flow was not there.
            row.known = flow.ending in ("past", "still")
            row.why = f"true flow not there by {flow.time:.4g} (loss {flow.loss:.3g})"
            row.errors = {"time": np.inf} if row.known else {}
            if second is not None and second.rows.reached[position]:
                row.known, row.why = False, "the reference itself is unsure"
            continue
        row.errors = _errors(lane, index, truth, position, kind, names)
        if kind == "loss" and descends:
            del row.errors["loss"]
        if second is None:
            continue
        if not second.rows.reached[position]:
            row.known, row.why = False, "the second reference did not get there"
            continue
        for name, own in _distance(truth, second, position, kind, names).items():
            # Where the truth moves by as much as it is asked for, it says nothing.
            if own > tolerance / 10 and name in row.errors:
                row.errors[name] = float("nan")
                row.why = f"the reference knows {name} to {own:.1g} only"
    return Judgement(
        run.name, run.about, str(lane.stats["integrator"]), tolerance, lane.result_name,
        int(np.sum(lane.reached)), rows, truth.rows.ending, truth.rows.steps, full,
    )  # fmt: skip


def _errors(lane, index, truth, position, kind, names) -> dict[str, float]:
    factors = truth.rows.factors[position]
    size = max(float(np.linalg.norm(high, 2)) for high, _ in factors)
    values = measure(truth.problem, factors, truth.balanced, names, truth.rank)
    errors = {name: compare(name, lane.measures[name][index], values[name], size) for name in names}
    if kind == "loss":
        errors["time"] = compare("time", lane.times[index], truth.rows.times[position], 1.0)
    return errors


def _distance(truth: Truth, second: Truth, position: int, kind: str, names) -> dict[str, float]:
    factors = truth.rows.factors[position]
    size = max(float(np.linalg.norm(high, 2)) for high, _ in factors)
    one = measure(truth.problem, factors, truth.balanced, names, truth.rank)
    # The nudge leaves exact balance: what is small is then read from the product.
    two = measure(second.problem, second.rows.factors[position], truth.balanced, names, truth.rank)
    found = {name: compare(name, two[name], one[name], size) for name in names}
    if kind == "loss":
        found["time"] = compare("time", second.rows.times[position], truth.rows.times[position], 1)
    return found
