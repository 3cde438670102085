"""Gaussian factors: their scale by closed form, their distribution by scipy."""

import math

import jax
import numpy as np
import pytest
import scipy.stats

import factorflow as ff
from tolerances import assert_close


def factor_scale_by_formula(product_scale: float, hidden, depth: int) -> float:
    """Every entry of the product is a sum over hidden paths of products of `depth` factors."""
    return (product_scale / math.sqrt(math.prod(hidden))) ** (1 / depth)


REFERENCES = {ff.Gaussian: factor_scale_by_formula}


@pytest.mark.parametrize("hidden", [(), (4, 6)], ids=str)
def test_both_scales_draw_the_same_numbers(hidden):
    fz = ff.DeepMatrix((3, 5), depth=len(hidden) + 1, hidden=hidden)
    key = jax.random.key(0)
    unit = ff.Gaussian(factor_scale=1.0)(fz, key)
    expected = REFERENCES[ff.Gaussian](1e-3, hidden, fz.depth)
    for factor, by_factor, by_product in zip(
        unit,
        ff.Gaussian(factor_scale=0.25)(fz, key),
        ff.Gaussian(product_scale=1e-3)(fz, key),
        strict=True,
    ):
        assert_close(by_factor, 0.25 * np.asarray(factor))
        assert_close(by_product, expected * np.asarray(factor))


def test_distribution():
    fz = ff.DeepMatrix((4, 4), depth=3)
    count, scale = 2000, 0.7
    keys = jax.random.split(jax.random.key(1), count)
    factors = jax.vmap(ff.Gaussian(factor_scale=scale), (None, 0))(fz, keys)
    products = jax.vmap(fz.compose)(factors)
    layers = [np.asarray(factor, np.float64).reshape(count, -1) for factor in factors]
    for layer in layers:
        # A true hypothesis is refused once in ten thousand keys; this one key is fixed.
        assert scipy.stats.kstest(layer.ravel(), "norm", args=(0, scale)).pvalue > 1e-4
    # Entries are independent, within a factor and between factors: no correlation above five
    # standard errors.
    correlations = np.corrcoef(np.concatenate(layers, axis=1), rowvar=False)
    np.fill_diagonal(correlations, 0.0)
    assert np.max(np.abs(correlations)) < 5 / math.sqrt(count)
    # The product's standard deviation, in the words of `product_scale`.
    squares = np.mean(np.asarray(products, np.float64) ** 2, axis=(1, 2))
    expected = (scale**3 * math.sqrt(4 * 4)) ** 2
    assert abs(np.mean(squares) - expected) < 5 * np.std(squares) / math.sqrt(count)


def test_draws_do_not_depend_on_depth_or_on_later_widths():
    key, initializer = jax.random.key(3), ff.Gaussian(factor_scale=0.1)
    shallow = initializer(ff.DeepMatrix((3, 3), depth=2), key)
    deep = initializer(ff.DeepMatrix((4, 3), depth=3, hidden=3), key)
    for a, b in zip(shallow, deep, strict=False):
        np.testing.assert_array_equal(a, b)
