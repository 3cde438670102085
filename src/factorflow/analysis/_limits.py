"""Limits of what was measured along runs: first as the loss vanishes, then the initialization."""

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIVERGENCE", "Limit", "limit_in_loss", "limit_in_scale", "vanishing_in_scale"]

# The slope against the loss, in logarithms, from which on a quantity counts as diverging, and over
# how many decades. Norms of problems without a bounded solution grow like loss^(-1/2).
DIVERGENCE, DECADES = -0.4, 2.0
# A quantity has settled if it changes by less than this, relatively, over the last decade.
_SETTLED = 3e-3
# Ratios of successive changes beyond this leave the rest of a geometric series unknown.
_SLOWEST = 0.9
# How far what is extrapolated can be off, as a share of how far it was extrapolated.
_DOUBT = 0.5
# Nor is an extrapolation ever better than this share of the last change.
_ROUNDING = 0.05
# Changes below this share of a value are what flows are accurate to: they have no trend.
_NOISE = 1e-6
# Levels of a regular series agree to rounding.
_REGULAR = 1e-6


@dataclasses.dataclass(frozen=True)
class Limit:
    """Where a quantity goes, and how far that is known.

    **Attributes:**

    - `kind`: `"converges"`, `"diverges"` or `"unsettled"`.
    - `value`, `error`: the limit and its uncertainty; infinite where it diverges, and where it is
        unsettled the last value with an infinite error.
    - `slope`: slope of its logarithm against that of the loss, over the last two decades.
    - `decades`: how many decades of loss these rows cover.
    """

    kind: Literal["converges", "diverges", "unsettled"]
    value: float
    error: float
    slope: float = np.nan
    decades: float = np.nan


def limit_in_loss(
    losses: NDArray[np.float64], values: NDArray[np.float64], usable: NDArray[np.bool_]
) -> Limit:
    """The limit of one run's quantity as its loss vanishes.

    **Arguments:**

    - `losses`: of the rows, decreasing, shape `(rows,)`.
    - `values`: positive or zero, shape `(rows,)`.
    - `usable`: rows that are certified. None after the first that is not is used.
    """
    count = int(np.argmin(usable)) if not np.all(usable) else len(usable)
    if count < 2:
        return Limit("unsettled", float(values[0]) if count else np.nan, np.inf)
    logs, values = np.log10(losses[:count]), values[:count]
    last = float(values[-1])
    near = logs <= logs[-1] + DECADES + _REGULAR
    decades = float(np.ptp(logs[near]))
    slope = _slope(logs[near], values[near])
    if slope <= DIVERGENCE and decades >= DECADES - _REGULAR:
        return Limit("diverges", np.inf, np.inf, slope, decades)
    before, earlier = (float(np.interp(-logs[-1] - k, -logs, values)) for k in (1.0, 2.0))
    change = last - before
    scale = max(abs(last), float(np.finfo(float).tiny))
    covered = decades >= DECADES - _REGULAR
    if not covered or abs(change) > _SETTLED * scale:
        return Limit("unsettled", last, np.inf, slope, decades)
    value, error = _extrapolated(earlier, before, last)
    # An extrapolation that is further off than the last decade went says nothing.
    if not error <= abs(change):
        value, error = last, abs(change)
    return Limit("converges", value, error, slope, decades)


def limit_in_scale(scales: NDArray[np.float64], limits: list[Limit]) -> Limit:
    """The limit of one seed's limits in loss, as the scale of the initialization vanishes.

    It diverges where every one of them does. Scales in a geometric series allow for extrapolation.
    """
    if len(limits) < 2:
        return Limit("unsettled", limits[0].value if limits else np.nan, np.inf)
    slope = float(np.max([limit.slope for limit in limits]))
    decades = float(np.min([limit.decades for limit in limits]))
    kinds = {limit.kind for limit in limits}
    if kinds == {"diverges"}:
        return Limit("diverges", np.inf, np.inf, slope, decades)
    last = limits[-1].value
    if kinds != {"converges"}:
        return Limit("unsettled", last, np.inf, slope, decades)
    value, error = _in_series(scales, np.array([limit.value for limit in limits]))
    error += max(limit.error for limit in limits[-2:])
    kind = "converges" if np.isfinite(error) else "unsettled"
    return Limit(kind, value, error, slope, decades)


def vanishing_in_scale(
    scales: NDArray[np.float64], shares: NDArray[np.float64], tolerance: float
) -> bool | None:
    """Whether shares tend to zero with the scale; `None` where that is not decided.

    **Arguments:**

    - `shares`: one per scale.
    - `tolerance`: what counts as zero.
    """
    if len(shares) < 2 or not np.all(np.isfinite(shares)):
        return None
    last = shares[-1]
    if last <= tolerance and last <= max(shares[-2], tolerance**2):
        return True
    value, error = _in_series(scales, shares)
    if value - error > tolerance:
        return False
    # Far from zero, only a trend would say that it gets there.
    return True if abs(value) + error <= tolerance else None


def _in_series(scales: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Limit and uncertainty of values at falling scales."""
    change = abs(float(values[-1] - values[-2]))
    steps = np.diff(np.log(scales))
    if len(values) < 3:
        return float(values[-1]), np.inf
    if np.ptp(steps[-3:]) > _REGULAR * abs(steps[-1]):
        return float(values[-1]), change
    value, error = _extrapolated(*(float(value) for value in values[-3:]))
    if len(values) > 3 and np.isfinite(error):
        # Not every approach is geometric yet: how far the last three values say something else
        # than those before them is a better estimate.
        before, unsure = _extrapolated(*(float(value) for value in values[-4:-1]))
        error = abs(value - before) if np.isfinite(unsure) else max(error, abs(value - before))
        error = max(error, _ROUNDING * change)
    return value, error


def _extrapolated(first: float, second: float, third: float) -> tuple[float, float]:
    """Limit of a geometric approach through three values, and its uncertainty."""
    earlier, later = second - first, third - second
    if abs(later) <= _NOISE * abs(third):
        return third, abs(later)
    ratio = later / earlier if earlier != 0 else np.inf
    if not -1 < ratio < _SLOWEST:
        return third, np.inf
    if ratio <= 0:
        return third, abs(later)
    rest = later * ratio / (1 - ratio)
    return third + rest, _DOUBT * abs(rest)


def _slope(logs: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    if np.ptp(logs) == 0 or np.any(values <= 0):
        return np.nan
    return float(np.polyfit(logs, np.log10(values), 1)[0])
