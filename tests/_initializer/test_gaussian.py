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


# Components are the paths of a CP factorization, modes its depth.
COMPONENTS = {
    ff.CP((3, 4), rank=5): (5, 2),
    ff.CP((2, 3, 4), rank=7): (7, 3),
    ff.CP((2, 2, 3, 2)): (8, 4),
    ff.CP((2,) * 100, rank=3): (3, 100),
}


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


@pytest.mark.parametrize(
    ("fz", "rank", "order"),
    [(fz, *counts) for fz, counts in COMPONENTS.items()],
    ids=[f"order {order}, rank {rank}" for rank, order in COMPONENTS.values()],
)
def test_both_scales_draw_the_same_components(fz, rank, order):
    initializer = ff.Gaussian(product_scale=1e-3)
    expected = REFERENCES[ff.Gaussian](1e-3, (rank,), order)
    key = jax.random.key(0)
    for by_factor, by_product in zip(
        ff.Gaussian(factor_scale=1.0)(fz, key), initializer(fz, key), strict=True
    ):
        assert_close(by_product, expected * np.asarray(by_factor))


@pytest.mark.parametrize("fz", list(COMPONENTS)[:3], ids=lambda fz: f"order {len(fz.shape)}")
def test_the_entries_of_a_tensor_have_the_product_scale(fz):
    count, scale = 4000, 0.3
    keys = jax.random.split(jax.random.key(2), count)
    factors = jax.jit(jax.vmap(ff.Gaussian(product_scale=scale), (None, 0)))(fz, keys)
    products = np.asarray(jax.jit(jax.vmap(fz.compose))(factors), np.float64).reshape(count, -1)
    squares = np.mean(products**2, axis=1)
    assert abs(np.mean(squares) - scale**2) < 5 * np.std(squares) / math.sqrt(count)
    assert abs(np.mean(products)) < 5 * scale / math.sqrt(count)


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
