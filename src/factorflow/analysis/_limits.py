"""Limits of what was measured along runs: first as the loss vanishes, then the initialization."""

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

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
# A small share whose limit is this part of it or more stays; one that falls to this part or less
# from one scale to the next vanishes.
_STAYS, _FALLS = 0.1, 0.5
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
    losses: NDArray[np.float64],
    values: NDArray[np.float64],
    usable: NDArray[np.bool_],
    trusted: NDArray[np.bool_] | None = None,
) -> Limit:
    """The limit of one run's quantity as its loss vanishes.

    The error counts on changes that shrink to 0.9 or less from decade to decade; where convergence
    is linear they shrink to 0.3.

    **Arguments:**

    - `losses`: of the rows, decreasing, shape `(rows,)`.
    - `values`: positive or zero, shape `(rows,)`.
    - `usable`: rows that can be read. None after the first that cannot is used.
    - `trusted`: rows that are certified, all usable ones by default: only these show divergence.
    """
    count = int(np.sum(np.cumprod(usable)))
    if count < 2:
        return Limit("unsettled", float(values[0]) if count else np.nan, np.inf)
    logs, values = np.log10(losses[:count]), values[:count]
    last = float(values[-1])
    near = logs <= logs[-1] + DECADES + _REGULAR
    decades = float(np.ptp(logs[near]))
    slope = _slope(logs[near], values[near])
    certified = trusted is None or bool(np.all(trusted[:count][near]))
    if slope <= DIVERGENCE and decades >= DECADES - _REGULAR and certified:
        return Limit("diverges", np.inf, np.inf, slope, decades)
    before, earlier = (float(np.interp(-logs[-1] - k, -logs, values)) for k in (1.0, 2.0))
    change = last - before
    scale = max(abs(last), float(np.finfo(float).tiny))
    covered = decades >= DECADES - _REGULAR
    if not covered or abs(change) > _SETTLED * scale:
        return Limit("unsettled", last, np.inf, slope, decades)
    value, error, _ = _extrapolated(earlier, before, last)
    if not np.isfinite(error):
        # Something new is on its way: as far as it gets if it slows down as little as is told.
        error = abs(change) / (1 - _SLOWEST)
    return Limit("converges", value, error, slope, decades)


def limit_in_scale(scales: NDArray[np.float64], limits: list[Limit]) -> Limit:
    """The limit of one seed's limits in loss, as the scale of the initialization vanishes.

    It diverges where every one of them does, and converges where the last ones do, which takes
    three scales or more.
    """
    if len(limits) < 2:
        return Limit("unsettled", limits[0].value if limits else np.nan, np.inf)
    slope = float(np.max([limit.slope for limit in limits]))
    decades = float(np.min([limit.decades for limit in limits]))
    kinds = {limit.kind for limit in limits}
    if kinds == {"diverges"}:
        return Limit("diverges", np.inf, np.inf, slope, decades)
    # Scales larger than one that is unsettled are not needed.
    count = next((k for k, limit in enumerate(limits[::-1]) if limit.kind != "converges"), None)
    settled = limits if count is None else limits[len(limits) - count :]
    if "diverges" in kinds or not settled:
        return Limit("unsettled", limits[-1].value, np.inf, slope, decades)
    blur = max(limit.error for limit in settled[-3:])
    values = np.array([limit.value for limit in settled])
    value, error = _in_series(scales[-len(settled) :], values, blur)
    kind = "converges" if np.isfinite(error) else "unsettled"
    return Limit(kind, value, error, slope, decades)


def vanishing_in_scale(
    scales: NDArray[np.float64],
    shares: NDArray[np.float64],
    tolerance: float,
    *,
    falls_with_loss: bool,
) -> bool | None:
    """Whether shares tend to zero with the scale; `None` where that is not decided.

    **Arguments:**

    - `shares`: one per scale.
    - `tolerance`: below this, what still falls counts as zero; below its square, whatever it does.
    - `falls_with_loss`: whether the last share was still falling with the loss.
    """
    if len(shares) < 2 or not np.all(np.isfinite(shares)):
        return None
    last = float(shares[-1])
    if last <= tolerance**2:
        return True
    small = last <= tolerance and last <= shares[-2]
    if small and falls_with_loss:
        return True
    value, error = _in_series(scales, shares)
    # Small is not zero: a share may be small and stay.
    if value - error > (_STAYS * last if small else tolerance):
        return False
    if small and last <= _FALLS * shares[-2]:
        return True
    # Far from zero, only a trend would say that it gets there.
    return True if abs(value) + error <= (last if small else tolerance) else None


def _in_series(
    scales: NDArray[np.float64], values: NDArray[np.float64], blur: float = 0.0
) -> tuple[float, float]:
    """Limit and uncertainty of values at falling scales, each known up to `blur`."""
    if len(values) < 3:
        return float(values[-1]), np.inf
    steps = -np.diff(np.log(scales))
    stretches = steps[1:] / steps[:-1]
    found = [float(value) for value in values]
    value, error, falls = _extrapolated(found[-3], found[-2], found[-1], float(stretches[-1]))
    if len(values) > 3 and np.isfinite(error):
        # Not every approach is geometric yet: how far the last three values say something else
        # than those before them is a better estimate.
        before, unsure, _ = _extrapolated(found[-4], found[-3], found[-2], float(stretches[-2]))
        error = abs(value - before) if np.isfinite(unsure) else max(error, abs(value - before))
        floor = max(_ROUNDING * abs(found[-1] - found[-2]), _NOISE * abs(value))
        error = max(error, floor)
    # The derivatives of the extrapolation by the three values, added up.
    return value, error + blur * ((1 + falls) / (1 - falls)) ** 2


def _extrapolated(
    first: float, second: float, third: float, stretch: float = 1.0
) -> tuple[float, float, float]:
    """Limit of a geometric approach through three values, its uncertainty, and the geometric ratio.

    The second step along the series is `stretch` times as long as the first. The ratio is that over
    the second step, and zero where nothing is extrapolated.
    """
    earlier, later = second - first, third - second
    if abs(later) <= _NOISE * abs(third) * min(stretch, 1.0):
        return third, _NOISE * abs(third), 0.0
    ratio = later / earlier if earlier != 0 else np.inf
    if not -1 < ratio / stretch < 1 - _REGULAR:
        return third, np.inf, 0.0
    if ratio <= 0:
        return third, abs(later) / min(stretch, 1.0), 0.0
    falls = ratio if abs(stretch - 1) < _REGULAR else _share(ratio, stretch)
    if falls >= _SLOWEST:
        return third, np.inf, 0.0
    rest = later * falls / (1 - falls)
    return third + rest, _DOUBT * abs(rest), falls


def _share(ratio: float, stretch: float) -> float:
    """The share q^stretch for the q at which (1 - q^stretch) q / (1 - q) is the ratio."""

    def excess(log):
        return np.expm1(stretch * log) / np.expm1(log) * np.exp(log) - ratio

    log: Any = brentq(excess, -700.0, -1e-12)
    return float(np.exp(stretch * log))


def _slope(logs: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    if np.ptp(logs) == 0 or np.any(values <= 0):
        return np.nan
    return float(np.polyfit(logs, np.log10(values), 1)[0])
