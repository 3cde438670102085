"""Fits of increasing rank and what they show, and lower bounds to start from."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from factorflow.reference.solutions._rank_fits import Model, Path, fit, model_of, starts_of
from factorflow.reference.solutions._rank_lower import block_rank, staircase_rank
from factorflow.reference.solutions._rank_minors import rank_one_by_minors
from factorflow.reference.solutions._rank_one import RankOne, rank_one
from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["LowerBounds", "RankFit", "Search"]

Kind: TypeAlias = Literal["attained", "diverging", "close", "stuck"]

# A norm that grows less than this power of the falling residual settles; more than the other,
# it diverges. The 2x2 problem has the power 1, an attained solution 0.
_SETTLES, _DIVERGES = 0.02, 0.1
# Evidence of divergence: so many decades of residual, down to so small a one.
_DECADES, _DEEP = 4.0, 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class RankFit:
    """The best fit of one rank.

    **Attributes:**

    - `rank`: of the product, at most.
    - `kind`: `"attained"`: the residual reached the tolerance and the norm settled; `"diverging"`:
        the residual falls towards zero while the norm grows like a power of it; `"close"`: the
        residual reached the tolerance, while the norm neither settles nor clearly diverges;
        `"stuck"`: a residual above the tolerance, in all starts.
    - `residual`, `norm`: the relative residual and the Frobenius norm of the product.
    - `decades`: by how many the residual fell below a tenth, along the fit.
    - `slope`: of log norm against log residual, over half of the decades or more.
    - `starts`: how many were tried.
    """

    rank: int
    kind: Kind
    residual: float
    norm: float
    decades: float
    slope: float
    starts: int


@dataclasses.dataclass(frozen=True, eq=False)
class LowerBounds:
    """Lower bounds, and what is known of rank one."""

    minimal: int
    infimal: int
    one: RankOne | None

    @classmethod
    def of(cls, solutions: SolutionSet, delta: float) -> "LowerBounds":
        if solutions.mask is None:
            proof = rank_one_by_minors(solutions, delta)
            return cls(2 if proof.unattained else 1, 2 if proof.out_of_reach else 1, None)
        values = solutions.adjoint(solutions.values)
        one = rank_one(solutions.mask, values, delta)
        infimal = max(block_rank(solutions.mask, values, delta), 2 if one.out_of_reach else 1)
        minimal = max(staircase_rank(solutions.mask, values, delta), 2 if one.unattained else 1)
        return cls(max(minimal, infimal), infimal, one)


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """Fits of increasing rank to the same observations."""

    solutions: SolutionSet
    tolerance: float
    size: float
    starts: int | None
    generator: np.random.Generator
    one: RankOne | None

    def fit(self, rank: int, *, wants_solution: bool) -> tuple[RankFit, NDArray[np.float64]]:
        """The best fit of a rank and its product: the first that does what is wanted."""
        flip = self.solutions.shape[0] > self.solutions.shape[1]
        model = model_of(self.solutions, flip=flip)
        # About as many unknowns in all, so that small problems, cheap to fit, get more starts.
        count = self.starts or int(np.clip(3000 // (min(self.solutions.shape) * rank), 6, 32))
        lefts = starts_of(self.solutions, rank, count, self.generator, flip=flip)
        best: tuple[int, float, RankFit, NDArray[np.float64]] | None = None
        tried = 0
        for path in self._paths(rank, model, lefts, flip=flip):
            tried += 1
            kind, residual = self._judged(path)
            norm = float(np.linalg.norm(path.product))
            found = RankFit(rank, kind, residual, norm, path.decades, path.slope, tried)
            order = ("attained", "diverging", "close", "stuck").index(kind)
            if best is None or (order, residual) < best[:2]:
                best = order, residual, found, path.product
            if kind == "attained" or (kind == "diverging" and not wants_solution):
                break
        assert best is not None
        return dataclasses.replace(best[2], starts=tried), best[3]

    def _paths(
        self, rank: int, model: Model, lefts: Iterator[NDArray[np.float64]], *, flip: bool
    ) -> Iterator[Path]:
        """Rank one from the observation graph where it is known; then the starts in turn."""
        if rank == 1 and self.one is not None and not self.one.out_of_reach:
            if self.one.moves:
                yield _family(self.one, self.solutions, self.size, self.tolerance)
            else:
                u, v = self.one.factors(1.0)
                lefts = itertools.chain([v if flip else u], lefts)
        for left in lefts:
            path = fit(model, left, self.size, self.tolerance)
            yield dataclasses.replace(path, product=path.product.T) if flip else path

    def _judged(self, path: Path) -> tuple[Kind, float]:
        residual = self.solutions.residual(path.product) / self.size
        diverges = path.slope <= -_DIVERGES and path.decades >= _DECADES
        if diverges and path.residual <= max(_DEEP, self.tolerance):
            return "diverging", residual
        if residual > self.tolerance:
            return "stuck", residual
        return ("attained" if path.slope >= -_SETTLES else "close"), residual


def _family(one: RankOne, solutions: SolutionSet, size: float, enough: float) -> Path:
    """Rank-one matrices that reach the observations in the limit, as a path."""
    residuals, norms, product = [], [], None
    # As far as the squares of the largest entries do not overflow.
    spread = float(np.max(one.left_levels) - np.min(-one.right_levels))
    for exponent in np.linspace(0.0, min(12.0, 100.0 / spread), 13):
        u, v = one.factors(10.0**exponent)
        matrix = u @ v.T
        residuals.append(solutions.residual(matrix) / size)
        norms.append(float(np.linalg.norm(matrix)))
        if product is None or (residuals[-1] < residuals[-2] and residuals[-2] > enough):
            product = matrix
    assert product is not None
    return Path(np.array(residuals), np.array(norms), product)
