r"""The CP rank of a tensor at a tolerance, as an interval with a certificate.

The CP rank at a tolerance is the smallest number $r$ of rank-one tensors
$a^{1}_j \otimes \dots \otimes a^{N}_j$ whose sum is nearer to the tensor than the tolerance.
Computing it is hard in general, and a fit that fails proves nothing. So the answer has two
halves: a lower bound from unfoldings that holds whatever a fit does, and the factors of the best
fit. Where they meet, the rank is known.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike
from threadpoolctl import ThreadpoolController

from factorflow._settings import own_settings
from factorflow.reference._inputs import is_traced, require_at_least
from factorflow.reference._patience import COMPLETE, Patience
from factorflow.reference.cp_errors import sum_of_squares
from factorflow.reference.cp_search import fewest_components
from factorflow.reference.unfoldings import mode_spaces, unfolding_bounds

# A relative distance below this drowns in the rounding of the factors to double precision.
_FINEST = 1e-12
# Factors must undercut the tolerance by this share, so that evaluating their error in another
# order of summation gives the same verdict, unless large components cancel.
_MARGIN = 1e-9
# Above the rounding of a few operations, relative.
_ROUNDING = 2.0**-48


@dataclass(frozen=True, eq=False, repr=False)
class RankBounds:
    r"""An interval that holds the CP rank of a tensor at a tolerance.

    **Attributes:**

    - `lower`: no sum of fewer components meets the tolerance.
    - `upper`: the number of components in `factors`.
    - `factors`: for every mode $k$ an array of shape $(d_k, \text{upper})$ in double precision.
        Summed over columns, their outer products meet the tolerance.
    - `ended`: `"complete"`, or how the search ended before it was: `"out_of_time"` or
        `"interrupted"`. The bounds hold all the same.
    """

    lower: int
    upper: int
    factors: tuple[np.ndarray, ...]
    ended: str = COMPLETE

    @property
    def certified(self) -> bool:
        """Whether the rank is known, that is `lower == upper`."""
        return self.lower == self.upper

    @property
    def complete(self) -> bool:
        """Whether the search ended by itself: with a certificate, or for want of further fits."""
        return self.ended == COMPLETE

    def __repr__(self) -> str:
        rank = f"{self.lower}" if self.certified else f"{self.lower} to {self.upper}"
        shape = " x ".join(str(len(factor)) for factor in self.factors)
        return f"RankBounds(rank {rank} of a {shape} tensor, {self.ended})"


@own_settings()
def cp_rank(
    tensor: ArrayLike,
    mse: float | int | None = None,
    *,
    relative_error: float | None = None,
    restarts: int = 16,
    max_fits: int = 16,
    seed: int = 0,
    time_budget: float | int | None = 30.0,
    progress: Callable[[str], None] | None = None,
) -> RankBounds:
    r"""Bounds on the CP rank at a tolerance: on the smallest $r$ that allows

    $$\frac{1}{\prod_k d_k} \Big\| T - \sum_{j=1}^{r} a^{1}_j \otimes \dots \otimes a^{N}_j
      \Big\|_F^2 < \text{mse}$$

    **The tolerance is absolute unless `relative_error` is given.** At $\|T\|_F = 1$ the default
    of $10^{-6}$ is a relative error of 2.3% for 8x8x8 and of 6.4% for 8x8x8x8.

    Lower bound: for every split of the modes into two groups (up to order 8; beyond, for single
    modes, pairs and runs of neighbors), the rank of the unfolding at the same tolerance. A rank
    is excluded only if its distance exceeds the tolerance whatever rounding does: singular values
    come with a bound on their error, some $10^{-15} m$ for $m$ of them and $\|T\|_F = 1$.

    Upper bound: the tensor is compressed to the leading singular spaces of its modes, then fitted
    at the lower bound from simultaneous diagonalization. If that fails, at higher ranks by
    alternating least squares from random starts and Levenberg-Marquardt on the best of them; the
    ranks grow by doubled steps until one succeeds and are then bisected. Slices give a
    decomposition that needs no fit: `upper` is at most $\prod_k d_k / \max_k d_k$. That factors
    meet the tolerance, as the numbers they are and in exact arithmetic, is proved for all of them:
    their residual is computed with a bound on its rounding error, in pairs of doubles where one
    double does not decide.

    The search of a large or noisy tensor takes long. It ends after `time_budget` seconds, or at
    Ctrl-C (which raises no `KeyboardInterrupt` then), and what is known is returned, with `ended`
    saying so.

    A tensor whose best fit does not exist, of border rank below its rank, has the border rank as
    its rank at every tolerance. The components then grow without bound as the tolerance shrinks.

    **Arguments:**

    - `tensor`: order 2 or more, real; computed in double precision whatever its dtype.
    - `mse`: the mean squared error to stay below; 1e-6 if neither tolerance is given.
    - `relative_error`: instead, the relative error $\|T - T'\|_F / \|T\|_F$ to stay below.
    - `restarts`: random starts of a fit, computed together.
    - `max_fits`: ranks tried at most, for tensors of order 3 and more. 0 leaves unfoldings and
      slices.
    - `seed`: of the random starts. The same tensor and arguments give the same answer, unless
        time runs out.
    - `time_budget`: seconds after which the search ends; `None` for no limit. A decomposition
        under way may exceed them by about a second.
    - `progress`: called with a line after each stage and fit, e.g. `print`.

    **Returns:** `RankBounds`. For a matrix they coincide, unless the tolerance lies within
    rounding of a singular-value tail. A tensor below the tolerance, zero for instance, has rank
    0 and factors without columns.

    **Raises:** `ValueError` for a tensor of order below 2, empty, complex, not finite or traced;
    for both tolerances together, one that is not positive and finite, a `relative_error` of 1 or
    more, or one that double precision does not resolve; for `restarts` below 1, negative
    `max_fits` or `seed`, and a `time_budget` that is not positive.

    **Example:**

    >>> import numpy as np
    >>> from factorflow.reference import cp_rank
    >>> a, b = np.eye(3)[:2]
    >>> tensor = np.einsum("i,j,k->ijk", a, a, a) + np.einsum("i,j,k->ijk", a, b, b)
    >>> bounds = cp_rank(tensor)
    >>> bounds.lower, bounds.upper, bounds.certified
    (2, 2, True)
    >>> error = tensor - np.einsum("ir,jr,kr->ijk", *bounds.factors)
    >>> bool(np.mean(error**2) < 1e-6)
    True

    ??? cite "Reference"

        Derived for factorflow; the bounds combine well-known ones. The tolerance of 1e-6 is that
        of Razin, Maman and Cohen (2021):

            @inproceedings{razin2021implicit,
                title={Implicit Regularization in Tensor Factorization},
                author={Razin, Noam and Maman, Asaf and Cohen, Nadav},
                booktitle={International Conference on Machine Learning},
                year={2021},
            }
    """
    require_at_least("restarts", restarts, 1, "a fit needs a random start")
    require_at_least("max_fits", max_fits, 0, "0 does without fits")
    require_at_least("seed", seed, 0, "pass a seed as numpy.random.default_rng takes it")
    if time_budget is not None and not time_budget > 0:
        raise ValueError(
            f"time_budget must be positive, got {time_budget}: seconds, or None for no limit"
        )
    if mse is None and relative_error is None:
        mse = 1e-6
    _check_tolerances(mse, relative_error)
    patience = Patience(time_budget, progress)
    array = _checked(tensor)
    scaled, exponent = _near_one(array)
    square = sum_of_squares(scaled)
    allowed = _allowed(mse, relative_error, array.size, square, exponent)
    if square * (1.0 + _ROUNDING) < allowed or square == 0.0:
        return RankBounds(0, 0, tuple(np.zeros((dim, 0)) for dim in array.shape))
    if allowed < _FINEST**2 * square:
        asked = math.ldexp(math.sqrt((mse or 0.0) * array.size / square), -exponent)
        raise ValueError(
            f"the tolerance mse={mse} is a relative error of {asked:.1e} for this tensor, which "
            "double precision does not resolve: ask for a larger one, for instance "
            "relative_error=1e-10"
        )
    lower, distance = 0, math.sqrt(allowed)
    with _threads().limit(limits=1, user_api="blas"):
        spaces = mode_spaces(scaled)
        of_modes = [values for _, values in spaces]
        with patience:
            for lower in unfolding_bounds(scaled, distance * (1.0 + _ROUNDING), of_modes, patience):
                patience.say(f"unfoldings: at least {lower} components")
        factors = fewest_components(
            scaled,
            distance * (1.0 - _MARGIN),
            spaces,
            lower=max(lower, 1),
            restarts=restarts,
            max_fits=max_fits,
            generator=np.random.default_rng(seed),
            patience=patience,
        )
    sized = _sized(factors, exponent)
    ended = COMPLETE if lower == sized[0].shape[1] else patience.ended
    return RankBounds(lower, sized[0].shape[1], sized, ended)


@functools.cache
def _threads() -> ThreadpoolController:
    """Control over NumPy's linear algebra.

    The matrices here are small: more threads than one gain nothing, and where others compete for
    the cores they wait for each other for ten times as long as the work takes.
    """
    return ThreadpoolController()


def _check_tolerances(mse: float | int | None, relative_error: float | None) -> None:
    """Raise `ValueError` unless there is one tolerance, and it can be met."""
    if mse is not None and relative_error is not None:
        raise ValueError(
            f"mse={mse} and relative_error={relative_error} are two tolerances: give one of them"
        )
    name, value = ("mse", mse) if relative_error is None else ("relative_error", relative_error)
    if value == 0:
        raise ValueError(
            f"{name} must be > 0, got {value}: the rank at tolerance 0 cannot be computed in "
            "floating point, any rounding error gives full rank; ask for relative_error=1e-10"
        )
    if mse is not None and not 0 < mse < math.inf:
        raise ValueError(f"mse must be positive and finite, got {mse}: pass for example 1e-6")
    if relative_error is not None and not 0 < relative_error < 1:
        raise ValueError(
            f"relative_error must lie between 0 and 1, got {relative_error}: pass for example "
            "0.01; at 1 and above every tensor has rank 0"
        )
    if relative_error is not None and relative_error < _FINEST:
        raise ValueError(
            f"relative_error must be >= {_FINEST}, got {relative_error}: double precision does "
            "not resolve less; ask for relative_error=1e-10"
        )


def _checked(tensor: ArrayLike) -> np.ndarray:
    """The tensor in double precision; `ValueError` unless it is one whose rank can be asked."""
    if is_traced(tensor):
        raise ValueError(
            f"cp_rank runs in NumPy and got the traced value {tensor}: call it outside jit"
        )
    array = np.asarray(tensor)
    if np.iscomplexobj(array):
        raise ValueError(
            f"tensor must be real, got dtype {array.dtype}: real and complex ranks differ, "
            "pass a real tensor"
        )
    if array.ndim < 2:
        raise ValueError(
            f"tensor must have order 2 or more, got shape {array.shape}: add modes of size one"
        )
    if array.size == 0:
        raise ValueError(f"tensor has an empty mode, got shape {array.shape}: drop it")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(
            f"tensor must be finite, got {array[where]} at {where}: remove or fill such entries"
        )
    return array


def _near_one(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The tensor over a power of two, which is exact, so that its norm lies in [1/2, 1)."""
    first = int(np.frexp(np.max(np.abs(array)))[1])
    # Not over- nor underflowing: the largest entry is near one.
    norm = math.sqrt(sum_of_squares(np.ldexp(array, -first)))
    exponent = first + int(np.frexp(norm)[1])
    return np.ldexp(array, -exponent), exponent


def _allowed(
    mse: float | int | None, relative_error: float | None, size: int, square: float, exponent: int
) -> float:
    """The squared distance to stay below, of a tensor over 2^exponent with that squared norm."""
    if mse is None:
        return (relative_error or 0.0) ** 2 * square
    # Overflows only for a tensor far below the tolerance, to a distance that says so.
    with np.errstate(over="ignore"):
        return float(np.ldexp(float(mse) * size, -2 * exponent))


def _sized(factors: list[np.ndarray], exponent: int) -> tuple[np.ndarray, ...]:
    """Factors of the original tensor, its size spread over the modes: none may overflow."""
    order = len(factors)
    shares = [exponent // order + (mode < exponent % order) for mode in range(order)]
    return tuple(np.ldexp(factor, share) for factor, share in zip(factors, shares, strict=True))
