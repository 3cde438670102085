"""The compiled loop: lanes of runs, step by step, to rows at losses or times."""

import math

import numpy as np
from numba import njit

from campaign.exact.arithmetic import add, two_sum
from campaign.exact.series import (
    ABSOLUTE,
    HUBER,
    LANES,
    SQUARED,
    compose,
    evaluate,
    expand,
    loss_of,
    residuals_of,
)

__all__ = ["AT_LOSS", "AT_TIME", "ENDINGS", "PENALTIES", "follow_lanes"]

PENALTIES = {"squared": SQUARED, "huber": HUBER, "absolute": ABSOLUTE}
AT_LOSS, AT_TIME = 0, 1
# Why a run ended.
DONE, PAST, STEPS, KINK, STILL = range(5)
ENDINGS = ("done", "past", "steps", "kink", "still")


@njit(cache=True)
def _sides(residuals, weights, penalty, lane, states):
    for i in range(residuals.shape[1]):
        if weights[0, i, lane] == 0:
            states[i, lane] = 0
            continue
        high = residuals[0, i]
        if penalty == ABSOLUTE:
            states[i, lane] = 1 if high > 0 else -1 if high < 0 else 0
        elif penalty == HUBER:
            states[i, lane] = 1 if high > 1 else -1 if high < -1 else 0
        else:
            states[i, lane] = 0


@njit(cache=True)
def _crossed(residuals, weights, penalty, lane, states):
    """The first residual that is on another side of its kink than its state says, or -1."""
    for i in range(residuals.shape[1]):
        if weights[0, i, lane] == 0:
            continue
        high, state = residuals[0, i], states[i, lane]
        if penalty == ABSOLUTE and (high * state < 0 or high == 0):
            return i
        if penalty == HUBER and (
            (state == 0 and abs(high) > 1) or (state != 0 and high * state < 1)
        ):
            return i
    return -1


@njit(cache=True)
def _at(W, widths, order, lane, x, problem, penalty, buffers):
    factors, product, spare, residuals = buffers
    evaluate(W, widths, order, lane, x, factors)
    compose(factors, widths, product, spare)
    residuals_of(product, widths, problem, lane, residuals)
    return loss_of(residuals, problem, lane, penalty)


@njit(cache=True)
def _step_size(W, widths, order, lane, tolerance):
    """In units of the lane: where the last two coefficients are below the tolerance.

    Coefficients that vanish, as those of a straight line or in a unit far too short, ask for no
    step: then it is the time in which a factor changes by its own size, infinite at rest.
    """
    overall = 0.0
    for j in range(len(widths) - 1):
        for a in range(widths[j + 1]):
            for c in range(widths[j]):
                overall = max(overall, abs(W[j, 0, 0, a, c, lane]))
    smallest, change = math.inf, math.inf
    for j in range(len(widths) - 1):
        size, first, last, before = 0.0, 0.0, 0.0, 0.0
        for a in range(widths[j + 1]):
            for c in range(widths[j]):
                size = max(size, abs(W[j, 0, 0, a, c, lane]))
                first = max(first, abs(W[j, 0, 1, a, c, lane]))
                last = max(last, abs(W[j, 0, order, a, c, lane]))
                before = max(before, abs(W[j, 0, order - 1, a, c, lane]))
        if size == 0.0:
            size = overall
        if first > 0:
            # From zero every time is its own scale.
            change = min(change, size / first if size > 0 else 1.0)
        if last > 0:
            smallest = min(smallest, (tolerance * size / last) ** (1.0 / order))
        if before > 0:
            smallest = min(smallest, (tolerance * size / before) ** (1.0 / (order - 1)))
    return 0.9 * (smallest if smallest < math.inf else change)


@njit(cache=True)
def _first_unit(W, P, B, widths, problem, penalty, unit, work, s, r, lane):
    """A power of two near the time in which the factors change by themselves."""
    expand(W, P, B, widths, 1, problem, penalty, unit, work, s, r)
    rate = 0.0
    for j in range(len(widths) - 1):
        size, speed = 0.0, 0.0
        for a in range(widths[j + 1]):
            for c in range(widths[j]):
                size = max(size, abs(W[j, 0, 0, a, c, lane]))
                speed = max(speed, abs(W[j, 0, 1, a, c, lane]))
        if size > 0:
            rate = max(rate, speed / size)
    if rate == 0.0:
        return 1.0
    return 2.0 ** round(math.log2(1 / rate))


@njit(cache=True)
def _locate(W, widths, order, lane, x0, x1, level, problem, penalty, buffers):
    """Where between two places the loss is at the level: false position with halving."""

    def distance(x):
        high, low = _at(W, widths, order, lane, x, problem, penalty, buffers)
        d, e = two_sum(high, -level)
        return (d + (e + low)) / level

    f0, f1 = math.log1p(distance(x0)), distance(x1)
    f1 = math.log1p(f1) if f1 > -1 else -800.0
    for _ in range(200):
        x = x1 - f1 * (x1 - x0) / (f1 - f0) if f1 != f0 else (x0 + x1) / 2
        if not (x0 < x < x1):
            x = (x0 + x1) / 2
        value = distance(x)
        f = math.log1p(value) if value > -1 else -800.0
        if f > 0:
            if f < 1e-17 or x - x0 == 0:
                return x
            x0, f0 = x, f
            f1 /= 2
        else:
            if f > -1e-17 or x1 - x == 0:
                return x
            x1, f1 = x, f
            f0 /= 2
        if x1 - x0 <= 4e-16 * x1:
            return x1
    return x1


@njit(cache=True, nogil=True)
def follow_lanes(
    starts, widths, order, tolerance, penalty, sensed, measurements, values, weights, places,
    kinds, levels, counts, latest, most_steps, factors_out, times_out, reached, ends,
):  # fmt: skip
    runs = starts.shape[0]
    depth, size = len(widths) - 1, starts.shape[3]
    observations = values.shape[1]
    W = np.zeros((depth, 2, order + 1, size, size, LANES))
    P = np.zeros((depth, 2, order + 1, size, size, LANES))
    B = np.zeros((depth, 2, order + 1, size, size, LANES))
    work = np.zeros((2, 1, size, size, LANES))
    s, r = np.zeros((3, LANES)), np.zeros((2, LANES))
    lane_measurements = np.zeros((*measurements.shape[1:], LANES))
    lane_values = np.zeros((observations, LANES))
    lane_weights = np.zeros((2, observations, LANES))
    lane_places = np.zeros((observations, 2, LANES), np.int64)
    states = np.zeros((observations, LANES), np.int64)
    problem = (lane_measurements, lane_values, lane_weights, lane_places, states, sensed)
    buffers = (
        np.zeros((depth, 2, size, size)),
        np.zeros((2, size, size)),
        np.zeros((2, size, size)),
        np.zeros((2, observations)),
    )
    unit = np.ones(LANES)
    run_of = np.full(LANES, -1)
    row = np.zeros(LANES, np.int64)
    taken = np.zeros(LANES, np.int64)
    th, tl = np.zeros(LANES), np.zeros(LANES)
    waiting = 0
    while True:
        busy = False
        for lane in range(LANES):
            if run_of[lane] < 0 and waiting < runs:
                run = waiting
                waiting += 1
                run_of[lane], row[lane], taken[lane], th[lane], tl[lane] = run, 0, 0, 0.0, 0.0
                lane_measurements[..., lane] = measurements[run]
                lane_values[:, lane] = values[run]
                lane_weights[:, :, lane] = weights[run]
                lane_places[:, :, lane] = places[run]
                W[..., lane] = 0.0
                for j in range(depth):
                    for part in range(2):
                        for a in range(widths[j + 1]):
                            for c in range(widths[j]):
                                W[j, part, 0, a, c, lane] = starts[run, j, part, a, c]
                unit[lane] = 1.0
                _at(W, widths, 0, lane, 0.0, problem, penalty, buffers)
                _sides(buffers[3], lane_weights, penalty, lane, states)
                unit[lane] = _first_unit(W, P, B, widths, problem, penalty, unit, work, s, r, lane)
            busy = busy or run_of[lane] >= 0
        if not busy:
            return
        expand(W, P, B, widths, order, problem, penalty, unit, work, s, r)
        for lane in range(LANES):
            run = run_of[lane]
            if run < 0:
                continue
            x = _step_size(W, widths, order, lane, tolerance)
            ending = -1
            if not x < math.inf:
                # Nothing moves: rows at times have the same factors, rows at losses never come.
                ending = STILL
                x = 0.0
            elif x > 2.0**30 or x < 2.0**-30:
                # Coefficients of this unit tell little about the step.
                unit[lane] *= 2.0 ** round(math.log2(min(max(x, 2.0**-60), 2.0**60)))
                for j in range(depth):
                    W[j, :, 1:, :, :, lane] = 0.0
                taken[lane] += 1
                if taken[lane] > most_steps[run]:
                    ends[run, 0], ends[run, 1] = STEPS, th[lane]
                    run_of[lane] = -1
                continue
            kink = -1
            if penalty != SQUARED and x > 0:
                # Cut where a residual first is on the other side: looked for at eight places.
                before = 0.0
                for part in range(1, 9):
                    here = x * part / 8
                    _at(W, widths, order, lane, here, problem, penalty, buffers)
                    kink = _crossed(buffers[3], lane_weights, penalty, lane, states)
                    if kink >= 0:
                        low, high = before, here
                        while high - low > 1e-18 * x and low < (low + high) / 2 < high:
                            middle = (low + high) / 2
                            _at(W, widths, order, lane, middle, problem, penalty, buffers)
                            found = _crossed(buffers[3], lane_weights, penalty, lane, states)
                            if found >= 0:
                                high, kink = middle, found
                            else:
                                low = middle
                        x = high
                        break
                    before = here
            loss, rest = _at(W, widths, order, lane, x, problem, penalty, buffers)
            step = x * unit[lane]
            # Rows within this step.
            x_before = 0.0
            while row[lane] < counts[run]:
                level = levels[run, row[lane]]
                if kinds[run] == AT_LOSS:
                    first, first_rest = _at(
                        W, widths, order, lane, x_before, problem, penalty, buffers
                    )
                    if first < level or (first == level and first_rest <= 0):
                        here = x_before
                    elif loss < level or (loss == level and rest <= 0):
                        here = _locate(
                            W, widths, order, lane, x_before, x, level, problem, penalty, buffers
                        )
                    else:
                        break
                else:
                    ahead = (level - th[lane]) - tl[lane]
                    if ahead > step and ending != STILL:
                        break
                    here = min(max(ahead / unit[lane], 0.0), x)
                _at(W, widths, order, lane, here, problem, penalty, buffers)
                factors_out[run, row[lane]] = buffers[0]
                times_out[run, row[lane], 0], times_out[run, row[lane], 1] = add(
                    th[lane], tl[lane], here * unit[lane], 0.0
                )
                if kinds[run] == AT_TIME:
                    times_out[run, row[lane], 0], times_out[run, row[lane], 1] = level, 0.0
                reached[run, row[lane]] = True
                x_before = here
                row[lane] += 1
            loss, rest = _at(W, widths, order, lane, x, problem, penalty, buffers)
            taken[lane] += 1
            if row[lane] == counts[run]:
                ending = DONE
            elif ending == STILL:
                pass
            elif kink >= 0 and penalty == ABSOLUTE:
                ending = KINK
            elif th[lane] + step > latest[run]:
                ending = PAST
            elif taken[lane] >= most_steps[run] or not loss < math.inf:
                ending = STEPS
            th[lane], tl[lane] = add(th[lane], tl[lane], step, 0.0)
            if ending >= 0:
                ends[run, 0], ends[run, 1], ends[run, 2] = ending, th[lane], loss
                ends[run, 3] = taken[lane]
                run_of[lane] = -1
                continue
            W[:, :, :, :, :, lane] = 0.0
            for j in range(depth):
                for part in range(2):
                    for a in range(widths[j + 1]):
                        for c in range(widths[j]):
                            W[j, part, 0, a, c, lane] = buffers[0][j, part, a, c]
            if kink >= 0:
                # It is on the other side from here on.
                if states[kink, lane] == 0:
                    states[kink, lane] = 1 if buffers[3][0, kink] > 0 else -1
                else:
                    states[kink, lane] = 0
            unit[lane] *= 2.0 ** round(math.log2(x)) if x > 0 else 1.0
