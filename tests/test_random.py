"""Draws of small shapes against JAX's own, which number the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from factorflow import _random
from factorflow._random import gaussian

SHAPES = [(), (1,), (2, 2), (3, 3), (8, 1), (8, 64), (8, 512), (5, 1000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_draws_are_those_of_jax(shape, seed):
    key = jax.random.fold_in(jax.random.key(7), seed)
    expected = jax.random.normal(key, shape)
    actual = gaussian(key, shape)
    assert isinstance(actual, jax.Array)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_draws_in_either_precision():
    key = jax.random.key(0)
    narrow = gaussian(key, (4, 3), jnp.float32)
    assert narrow.dtype == jnp.float32
    np.testing.assert_array_equal(narrow, jax.random.normal(key, (4, 3), jnp.float32))


def test_small_shapes_share_one_compilation():
    key = jax.random.key(1)
    _random._many.clear_cache()
    for shape in SHAPES[:-1]:
        gaussian(key, shape)
    assert _random._many._cache_size() == 1


def test_draws_under_a_trace_and_of_other_generators():
    keys = jax.random.split(jax.random.key(2), 3)
    together = jax.vmap(lambda key: gaussian(key, (2, 2)))(keys)
    np.testing.assert_array_equal(together, jnp.stack([gaussian(key, (2, 2)) for key in keys]))
    # A generator that does not number its draws: small arrays are no beginnings of large ones.
    other = jax.random.key(3, impl="rbg")
    np.testing.assert_array_equal(gaussian(other, (2, 3)), jax.random.normal(other, (2, 3)))
