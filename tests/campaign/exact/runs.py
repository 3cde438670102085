"""Gradient flow of many runs of one structure, exactly: what is asked, and what is found."""

import dataclasses
from fractions import Fraction

import numpy as np

from campaign.exact.flow import AT_LOSS, AT_TIME, ENDINGS, PENALTIES, follow_lanes

__all__ = ["Problem", "Rows", "follow"]

# Order and local tolerance: a step is about the radius of convergence times TOLERANCE^(1 / ORDER)
# and costs ORDER^2, which is least where ORDER is half of ln(1 / TOLERANCE).
ORDER, TOLERANCE = 26, 1e-28


@dataclasses.dataclass(frozen=True)
class Problem:
    """Half the sum, or the mean, of penalties of `<A_i, W> - b_i`, in doubles that are exact.

    `places` for observed entries, `measurements` for sensing; the other is `None`.
    """

    shape: tuple[int, int]
    values: np.ndarray
    places: np.ndarray | None
    measurements: np.ndarray | None
    mean: bool = False
    penalty: str = "squared"


@dataclasses.dataclass(frozen=True)
class Rows:
    """What one run gave: the factors in double-double at each row that was reached."""

    reached: np.ndarray
    times: np.ndarray
    factors: list[list[tuple[np.ndarray, np.ndarray]]]
    ending: str
    time: float
    loss: float
    steps: int


def follow(problems, starts, kind, levels, latest, most_steps, order=ORDER, tolerance=TOLERANCE):
    """Runs of one structure (widths, number of observations at most, penalty, kind of problem).

    `starts`: per run a list of `(high, low)` arrays, first factor first. `kind`: `"loss"` or
    `"time"`; `levels` per run, in the order they come. A run ends when its time is past `latest`.
    """
    runs, first = len(problems), problems[0]
    matrices = [high.shape for high, _ in starts[0]]
    widths = np.array([matrices[0][1], *(rows for rows, _ in matrices)])
    depth, size = len(matrices), int(widths.max())
    sensed = first.measurements is not None
    observations = max(len(p.values) for p in problems)
    begin = np.zeros((runs, depth, 2, size, size))
    measurements = np.zeros((runs, observations if sensed else 1, *first.shape))
    values = np.zeros((runs, observations))
    weights = np.zeros((runs, 2, observations))
    places = np.zeros((runs, observations, 2), np.int64)
    for run, (problem, start) in enumerate(zip(problems, starts, strict=True)):
        count = len(problem.values)
        for j, (high, low) in enumerate(start):
            begin[run, j, 0, : high.shape[0], : high.shape[1]] = high
            begin[run, j, 1, : high.shape[0], : high.shape[1]] = low
        values[run, :count] = problem.values
        if sensed:
            measurements[run, :count] = problem.measurements
        else:
            places[run, :count] = problem.places
        weights[run, :, :count] = _inverse(count if problem.mean else 2)[:, None]
    rows = max(len(wanted) for wanted in levels)
    padded = np.zeros((runs, rows))
    for run, wanted in enumerate(levels):
        padded[run, : len(wanted)] = wanted
    counts = np.array([len(wanted) for wanted in levels])
    factors_out = np.zeros((runs, rows, depth, 2, size, size))
    times_out = np.zeros((runs, rows, 2))
    reached = np.zeros((runs, rows), bool)
    ends = np.zeros((runs, 4))
    kinds = np.full(runs, AT_LOSS if kind == "loss" else AT_TIME)
    follow_lanes(
        begin, widths, order, tolerance, PENALTIES[first.penalty], sensed, measurements, values,
        weights, places, kinds, padded, counts, np.asarray(latest, float),
        np.broadcast_to(np.asarray(most_steps), (runs,)).copy(), factors_out, times_out, reached,
        ends,
    )  # fmt: skip
    results = []
    for run in range(runs):
        at_rows = [
            [
                (
                    factors_out[run, row, j, 0, : shape[0], : shape[1]],
                    factors_out[run, row, j, 1, : shape[0], : shape[1]],
                )
                for j, shape in enumerate(matrices)
            ]
            for row in range(counts[run])
        ]
        code, time, loss, steps = ends[run]
        ending = ENDINGS[int(code)]
        found, when = reached[run, : counts[run]], times_out[run, : counts[run], 0]
        results.append(Rows(found, when, at_rows, ending, time, loss, int(steps)))
    return results


def _inverse(count: int) -> np.ndarray:
    """1 / count in double-double."""
    exact = Fraction(1, count)
    high = float(exact)
    return np.array([high, float(exact - Fraction(high))])
