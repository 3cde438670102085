"""What decides certificates of CP ranks, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest

from factorflow.reference.cp_errors import (
    _between,
    _between_in_pairs,
    _product,
    _sum,
    is_within,
    sum_of_squares,
)
from factorflow.reference.unfoldings import certain_rank
from rational import square_distance

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64


def cancelling(shape, size, seed):
    """Three components, two of which nearly cancel at that size, and a tensor near their sum."""
    generator = np.random.default_rng(seed)
    factors = [generator.standard_normal((dim, 3)) for dim in shape]
    for factor in factors:
        factor[:, 1] = factor[:, 0] * (1.0 + generator.standard_normal(len(factor)) / size)
    factors[0][:, :2] *= size, -size
    # A column with zeros, as slices have.
    factors[-1][:-1, 2] = 0.0
    exact = np.zeros(shape)
    for place in np.ndindex(shape):
        terms = (
            math.prod(Fraction(float(f[i, j])) for f, i in zip(factors, place, strict=True))
            for j in range(3)
        )
        exact[place] = float(sum(terms))
    tensor = exact * (1.0 + 1e-9 * generator.standard_normal(shape))
    return tensor, [factor[None] for factor in factors]


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e8, 1e12])
def test_a_squared_distance_is_enclosed_and_decided(shape, size):
    tensor, factors = cancelling(shape, size, 0)
    exact = square_distance(tensor, [factor[0] for factor in factors])
    for below, above in (_between(tensor, factors), _between_in_pairs(tensor, factors)):
        assert Fraction(below) <= exact <= Fraction(above)
    # Pairs of doubles err by 1e-30 of the components' size, beside a distance of 1e-9.
    margin = 1e-12 + 1e-19 * size
    assert is_within(tensor, factors, float(exact) * (1.0 + margin))
    assert not is_within(tensor, factors, float(exact) * (1.0 - margin))
    assert not is_within(tensor, factors, math.nextafter(float(exact), 0.0))
    squares = sum(Fraction(float(entry)) ** 2 for entry in tensor.flat)
    assert abs(Fraction(sum_of_squares(tensor)) - squares) < Fraction(2, 2**52) * squares


def test_what_overflows_is_not_within():
    tensor, factors = cancelling((2, 2, 2), 1.0, 0)
    for size in (1e200, math.inf, math.nan):
        assert not is_within(tensor, [size * factors[0], *factors[1:]], 1.0)


def test_sums_and_products_are_exact_with_their_errors():
    one, other = np.random.default_rng(0).standard_normal((2, 100)) * 10.0 ** np.arange(-50, 50)
    for function, exact in ((_sum, Fraction.__add__), (_product, Fraction.__mul__)):
        rounded, error = function(one, other)
        for k in range(100):
            expected = exact(Fraction(float(one[k])), Fraction(float(other[k])))
            assert Fraction(float(rounded[k])) + Fraction(float(error[k])) == expected


@pytest.mark.parametrize("tail", [1.0, 1e-3, 1e-9])
def test_no_rank_is_excluded_that_comes_near_enough(tail):
    """Signs of a Hadamard matrix make a matrix whose singular values are known exactly."""
    signs = np.ones((1, 1))
    for _ in range(3):
        signs = np.kron(signs, [[1.0, 1.0], [1.0, -1.0]])
    # The powers of two make every entry exact, and every singular value 8 times one of these.
    smallest = 2.0 ** round(math.log2(tail))
    values = np.array([4.0, 4.0, 2.0, 1.0, smallest, 0.0, 0.0, 0.0])
    matrix = (signs * values) @ signs.T
    for rank in (2, 3, 4):
        distance = 8.0 * math.sqrt(np.sum(values[rank:] ** 2))
        for nudge in (0.0, 1e-15, 1e-14):
            assert certain_rank(matrix, distance * (1.0 + 1e-15 + nudge)) <= rank
        # Beside singular values near 30, some hundred units in the last place.
        assert certain_rank(matrix, distance - 1e-11) == rank + 1
    assert certain_rank(matrix, 8.0 * smallest + 1e-11) == 4
