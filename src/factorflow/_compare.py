"""How far two runs are apart, row by row: in time, in the product, and in every measure."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from factorflow._clock import CELL_WIDTHS
from factorflow._measure import Measure
from factorflow._trajectory import Trajectory
from factorflow._witness import EVERY_ENTRY, Witness

__all__ = ["Comparison", "Lane", "compare", "settle"]

Rows = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Of the drift: errors of two discretizations are hardly ever nearer, unless they have one cause.
_APART = 0.5
# Shares of a halving of the loss that count as equal: little times the logarithm of any time.
_SAME_WEIGHT = 4e-6


class Lane(NamedTuple):
    """One run and its record."""

    trajectory: Trajectory
    witness: Witness


class Comparison(NamedTuple):
    """How far a companion is from a run, row by row; NaN where it has no such row.

    **Attributes:**

    - `kind`: the name of this error in the evidence.
    - `product`: of the entries, relative to the largest.
    - `time`: relative.
    - `measures`: of every measure, as its kind of error says.
    - `clock`: between the readings of their clocks, beyond what their steps leave open, in the
        cell of the loss where it is largest.
    - `apart`: whether the two are as far apart in what gradient flow conserves as the run has
        drifted: a companion that agrees all the same shows that this drift decides nothing.
    - `on_a_set`: whether both lie on an invariant set to the last bit, see `_witness.on_a_set`.
    """

    kind: str
    product: Rows
    time: Rows
    measures: dict[str, Rows]
    clock: Rows
    apart: Flags
    on_a_set: Flags

    def within(self, place: float, measures: float, clock: float) -> Flags:
        """Rows in which the companion confirms everything, to these errors."""
        return self.in_place(place, measures) & (self.time <= place) & (self.clock <= clock)

    def in_place(self, place: float, measures: float) -> Flags:
        """Rows in which it confirms everything but perhaps the time."""
        found = [error <= measures for error in self.measures.values()]
        return np.all([self.product <= place, *found], axis=0)


def compare(
    kind: str,
    run: Lane,
    companion: Lane,
    measures: tuple[Measure, ...],
    shape: tuple[int, ...],
) -> Comparison:
    """The distance of a companion from a run. `measures` are those that can be compared."""
    there = np.asarray(companion.trajectory.reached)
    ours, others = run.witness.rows, companion.witness.rows
    largest = np.asarray(ours["largest"], float)

    def known(error: Rows) -> Rows:
        return np.where(there, error, np.nan)

    seen = np.abs(np.asarray(ours["seen"], float) - np.asarray(others["seen"], float))
    if math.prod(shape) > EVERY_ENTRY:
        # Of a sketch: twice the larger norm of the two bounds every entry's error, see `_sketch`.
        norms = np.linalg.norm(seen.reshape(seen.shape[0], 2, -1), axis=2)
        distance = np.maximum(2 * np.max(norms, axis=1), np.abs(largest - others["largest"]))
    else:
        distance = np.max(seen, axis=1)
    return Comparison(
        kind,
        known(_share(distance, largest)),
        known(_relative(run.trajectory.times, companion.trajectory.times)),
        {measure.name: known(_measured(measure, run, companion)) for measure in measures},
        known(_clocks(run, companion)),
        there & _apart(run, companion),
        there & np.asarray(ours["on_a_set"]) & np.asarray(others["on_a_set"]),
    )


def _clocks(run: Lane, companion: Lane) -> Rows:
    names = ("clock", "clock_spread", "clock_weight")
    (one, first, weight), (two, second, other) = (
        [np.asarray(lane.witness.rows[name], float) for name in names] for lane in (run, companion)
    )
    # In the cell in which only one of the two still is, its clock is ahead.
    both = np.abs(weight - other) <= _SAME_WEIGHT
    apart = np.abs(one - two) - first - second
    # In narrow cells a difference in every logarithm counts as in a whole halving.
    return np.max(np.where(both, apart / np.minimum(CELL_WIDTHS, 1), 0), axis=1)


def _apart(run: Lane, companion: Lane) -> Flags:
    drift, other = (np.asarray(lane.witness.rows["drift"], float) for lane in (run, companion))
    start = abs(float(run.witness.run["gap"]) - float(companion.witness.run["gap"]))
    return np.maximum(np.abs(drift - other), start) >= _APART * drift


def settle(
    first: Comparison,
    finer: Comparison | None,
    unmoved: Comparison,
    place: float,
    measures: float,
    clock: float,
) -> tuple[Comparison, Flags]:
    """The judgement of several companions, and the rows that only those on the run's set confirm.

    `first` started from perturbed factors, and so did `finer`, with smaller errors of its own;
    where neither confirms a row, `unmoved`, from the run's own factors, does on an invariant set.
    """
    agreed = first.within(place, measures, clock)
    found = first
    if finer is not None:
        found = _chosen(agreed, first, finer)
        agreed = agreed | finer.within(place, measures, clock)
    kept = ~agreed & unmoved.on_a_set & unmoved.in_place(place, measures)
    return _chosen(~kept, found, unmoved), kept


def _chosen(rows: Flags, first: Comparison, second: Comparison) -> Comparison:
    def where(a: Rows, b: Rows) -> Rows:
        return np.where(rows, a, b)

    return Comparison(
        first.kind,
        where(first.product, second.product),
        where(first.time, second.time),
        {name: where(error, second.measures[name]) for name, error in first.measures.items()},
        where(first.clock, second.clock),
        np.where(rows, first.apart, second.apart),
        np.where(rows, first.on_a_set, second.on_a_set),
    )


def _measured(measure: Measure, run: Lane, companion: Lane) -> Rows:
    ours, others = (
        np.asarray(lane.trajectory.measures[measure.name], float) for lane in (run, companion)
    )
    rows = ours.shape[0]
    ours, others = ours.reshape(rows, -1), others.reshape(rows, -1)
    if measure.error == "exact":
        errors = np.where(_same(ours, others), 0.0, np.inf)
    else:
        noise = np.asarray(companion.witness.noise.get(measure.name, 0.0), float)
        noise = np.broadcast_to(noise.reshape(noise.shape[0] if noise.ndim else 1, -1), ours.shape)
        with np.errstate(invalid="ignore"):
            distance = np.where(_same(ours, others), 0.0, np.abs(ours - others)) + noise
        sizes = {
            "own": np.maximum(np.abs(ours), np.abs(others)),
            "logarithm": np.maximum(1, np.abs(ours)),
            "unit": np.ones_like(ours),
            "product": np.asarray(run.witness.rows["largest"], float)[:, None],
            "factors": np.asarray(run.witness.rows["size"], float)[:, None],
        }
        errors = _share(distance, sizes[measure.error])
    # What is no number, or more than the dtype holds, is no value that could be right; but the
    # logarithm of a singular value or determinant that is zero is.
    lost = ~np.isfinite(ours) & ~((measure.error == "logarithm") & (ours == -np.inf))
    return np.max(np.where(lost, np.inf, errors), axis=1, initial=0.0)


def _relative(ours, others) -> Rows:
    ours, others = np.asarray(ours, float), np.asarray(others, float)
    with np.errstate(invalid="ignore"):
        distance, size = np.abs(ours - others), np.maximum(np.abs(ours), np.abs(others))
    return np.where(_same(ours, others), 0.0, _share(distance, size))


def _share(distance, size) -> Rows:
    """A distance as a share of a size; what is not finite on one side only is far away."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(distance == 0, 0.0, distance / size)
    return np.where(np.isnan(share), np.inf, share)


def _same(ours: Rows, others: Rows) -> Flags:
    # Infinite on both sides, or undefined on both (times of optimizers that have none).
    return (ours == others) | (np.isnan(ours) & np.isnan(others))
