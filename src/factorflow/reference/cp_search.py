"""The search for the fewest components that come near enough to a tensor of unit norm."""

import math
from collections.abc import Iterator

import numpy as np

from factorflow.reference._patience import OUT_OF_TIME, Patience
from factorflow.reference.cp_errors import is_within
from factorflow.reference.cp_fit import (
    Factors,
    algebraic_starts,
    alternate,
    balanced,
    best_starts,
    levenberg_marquardt,
    normal_operations,
    random_starts,
    square_errors,
)
from factorflow.reference.slices import slice_components
from factorflow.reference.unfoldings import tails

# Share of the squared tolerance that compression may spend. Noise below the tolerance goes here.
_COMPRESSION = 1.0 / 16.0
_ALGEBRAIC_STARTS = 4
_POLISH_ITERATIONS = 30
# All random starts, then the best of them for longer.
_FIRST_SWEEPS, _CONTINUED = 20, 4
_SWEEPS = 60
_ITERATIONS = 100
# Beyond this number of unknowns the normal matrix costs more than the sweeps it saves; beyond this
# number of operations a single step takes longer than a user who interrupts will wait.
_MOST_UNKNOWNS = 2000
_MOST_OPERATIONS = 1e10
_SWEEPS_ALONE = 500
_FIRST_STEP = 2
# Of the time left, what a single fit may take: the first of a large tensor would take it all.
_SHARE = 0.25
# Logs of the squared error over the one allowed: that are looked at more closely, that are told.
_NEARLY, _FAR = 2.0, 100.0
# Of the squared tolerance. Less than all of it only where rounding decides, and with none of it
# slices are exact.
_SLICE_SHARES = 1.0, 0.9, 0.0
_TINY = float(np.finfo(float).tiny)


def fewest_components(
    tensor: np.ndarray,
    distance: float,
    spaces: list[tuple[np.ndarray, np.ndarray]],
    *,
    lower: int,
    restarts: int,
    max_fits: int,
    generator: np.random.Generator,
    patience: Patience,
) -> list[np.ndarray]:
    """Factors within less than `distance` of the tensor, with as few columns as were found.

    That they are within is certain whatever rounding does. Where the patience ends, they are those
    found until then, at worst slices.

    **Arguments:**

    - `tensor`: of a norm near one and order 2 or more; not nearer to zero than `distance`.
    - `spaces`: its `mode_spaces`.
    - `lower`: at least 1; no rank below is tried.
    - `restarts`, `max_fits`, `generator`: as in `cp_rank`.
    - `patience`: asked before everything that takes long.

    **Returns:** one array of shape (d_k, rank) for every mode.
    """
    search = _Search(tensor, distance**2, spaces, restarts, generator, patience)
    with patience:
        if search.is_matrix or max_fits == 0:
            search.slice()
        if search.rank > lower and max_fits > 0 and tensor.ndim > 2:
            search.narrow(lower, max_fits)
    if not search.found:
        search.slice()
    return [factor[0] for factor in search.found]


class _Search:
    """The best decomposition found so far, and the compressed tensor that is fitted."""

    found: Factors

    def __init__(
        self,
        tensor: np.ndarray,
        target: float,
        spaces: list[tuple[np.ndarray, np.ndarray]],
        restarts: int,
        generator: np.random.Generator,
        patience: Patience,
    ):
        self.tensor, self.target = tensor, target
        self.restarts, self.generator, self.patience = restarts, generator, patience
        self.bases, self.core, self.core_target = _compressed(tensor, target, spaces)
        self.found = []

    @property
    def is_matrix(self) -> bool:
        """Whether slices are the whole answer: at most two modes are left."""
        return sum(dim > 1 for dim in self.core.shape) <= 2

    @property
    def rank(self) -> int:
        """Number of components found; before there are any, more than can be needed."""
        return self.found[0].shape[2] if self.found else self.tensor.size + 1

    def slice(self) -> None:
        """Take the slices of the tensor, or of its core if there are fewer."""
        for share in _SLICE_SHARES:
            if self._accept(slice_components(self.tensor, share * self.target), compressed=False):
                break
        if self.core.shape != self.tensor.shape:
            self._accept(slice_components(self.core, self.core_target))
        self.patience.say(f"slices: {self.rank} components")

    def narrow(self, lower: int, max_fits: int) -> None:
        """Fit at the lower bound, then between it and the rank found, until fits run out.

        A failed fit proves nothing: once no rank is left between one that failed and the one
        found, all above the lower bound are open again, to be tried from other random starts.
        """
        first = lower, self.fit(lower)
        if self.rank == lower:
            return
        self.slice()
        from_slices = self.rank
        failed, step = [first], _FIRST_STEP
        for _ in range(max_fits - 1):
            if self.rank - failed[-1][0] < 2:
                failed = [first]
            if self.rank - lower < 2:
                return
            longest = step if self.rank == from_slices else self.rank
            rank = _next_rank(failed, self.rank, longest)
            excess = self.fit(rank)
            if self.rank > rank:
                failed.append((rank, excess))
                # Where time is short, there is none for ranks that grow slowly.
                step = 2 * step if math.isfinite(excess) else self.rank

    def fit(self, rank: int) -> float:
        """Try that many components; the log of the squared error left over the one allowed.

        That is infinite where the fit was not finished for want of time.
        """
        self.patience.spend()
        excess = math.inf
        # A start may overflow; it is then infinite or NaN, and never accepted.
        with self.patience.part(_SHARE) as patience, np.errstate(over="ignore", invalid="ignore"):
            for starts in self._refined_starts(rank, patience):
                start = best_starts(self.core, starts, 1)
                error = float(square_errors(self.core, start)[0])
                excess = min(excess, math.log(max(error, _TINY) / self.core_target))
                # A little above, rounding may have the last word.
                if excess < _NEARLY and self._accept(start):
                    break
        over = f"{math.exp(min(excess, _FAR) / 2):.3g} times the error allowed"
        self.patience.say(f"{rank} components: {'enough' if self.rank == rank else over}")
        return math.inf if patience.ended == OUT_OF_TIME else excess

    def _refined_starts(self, rank: int, patience: Patience) -> Iterator[Factors]:
        """Refined starts for that rank, the cheapest first, each computed when asked for."""
        core, target, generator = self.core, self.core_target, self.generator
        large = rank * (sum(core.shape) - max(core.shape)) > _MOST_UNKNOWNS
        large = large or normal_operations(core.shape, rank) > _MOST_OPERATIONS
        starts = algebraic_starts(core, rank, _ALGEBRAIC_STARTS, generator, patience)
        if starts is not None:
            start = best_starts(core, starts, 1)
            if not large:
                start = levenberg_marquardt(core, start, target, _POLISH_ITERATIONS, patience)
            yield start
        # To make the starts' tensors once, and to improve each once.
        if not patience.lasts(2 * (core.ndim + 1) * self.restarts * rank * core.size):
            return
        starts = random_starts(core, rank, self.restarts, generator)
        if large:
            yield alternate(core, starts, target, _SWEEPS_ALONE, patience)
            return
        starts = alternate(core, starts, target, _FIRST_SWEEPS, patience)
        starts = alternate(core, best_starts(core, starts, _CONTINUED), target, _SWEEPS, patience)
        start = best_starts(core, starts, 1)
        yield levenberg_marquardt(core, start, target, _ITERATIONS, patience)

    def _accept(self, start: Factors, compressed: bool = True) -> bool:
        """Keep a start that meets the tolerance, if it has fewer components than the last."""
        if start[0].shape[2] >= self.rank:
            return False
        # The tensor itself decides: its core is subject to rounding.
        if compressed:
            start = [basis @ factor for basis, factor in zip(self.bases, start, strict=True)]
        factors = balanced(start)
        if not is_within(self.tensor, factors, self.target):
            return False
        self.found = factors
        return True


def _next_rank(failed: list[tuple[int, float]], found: int, step: int) -> int:
    """A rank between the last that failed and the one found.

    The error often falls by about the same factor with every component. Where the last two
    failures say that this leads to the tolerance at a rank within reach, it is that rank;
    otherwise the middle, but at most `step` higher.
    """
    low, excess = failed[-1]
    if len(failed) > 1 and math.isfinite(failed[-2][1]):
        slope = (failed[-2][1] - excess) / (low - failed[-2][0])
        if 0.0 < excess <= slope * min(found - low, 2 * step):
            return min(low + math.ceil(excess / slope), found - 1)
    return min(low + step, (low + found) // 2)


def _compressed(
    tensor: np.ndarray, target: float, spaces: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Orthonormal bases of the modes, the tensor in them, and the squared error left to a fit.

    A fit within the bases is off by an error within them and, at right angles, by what the bases
    leave out: the squares add.
    """
    bases, core, left = [], tensor, target
    for mode, (vectors, values) in enumerate(spaces):
        tail = tails(values)
        kept = max(1, int(np.argmax(tail <= _COMPRESSION * target / tensor.ndim)))
        if kept < tensor.shape[mode]:
            basis = vectors[:, :kept]
            left -= float(tail[kept])
            core = np.moveaxis(np.tensordot(basis.T, core, (1, mode)), 0, mode)
        else:
            # A full basis is left alone: rotated, a sparse tensor would lose its zeros.
            basis = np.eye(tensor.shape[mode])
        bases.append(basis)
    return bases, np.ascontiguousarray(core), left
