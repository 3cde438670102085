"""What companions see of a product: as it would be had it been rounded once more."""

import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._product import Factored, Rounding


def as_random(rounding: Rounding, array: np.ndarray, place: int) -> np.ndarray:
    """The changes, in (-1, 1), of the entries from this place on."""
    places = np.arange(place, place + array.size)
    fraction = np.modf(43758.5453 * np.sin((12.9898 + rounding.draw) * places))[0]
    return (2 * np.where(fraction < 0, fraction + 1, fraction) - 1).reshape(array.shape)


REFERENCES = {Rounding: as_random}


@pytest.mark.x64
def test_changes_are_shares_of_the_largest_entry_or_of_each():
    array = np.array([[3.0, -1.0], [1e-3, 0.0]])
    rounding = Rounding(jnp.asarray(1e-3), 2)
    noise = REFERENCES[Rounding](rounding, array, 5)
    changed = np.asarray(rounding.of(jnp.asarray(array), 5))
    np.testing.assert_allclose(changed, array + 3e-3 * noise, rtol=1e-7)
    own = np.asarray(rounding.of(jnp.asarray(array), 5, entrywise=True))
    np.testing.assert_allclose(own, array * (1 + 1e-3 * noise), rtol=1e-9)
    both = np.asarray(Rounding(jnp.asarray(1e-3), 2, beside=1e-5).of(jnp.asarray(array), 5, True))
    np.testing.assert_allclose(both, array * (1 + 1e-3 * noise) + 3e-5 * noise, rtol=1e-9)


@pytest.mark.x64
def test_changes_are_spread_evenly_and_differ_between_draws():
    ones = jnp.ones((40, 50))
    draws = [np.asarray(Rounding(jnp.asarray(1.0), draw).of(ones, 1)) - 1 for draw in range(3)]
    for noise in draws:
        # Of 2000 numbers: five standard errors of their mean and of their variance, 1/3.
        assert abs(noise.mean()) < 5 * np.sqrt(1 / 3 / 2000)
        assert abs(noise.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / 2000)
        assert np.linalg.matrix_rank(noise) == 40
    assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 5 / np.sqrt(2000)


@pytest.mark.x64
def test_rounding_reaches_what_the_composed_product_hides():
    """Well-conditioned factors of width 3 and a second value at 1e-12 of the first."""
    fz = ff.DeepMatrix((2, 3), depth=3)
    left, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))
    root = np.diag([1.0, 1e-4])
    factors = (jnp.asarray(root @ np.eye(2, 3)), jnp.asarray(root), jnp.asarray(left @ root))
    product = Factored(fz, factors)
    size = jnp.asarray(4 * np.finfo(float).eps)
    second = [
        float(product.rounded(Rounding(size, draw)).singular_values()[1]) for draw in range(20)
    ]
    # Four units in the last place of entries up to one, whichever the factors are.
    assert 1e-16 < np.std(second) < 2e-15
    first = [product.rounded(Rounding(size, draw)).singular_values()[0] for draw in range(3)]
    np.testing.assert_allclose(first, 1, rtol=3e-15)
    dense = product.rounded(Rounding(size, 0)).dense()
    assert 0 < np.max(np.abs(dense - product.dense())) < 5e-15


def test_a_single_factor_is_rounded_entry_by_entry(dtype):
    """No entry of a flow without hidden layers knows of the others."""
    matrix = np.asarray([[1.0, 1e-12], [1e-15, 1e-20]], dtype)
    product = Factored(ff.DeepMatrix((2, 2), depth=1), (jnp.asarray(matrix),))
    size = jnp.asarray(1e-3, dtype)
    changed = np.asarray(product.rounded(Rounding(size, 1, True)).dense()) / matrix - 1
    assert np.all((np.abs(changed) <= 1.001e-3) & (changed != 0))


class _Square(ff.DeepMatrix):
    """One factor whose product is its square."""

    def compose(self, factors):
        return factors[0] @ factors[0]

    def matrix_chain(self, factors):
        return factors[0], factors[0]


def test_a_factor_that_is_not_the_product_is_rounded_with_it(dtype):
    matrix = jnp.asarray(np.diag([1.0, 1e-7]), dtype)
    size = jnp.asarray(1e-3, dtype)
    for product in (
        Factored(_Square((2, 2), depth=1), (matrix,)),
        # And one whose entries the loss mixes.
        Factored(ff.DeepMatrix((2, 2), depth=1), (matrix,)),
    ):
        separate = product.factorization.__class__ is _Square
        changed = np.asarray(product.rounded(Rounding(size, 1, separate)).dense())
        assert abs(changed[0, 1]) > 1e-6


def test_singular_values_of_a_single_factor_are_known_beside_the_largest_only(dtype):
    """Its entries are known each to its own digits, but what computes from all of them rounds."""
    matrix = jnp.asarray([[0.7, 1e-9, 0.0], [2e-9, 3e-9, 0.0]], dtype)
    product = Factored(ff.DeepMatrix((2, 3), depth=1), (matrix,))
    rounded = product.rounded(Rounding(jnp.asarray(1e-6, dtype), 1, True))
    np.testing.assert_allclose(rounded.dense(), matrix, rtol=2e-6)
    assert abs(rounded.singular_values()[1] / product.singular_values()[1] - 1) > 1
