r"""The lowest ranks among the solutions of a problem, as intervals.

Over the solutions $S = \{W : \mathcal{A}(W) = b\}$ there are two lowest ranks. The **minimal**
rank is attained by a solution. The **infimal** rank is the smallest $k$ such that matrices of
rank $k$ come as near to $S$ as one likes; where it is not attained, they run to infinity on the
way. Both are hard in general: lower bounds here are proofs, upper bounds are matrices found.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from factorflow._problem import AbstractProblem
from factorflow.reference._inputs import require_at_least
from factorflow.reference.solutions._effective_rank import (
    effective_rank,
    lowest_effective_rank,
    lowest_given_distance,
    rank_one_direction,
)
from factorflow.reference.solutions._rank_minors import rank_one_by_minors
from factorflow.reference.solutions._rank_search import LowerBounds, RankFit, Search
from factorflow.reference.solutions.solution_set import SolutionSet, require_solutions

__all__ = [
    "EffectiveRankBounds",
    "RankFit",
    "SolutionRanks",
    "infimal_effective_rank",
    "solution_ranks",
]


@dataclasses.dataclass(frozen=True, eq=False)
class SolutionRanks:
    """Intervals that hold the minimal and the infimal rank of the solutions.

    **Attributes:**

    - `minimal_lower`: no solution has a lower rank.
    - `minimal_upper`: the rank of `minimal_product`, at most.
    - `infimal_lower`: no matrix of lower rank has a relative residual within `tolerance`.
    - `infimal_upper`: the rank of `infimal_product`, at most.
    - `minimal_product`: a solution to within `tolerance`, bounded however small the residual.
    - `infimal_product`: a matrix within `tolerance`, or as near as its size lets double precision
        come; the same where the infimal rank is attained.
    - `tolerance`: the relative residual that counts as zero.
    - `fits`: the best fit of each rank that was tried: evidence where an interval is open.
    """

    minimal_lower: int
    minimal_upper: int
    infimal_lower: int
    infimal_upper: int
    minimal_product: NDArray[np.float64]
    infimal_product: NDArray[np.float64]
    tolerance: float
    fits: tuple[RankFit, ...]

    @property
    def certified_minimal(self) -> bool:
        """Whether the minimal rank is known, that is its interval is a number."""
        return self.minimal_lower == self.minimal_upper

    @property
    def certified_infimal(self) -> bool:
        """Whether the infimal rank is known, that is its interval is a number."""
        return self.infimal_lower == self.infimal_upper

    @property
    def attained(self) -> bool | None:
        """Whether a solution has the infimal rank; `None` if the intervals leave it open."""
        if self.minimal_lower > self.infimal_upper:
            return False
        if self.minimal_upper <= self.infimal_lower:
            return True
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveRankBounds:
    """An interval that holds the infimum of the effective rank over the solutions.

    **Attributes:**

    - `lower`, `upper`: the interval.
    - `attained`: whether a solution has the effective rank `upper`; `None` if that is open.
    - `product`: a solution of that effective rank, or the direction in which solutions tend to it.
    - `direction`: whether `product` is a direction.
    """

    lower: float
    upper: float
    attained: bool | None
    product: NDArray[np.float64]
    direction: bool

    @property
    def certified(self) -> bool:
        """Whether the infimum is known, that is `lower == upper`."""
        return self.lower == self.upper


def solution_ranks(
    problem: AbstractProblem,
    *,
    tolerance: float | None = None,
    starts: int | None = None,
    max_rank: int | None = None,
    seed: int = 0,
) -> SolutionRanks:
    r"""Bounds on the minimal and on the infimal rank over the solutions of a problem:

    $$\min_{\mathcal{A}(W) = b} \operatorname{rank} W, \qquad
      \min \Big\{ k : \inf_{\operatorname{rank} W \le k} \| \mathcal{A}(W) - b \| = 0 \Big\}$$

    **Lower bounds are proofs,** up to rounding. Of a completion: for both ranks, the rank of a
    fully observed block, at the tolerance, and rank one decided from the cycles of the
    observation graph; for the minimal rank, rows that are independent whatever the hidden entries
    are. A search finds these blocks and rows: it may miss the best ones in large matrices. Of
    sensing, unless the solution is unique: rank one is excluded where a combination of 2x2 minors
    shows it, for up to about ten rows and columns; higher ranks are not.

    **Upper bounds are matrices.** Ranks are tried upwards from the lower bound by
    Levenberg-Marquardt from several starts, half of them prepared by alternating least squares,
    down to the last digit. A residual within the tolerance with a norm that settles is a
    solution. A residual that falls over four decades or more, to 1e-6 at least, while the norm
    grows by more than its power 0.1 shows an infimum that is not attained: evidence, not a proof.

    **Arguments:**

    - `problem`: a matrix `Completion` or `Sensing`.
    - `tolerance`: the residual relative to $\|b\|$ that counts as zero. By default 1e-8, and 1e-5
        for observations in single precision, which do not hold a rank better than that. An
        observation of exactly zero is a zero at every tolerance.
    - `starts`: of the fit of each rank, the first from the least solution's leading directions. By
        default 32 for small problems down to 6 for large ones. Near the smallest number of
        observations that can fix a matrix, most starts fail.
    - `max_rank`: the largest rank to fit; `min(rows, columns)` by default. Without a fit, a
        solution of least norm gives the upper bounds.
    - `seed`: of the random starts.

    **Returns:** `SolutionRanks`.

    **Raises:** `ValueError` for tensors, observations without solution (with the smallest
    residual), a `tolerance` outside (0, 1), `starts` or `max_rank` below 1, and a negative `seed`.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.reference import solution_ranks
        >>> ranks = solution_ranks(ff.razin_cohen_problem())
        >>> ranks.minimal_lower, ranks.minimal_upper, ranks.infimal_lower, ranks.infimal_upper
        (2, 2, 1, 1)
        >>> ranks.attained
        False

        ```

    ??? cite "Reference"

        The bounds are derived for factorflow. The infimal rank is that of Razin and Cohen (2020):

        ```bibtex
        @inproceedings{razin2020implicit,
            author = {Razin, Noam and Cohen, Nadav},
            title = {Implicit Regularization in Deep Learning May Not Be Explainable by Norms},
            booktitle = {Advances in Neural Information Processing Systems},
            year = {2020},
        }
        ```
    """
    solutions = SolutionSet.of(problem)
    tolerance = _checked(solutions, tolerance, starts, max_rank, seed)
    # The matrices of a fit are small: more threads than one only wait for each other.
    with threadpool_limits(1, user_api="blas"):
        return _ranks(solutions, tolerance, starts, max_rank, seed)


def _ranks(
    solutions: SolutionSet, tolerance: float, starts: int | None, max_rank: int | None, seed: int
) -> SolutionRanks:
    """`solution_ranks` for arguments that have been checked."""
    size = float(np.linalg.norm(solutions.values))
    require_solutions(solutions, tolerance * size)
    least = solutions.project(np.zeros(solutions.shape))
    if size == 0.0:
        return SolutionRanks(0, 0, 0, 0, least, least, tolerance, ())
    if solutions.dimension == 0:
        return _of_unique(solutions, least, tolerance, size)
    lowest = LowerBounds.of(solutions, tolerance * size)
    highest = min(solutions.shape)
    search = Search(solutions, tolerance, size, starts, np.random.default_rng(seed), lowest.one)
    last = highest - 1 if max_rank is None else min(max_rank, highest - 1)
    fits, nearest, solution = [], None, None
    for rank in range(lowest.infimal, last + 1):
        if nearest is not None and rank < lowest.minimal:
            continue
        found, product = search.fit(rank, wants_solution=rank >= lowest.minimal)
        fits.append(found)
        if found.kind == "stuck":
            continue
        if nearest is None:
            nearest = rank, product
        if found.kind == "attained" and rank >= lowest.minimal:
            solution = rank, product
            break
    if solution is None:
        solution = highest, least
    if nearest is None:
        nearest = solution
    return SolutionRanks(
        lowest.minimal,
        solution[0],
        lowest.infimal,
        nearest[0],
        solution[1],
        nearest[1],
        tolerance,
        tuple(fits),
    )


def infimal_effective_rank(
    problem: AbstractProblem,
    *,
    tolerance: float | None = None,
    starts: int | None = None,
    seed: int = 0,
) -> EffectiveRankBounds:
    r"""Bounds on the lowest effective rank among the solutions of a problem:

    $$\inf_{\mathcal{A}(W) = b} \exp\Big( -\sum_i p_i \ln p_i \Big), \qquad
      p_i = \frac{\sigma_i(W)}{\sum_j \sigma_j(W)}$$

    It counts solutions of any size. Growing along $D$ with $\mathcal{A}(D) = 0$, solutions tend to
    the effective rank of $D$. So a single hidden entry makes the infimum of a completion exactly
    1, attained only by a solution of rank one. The same holds for sensing where a matrix of rank
    one measures zero. Otherwise the upper bound is the lowest value that descent finds, among
    solutions and directions; the lower bound comes from 2x2 minors where they keep all solutions
    away from rank one, and is 1 otherwise. That interval stays open.

    **Arguments:**

    - `problem`: a matrix `Completion` or `Sensing`.
    - `tolerance`, `starts`, `seed`: as for `solution_ranks`; descents start 8 times by default.

    **Returns:** `EffectiveRankBounds`; 0 if the observations are zero.

    **Raises:** `ValueError` as `solution_ranks`.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.reference import infimal_effective_rank
        >>> bounds = infimal_effective_rank(ff.razin_cohen_problem())
        >>> bounds.lower, bounds.upper, bounds.attained, bounds.product.tolist()
        (1.0, 1.0, False, [[1.0, 0.0], [0.0, 0.0]])

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{roy2007effective,
            author = {Roy, Olivier and Vetterli, Martin},
            title = {The Effective Rank: A Measure of Effective Dimensionality},
            booktitle = {European Signal Processing Conference},
            year = {2007},
        }
        ```
    """
    ranks = solution_ranks(problem, tolerance=tolerance, starts=starts, max_rank=1, seed=seed)
    solutions = SolutionSet.of(problem)
    solution = ranks.minimal_product
    if ranks.minimal_upper == 0:
        return EffectiveRankBounds(0.0, 0.0, True, solution, False)
    if ranks.minimal_upper == 1:
        return EffectiveRankBounds(1.0, 1.0, True, solution, False)
    if solutions.dimension == 0:
        only = effective_rank(solution)
        return EffectiveRankBounds(only, only, True, solution, False)
    # A rank-one solution was not found: excluded for certain, or not.
    attained = False if ranks.minimal_lower > 1 else None
    if solutions.mask is not None:
        direction = np.zeros(solutions.shape)
        direction[tuple(np.argwhere(~solutions.mask)[0])] = 1.0
        return EffectiveRankBounds(1.0, 1.0, attained, direction, True)
    with threadpool_limits(1, user_api="blas"):
        return _of_measurements(solutions, ranks, attained, starts or 8, seed)


def _of_measurements(
    solutions: SolutionSet, ranks: SolutionRanks, attained: bool | None, starts: int, seed: int
) -> EffectiveRankBounds:
    """The infimal effective rank where no solution of rank one was found."""
    generator = np.random.default_rng(seed)
    direction = rank_one_direction(solutions, ranks.tolerance, starts, generator)
    if direction is not None:
        return EffectiveRankBounds(1.0, 1.0, attained, direction, True)
    if ranks.infimal_upper == 1:
        return EffectiveRankBounds(1.0, 1.0, attained, ranks.infimal_product, True)
    product, runs_away = lowest_effective_rank(solutions, starts, generator)
    found = effective_rank(product)
    size = float(np.linalg.norm(solutions.values))
    apart = rank_one_by_minors(solutions, ranks.tolerance * size).apart
    lower = min(lowest_given_distance(apart), found)
    return EffectiveRankBounds(lower, found, None if runs_away else True, product, runs_away)


def _checked(
    solutions: SolutionSet,
    tolerance: float | None,
    starts: int | None,
    max_rank: int | None,
    seed: int,
) -> float:
    """The tolerance; `ValueError` for arguments out of range."""
    if starts is not None:
        require_at_least("starts", starts, 1, "a fit needs a start")
    require_at_least("seed", seed, 0, "pass a seed as numpy.random.default_rng takes it")
    if max_rank is not None:
        require_at_least("max_rank", max_rank, 1, "rank 0 fits only zeros")
    if tolerance is None:
        return 1e-8 if solutions.epsilon < 1e-10 else 1e-5
    if not 0 < tolerance < 1:
        raise ValueError(
            f"tolerance must lie between 0 and 1, got {tolerance}: it is relative to the norm of "
            "the observations, and in floating point no residual is exactly zero; pass 1e-8."
        )
    return float(tolerance)


def _of_unique(
    solutions: SolutionSet, solution: NDArray[np.float64], tolerance: float, size: float
) -> SolutionRanks:
    """The only solution's ranks at the tolerance: by its singular values."""
    left, sizes, right = np.linalg.svd(solution, full_matrices=False)
    # A matrix at a distance from the solution has at least this share of it as its residual.
    share = float(solutions.sizes[-1])
    tails = [float(np.linalg.norm(sizes[k:])) for k in range(sizes.size + 1)]
    room = tolerance * size + solutions.inconsistency
    lower = next(k for k, tail in enumerate(tails) if share * tail <= room)
    for upper in range(lower, sizes.size + 1):
        product = (left[:, :upper] * sizes[:upper]) @ right[:upper]
        if upper == sizes.size or solutions.residual(product) <= tolerance * size:
            return SolutionRanks(lower, upper, lower, upper, product, product, tolerance, ())
    raise AssertionError("the solution itself is the last product")
