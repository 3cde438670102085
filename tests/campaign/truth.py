"""The exact flow of a run's own numbers, as the rows that factorflow reached ask for it."""

import dataclasses
import itertools

import numpy as np

from campaign.exact.balance import (
    balanced,
    exact_rank,
    exactly_balanced,
    log_singular_values,
)
from campaign.exact.measures import product_of
from campaign.exact.runs import Problem, Rows, follow

__all__ = ["Truth", "exact_start", "parting", "problem_of", "truths"]

# Gaps up to this multiple of the rounding of squared factors count as balanced, and such starts
# stand for the exactly balanced ones of the same product: what `GradientFlow` documents.
_BALANCE_ULPS = 1e2
# Multiplications that a run may cost, at some 3e-9 seconds for each lane-wide one.
_BUDGET = 2.5e8
# Below this share of the largest, singular values of a start are the rounding of 32 digits.
_RANK = 1e-28
# Instants at which two references are compared on their way, and how far apart they may be, as a
# share of the largest entry: where they leave an invariant set a fifth of the time is between them.
_INSTANTS, _EARLIEST, _APART = 80, 1e-4, 1e-2
# A second reference starts this far away, relatively, and takes other steps.
_NUDGE = 1e-26


@dataclasses.dataclass(frozen=True)
class Truth:
    """Rows of the exact flow, and whether they belong to an exactly balanced start."""

    rows: Rows
    balanced: bool
    problem: Problem
    rank: int | None  # of a balanced start


def problem_of(problem) -> Problem:
    """In doubles, exactly: the numbers the run itself had."""
    used = np.asarray(problem.weights) > 0
    values = np.asarray(problem.values, float)[used]
    sensing = hasattr(problem, "measurements")
    return Problem(
        tuple(problem.shape),
        values,
        None if sensing else np.asarray(problem.indices)[used],
        np.asarray(problem.measurements, float)[used] if sensing else None,
        problem.normalization == "mean",
        "squared" if sensing else problem.penalty,
    )


def exact_start(factors, eps: float):
    """The factors in double-double, balanced anew where they are balanced up to rounding."""
    doubles = [np.asarray(factor, float) for factor in factors]
    given = [(w, np.zeros_like(w)) for w in doubles]
    if len(doubles) == 1:
        return given, False, None
    gaps = [b.T @ b - a @ a.T for a, b in itertools.pairwise(doubles)]
    gap = max(np.linalg.norm(g, 2) for g in gaps)
    size = max(np.linalg.norm(w, 2) for w in doubles) ** 2
    if gap > _BALANCE_ULPS * eps * size:
        return given, False, None
    widths = (doubles[0].shape[1], *(w.shape[0] for w in doubles))
    product = product_of(given)
    logs = log_singular_values(product)
    rank = int(np.sum(logs[0] - logs < -np.log(_RANK)))
    if exactly_balanced(doubles):
        return given, True, rank
    return balanced(product, widths, exact_rank(doubles)), True, rank


def truths(specs, kind: str, levels, latest, second: bool = False, seed: int = 0) -> list[Truth]:
    """Of runs of one structure; `second` nudges the starts and takes other steps."""
    problems = [problem_of(spec.problem) for spec in specs]
    eps = float(np.finfo(np.asarray(specs[0].factors[0]).dtype).eps)
    starts, flags, ranks = zip(*(exact_start(spec.factors, eps) for spec in specs), strict=True)
    depth = len(starts[0])
    size = float(np.mean([high.shape[0] * high.shape[1] for high, _ in starts[0]])) ** 1.5
    cost = (3 * (depth - 1) + 1) * 26**2 / 2 * (size + 4)
    most = int(np.clip(_BUDGET / cost, 300, 4_000))
    if second:
        rng = np.random.default_rng(seed)
        starts = [
            [(high, low + _NUDGE * high * rng.normal(size=high.shape)) for high, low in start]
            for start in starts
        ]
    options = {"order": 30, "tolerance": 1e-30} if second else {}
    found = follow(problems, list(starts), kind, levels, latest, most, **options)
    return [Truth(*parts) for parts in zip(found, flags, problems, ranks, strict=True)]


def parting(specs, latest) -> list[float]:
    """Per run the first time at which two references are apart; infinite if not until `latest`.

    32 digits too take a flow off an invariant set, after ln(1e32) units of its time, and references
    that both left one arrive together where the exact flow never goes.
    """
    instants = [max(t, 1e-300) * np.geomspace(_EARLIEST, 1, _INSTANTS) for t in latest]
    beyond = [1.1 * times[-1] for times in instants]
    one, two = (truths(specs, "time", instants, beyond, second=second) for second in (False, True))
    found = []
    for a, b, times in zip(one, two, instants, strict=True):
        found.append(np.inf)
        both = a.rows.reached & b.rows.reached
        for i in np.flatnonzero(both):
            here, there = (product_of(truth.rows.factors[i])[0] for truth in (a, b))
            if np.max(np.abs(here - there)) > _APART * np.max(np.abs(here)):
                found[-1] = times[i]
                break
    return found
