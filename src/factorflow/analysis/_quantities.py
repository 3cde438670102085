"""Norms and ranks of the flows' limits against their minima over the solutions."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from factorflow._problem import AbstractProblem
from factorflow.analysis._limits import Limit, limit_in_loss, limit_in_scale, vanishing_in_scale
from factorflow.analysis._runs import Runs
from factorflow.reference import (
    EffectiveRankBounds,
    MinimumNorm,
    SolutionRanks,
    SolutionSet,
    infimal_effective_rank,
    lowest_semidefinite_rank,
    minimum_norm,
    solution_ranks,
)
from factorflow.reference.solutions.norms import norm_exponent

__all__ = ["Minima", "Quantity", "along_loss", "judge_norms", "judge_ranks"]

# A minimum of a norm is known if its interval is this narrow, relative to what is asked.
_KNOWN = 0.1
# An infimum is shown as a number where the interval is this narrow, as both its ends otherwise.
_SHOWN = 1e-4
# A distance that falls to this part or less over a decade of loss falls like a power of it.
_FALLS = 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class Quantity:
    """A norm or a rank: the limit that training attains, and the lowest value of any solution.

    **Attributes:**

    - `name`: a measure's name, or `"rank"`.
    - `limit`, `limit_error`: median over seeds, and an error that covers every seed's limit with
        its own error; both infinite where it diverges.
    - `infimum_lower`, `infimum_upper`: an interval of the infimum over the solutions.
    - `attained`: whether a solution attains it; `None` if that is not known.
    - `ratio`: `limit / infimum_upper`.
    - `status`: see `what_is_minimized`.
    - `loss_slope`: the largest slope of its logarithm against that of the loss, of all runs.
    - `trend`: by what factor the ratio's distance from 1 falls from the first scale to the last: 1
        where it stays.
    - `ratios`: ratio at the end of every run, shape `(scales, seeds)`.
    - `decisive`: whether it counts in the verdict: its minimum is known.
    """

    name: str
    limit: float
    limit_error: float
    infimum_lower: float
    infimum_upper: float
    attained: bool | None
    ratio: float
    status: str
    loss_slope: float
    trend: float
    ratios: NDArray[np.float64]
    decisive: bool

    def line(self, width: int) -> str:
        """A row of the table in text."""
        infimum = self.infimum + ("*" if self.attained is False else "")
        return (
            f"{self.name:{width}}  {self.limit:11.6g}  {infimum:>20}  {self.ratio:10.6g}  "
            f"{self.loss_slope:6.2f}  {self.status}"
        )

    @property
    def infimum(self) -> str:
        """What is known of the infimum: its value, or a lower bound and the best value found."""
        if self.known:
            return f"{self.infimum_upper:.6g}"
        return f"{self.infimum_lower:.5g} .. <= {self.infimum_upper:.6g}"

    @property
    def known(self) -> bool:
        """Whether the infimum is; otherwise `infimum_upper` is the best value found, no more."""
        return self.infimum_upper - self.infimum_lower <= _SHOWN * self.infimum_upper


@dataclasses.dataclass(frozen=True, eq=False)
class Minima:
    """The lowest norms and ranks over the solutions of a problem.

    `size` is the Frobenius norm of the least solution: what singular values are compared with.
    `highest_infimum` is an upper bound of the infimal rank, over positive semidefinite solutions
    where only they count.
    """

    norms: dict[str, MinimumNorm]
    ranks: SolutionRanks
    effective_rank: EffectiveRankBounds
    highest_infimum: int
    size: float

    @classmethod
    def of(
        cls,
        problem: AbstractProblem,
        norms: Sequence[str],
        *,
        semidefinite: bool,
        say: Callable[[str], None],
    ) -> "Minima":
        """Minimize each norm, and bound the ranks."""
        say(f"solutions of minimum {', '.join(norms)}")
        found = {
            norm: minimum_norm(
                problem, norm, semidefinite=semidefinite and norm_exponent(norm) >= 1
            )
            for norm in norms
        }
        say("lowest ranks among the solutions")
        ranks = solution_ranks(problem)
        highest = ranks.infimal_upper
        if semidefinite:
            lowest = lowest_semidefinite_rank(problem, lower=ranks.infimal_lower)
            highest = min(problem.shape) if lowest is None else lowest[0]
        solutions = SolutionSet.of(problem)
        size = float(np.linalg.norm(solutions.project(np.zeros(solutions.shape))))
        return cls(found, ranks, infimal_effective_rank(problem), highest, size)


def judge_norms(
    runs: Runs, minima: Minima, scales: Sequence[float], tolerance: float
) -> list[Quantity]:
    """Every norm's limit against its minimum."""
    found = []
    for name, minimum in minima.norms.items():
        limits = _limits(runs, along_loss(runs, name))
        over_scales = _over_scales(runs, scales, limits)
        best = minimum.value
        ends = np.array([[limit.value for limit in row] for row in limits])
        known = minimum.certified or minimum.value - minimum.lower <= _KNOWN * tolerance * best
        statuses = [_norm_status(limit, best, known, tolerance) for limit in over_scales]
        found.append(
            _quantity(name, over_scales, ends / best, statuses, (minimum.lower, best), True, known)
        )
    return found


def judge_ranks(
    runs: Runs, minima: Minima, scales: Sequence[float], tolerance: float
) -> list[Quantity]:
    """The limit's rank and effective rank against their infima."""
    logs = runs.log_singular_values
    count = logs.shape[-1]
    # Distances to the matrices of rank k, over the size of the least solution.
    last = _last_usable(runs)
    before = np.searchsorted(-runs.losses, -10 * runs.losses[np.maximum(last, 0)])
    distances = [np.exp(_log_norm(logs[..., k:], 2.0)) / minima.size for k in range(1, count)]
    distances.append(np.zeros(logs.shape[:-1]))
    tails = np.stack([_at(distance, last) for distance in distances], axis=-1)
    tails_before = np.stack([_at(distance, before) for distance in distances], axis=-1)
    falls = tails <= _FALLS * tails_before
    vanish = []
    for seed in range(tails.shape[1]):
        used = int(np.sum(runs.certified[:, seed]))
        of_scales = np.asarray(scales[:used])
        vanish.append(
            [
                vanishing_in_scale(
                    of_scales,
                    tails[:used, seed, k],
                    tolerance,
                    falls_with_loss=bool(used and falls[used - 1, seed, k]),
                )
                for k in range(count)
            ]
        )
    ranks = minima.ranks
    lower, upper = ranks.infimal_lower, minima.highest_infimum
    statuses, limits = [], []
    for row in vanish:
        low, high = _rank(row)
        statuses.append(_rank_status(low, high, lower, upper))
        known = low == high
        kind, error = ("converges", 0.0) if known else ("unsettled", np.inf)
        limits.append(Limit(kind, float(low), error))
    at_runs = np.where(last >= 0, np.argmax(tails <= tolerance, axis=-1) + 1.0, np.nan)
    attained = ranks.attained
    interval = float(lower), float(upper)
    rank = _quantity("rank", limits, at_runs / upper, statuses, interval, attained, True)
    return [rank, _effective_rank(runs, minima, scales, tolerance)]


def _effective_rank(
    runs: Runs, minima: Minima, scales: Sequence[float], tolerance: float
) -> Quantity:
    limits = _limits(runs, along_loss(runs, "effective_rank"))
    over_scales = _over_scales(runs, scales, limits)
    bounds = minima.effective_rank
    statuses = [
        _norm_status(limit, bounds.upper, bounds.certified, tolerance) for limit in over_scales
    ]
    ends = np.array([[limit.value for limit in row] for row in limits]) / bounds.upper
    interval = bounds.lower, bounds.upper
    return _quantity(
        "effective_rank", over_scales, ends, statuses, interval, bounds.attained, False
    )


def along_loss(runs: Runs, name: str) -> NDArray[np.float64]:
    """A norm, or the effective rank, in all rows: shape `(scales, seeds, rows)`."""
    logs = runs.log_singular_values
    if name != "effective_rank":
        return np.exp(_log_norm(logs, norm_exponent(name)))
    shares = logs - logsumexp(logs, axis=-1, keepdims=True)
    terms = np.where(np.isfinite(shares), -np.exp(shares) * shares, 0.0)
    return np.exp(np.sum(np.where(np.isnan(logs), np.nan, terms), axis=-1))


def _limits(runs: Runs, values: NDArray[np.float64]) -> list[list[Limit]]:
    """Limits in loss, by scale and seed."""
    scales, seeds = values.shape[:2]
    return [
        [
            limit_in_loss(runs.losses, values[i, j], runs.usable[i, j], runs.trusted[i, j])
            for j in range(seeds)
        ]
        for i in range(scales)
    ]


def _over_scales(runs: Runs, scales: Sequence[float], limits: list[list[Limit]]) -> list[Limit]:
    """Limits in scale, by seed, from the scales that are certified."""
    found = []
    for seed, of_seed in enumerate(zip(*limits, strict=True)):
        count = int(np.sum(runs.certified[:, seed]))
        found.append(limit_in_scale(np.asarray(scales[:count]), list(of_seed[:count])))
    return found


def _quantity(
    name: str,
    limits: list[Limit],
    ratios: NDArray[np.float64],
    statuses: list[str],
    interval: tuple[float, float],
    attained: bool | None,
    decisive: bool,
) -> Quantity:
    status = statuses[0] if len(set(statuses)) == 1 else "undecided"
    limit = float(np.median([limit.value for limit in limits]))
    slopes = [limit.slope for limit in limits]
    return Quantity(
        name=name,
        limit=limit,
        limit_error=_error(limit, limits),
        infimum_lower=float(interval[0]),
        infimum_upper=float(interval[1]),
        attained=attained,
        ratio=limit / interval[1],
        status=status,
        loss_slope=float(np.max(slopes)),
        trend=_trend(ratios),
        ratios=ratios,
        decisive=decisive,
    )


def _error(middle: float, limits: list[Limit]) -> float:
    """How far off the middle every one of the limits may be."""
    if not np.all(np.isfinite([limit.value for limit in limits])):
        return np.inf
    return max(abs(limit.value - middle) + limit.error for limit in limits)


def _trend(ratios: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.median(np.abs(ratios - 1), axis=1)
        return float(excess[0] / excess[-1]) if excess[-1] > 0 else np.inf


def _norm_status(limit: Limit, best: float, known: bool, tolerance: float) -> str:
    if limit.kind == "diverges":
        return "diverges"
    if limit.kind == "unsettled":
        return "undecided"
    excess, error = limit.value / best - 1, limit.error / best
    if excess - error > tolerance:
        return "above"
    if known and excess < -tolerance:
        return "undecided"  # below a proved minimum: not the limit of solutions that count
    if error <= tolerance and excess <= tolerance:
        return "minimized" if known else "at best known"
    return "undecided"


def _rank(vanish: list[bool | None]) -> tuple[int, int]:
    """Bounds on the rank of a limit whose distances to rank 1, 2, ... vanish or not."""
    high = 1 + next((k for k, gone in enumerate(vanish) if gone), len(vanish) - 1)
    # What stays away from rank k stays away from lower ranks too.
    stays = max((k + 1 for k, gone in enumerate(vanish) if gone is False), default=0)
    return min(1 + stays, high), high


def _rank_status(low: int, high: int, lower: int, upper: int) -> str:
    if high <= lower:
        return "minimized"
    if low > upper:
        return "above"
    return "at best known" if low == high == upper else "undecided"


def _log_norm(logs: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Logarithm of the Schatten-p norm from those of the singular values."""
    if logs.shape[-1] == 0:
        return np.full(logs.shape[:-1], -np.inf)
    if math.isinf(p):
        return np.max(logs, axis=-1)
    return logsumexp(p * logs, axis=-1) / p


def _last_usable(runs: Runs) -> NDArray[np.intp]:
    """The last row of every run up to which all can be used; -1 where none can."""
    return np.sum(np.cumprod(runs.usable, axis=-1), axis=-1) - 1


def _at(values: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """The value in each run's row; NaN where there is none."""
    taken = np.take_along_axis(values, np.maximum(rows, 0)[..., None], axis=-1)[..., 0]
    return np.where(rows >= 0, taken, np.nan)
