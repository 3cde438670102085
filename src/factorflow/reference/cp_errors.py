r"""Whether a decomposition meets a tolerance, decided whatever rounding does.

Where components are large and nearly cancel, as they do near a tensor whose border rank is below
its rank, the residual computed in double precision is rounding alone. So what is computed comes
with a bound on its own error: with $u = 2^{-53}$, the residual of $r$ components of order $N$
errs in every entry by less than

$$(N + r)\, \frac{u}{1 - (N + r) u} \Big( |T| + \sum_j |a^1_j| \otimes \dots \otimes |a^N_j| \Big)$$

If that leaves open which side of the tolerance it lies on, everything is computed again with the
rounding errors of all sums and products carried along, to about $u^2$ (Dekker, 1971).
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from factorflow.reference.cp_fit import Factors

_EPS = float(np.finfo(float).eps)
# Splits a double into two halves of 26 bits, whose products are exact.
_SPLITTER = 2.0**27 + 1.0
# Above every bound quoted, relative to u or u^2: a sum or product of doubles errs by one u, one of
# pairs by 4 u^2, and eps is 2 u. The rest pays for the rounding of the bound itself.
_SAFETY = 4.0
# What lies below the smallest normal number loses digits; each loss is far below this.
_UNDERFLOW = 2.0**-1000


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of the squares of all entries, to a relative 2 eps."""
    return math.fsum(np.square(array).reshape(-1).tolist())


def is_within(tensor: np.ndarray, factors: Factors, square: float) -> bool:
    """Whether the squared distance of the only start to the tensor is certainly below `square`.

    **Arguments:**

    - `tensor`: of a norm near one.
    - `factors`: a batch of one start, as in `factorflow.reference.cp_fit`.
    """
    # What overflows is infinite or NaN, and below nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        below, above = _between(tensor, factors)
        if below < square <= above:
            _, above = _between_in_pairs(tensor, factors)
    return above < square


def _between(tensor: np.ndarray, factors: Factors) -> tuple[float, float]:
    """An interval that holds the squared distance, in double precision."""
    residual, size = tensor.copy(), np.abs(tensor)
    for columns, where in _components(factors):
        product = columns[0]
        for column in columns[1:]:
            product = product[..., None] * column
        residual[where] -= product
        size[where] += np.abs(product)
    return _squares(sum_of_squares(residual), _EPS, size, factors)


def _between_in_pairs(tensor: np.ndarray, factors: Factors) -> tuple[float, float]:
    """The same, in pairs of doubles whose unevaluated sum is the number."""
    high, low, size = tensor.copy(), np.zeros_like(tensor), np.abs(tensor)
    for columns, where in _components(factors):
        product, rest = columns[0], np.zeros_like(columns[0])
        for column in columns[1:]:
            rest = rest[..., None] * column
            product, error = _product(product[..., None], column)
            product, rest = _ordered_sum(product, error + rest)
        total, error = _sum(high[where], -product)
        small, smaller = _sum(low[where], -rest)
        total, error = _ordered_sum(total, error + small)
        high[where], low[where] = _ordered_sum(total, error + smaller)
        size[where] += np.abs(product)
    # The low parts are rounding, added to the bound: they are far below what is decided.
    bound = math.sqrt(sum_of_squares(low)) * (1.0 + _SAFETY * _EPS)
    return _squares(sum_of_squares(high), _EPS**2, size, factors, bound)


def _components(factors: Factors) -> Iterator[tuple[list[np.ndarray], Any]]:
    """The columns of every component, and where its product has entries that are not zero."""
    for component in range(factors[0].shape[2]):
        columns = [np.ascontiguousarray(factor[0, :, component]) for factor in factors]
        places = [np.flatnonzero(column) for column in columns]
        if all(len(place) == len(column) for place, column in zip(places, columns, strict=True)):
            yield columns, ...
            continue
        # Slices have a single entry in most columns.
        kept = [column[place] for place, column in zip(places, columns, strict=True)]
        yield kept, np.ix_(*places)


def _squares(
    square: float, unit: float, size: np.ndarray, factors: Factors, bound: float = 0.0
) -> tuple[float, float]:
    """The interval around a squared norm whose entries err by so many units of their size."""
    operations = len(factors) + factors[0].shape[2]
    bound += _SAFETY * operations * unit * math.sqrt(sum_of_squares(size))
    largest = math.prod(max(1.0, float(np.max(np.abs(f), initial=0.0))) for f in factors)
    bound += _UNDERFLOW * operations * size.size * largest
    norm, rounding = math.sqrt(square), _SAFETY * _EPS
    below = max(0.0, norm * (1.0 - rounding) - bound)
    return below**2 * (1.0 - rounding), (norm * (1.0 + rounding) + bound) ** 2 * (1.0 + rounding)


def _sum(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded sum and its rounding error."""
    total = one + other
    part = total - one
    return total, (one - (total - part)) + (other - part)


def _ordered_sum(large: np.ndarray, small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, where the first is at least as large or zero."""
    total = large + small
    return total, small - (total - large)


def _product(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded product and its rounding error."""
    product = one * other
    (a, b), (c, d) = _halves(one), _halves(other)
    return product, ((a * c - product) + a * d + b * c) + b * d


def _halves(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifted = _SPLITTER * number
    high = shifted - (shifted - number)
    return high, number - high
