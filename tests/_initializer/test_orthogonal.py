"""Orthogonal factors: their singular values by numpy, their distribution by Haar's moments."""

import math

import jax
import numpy as np
import pytest

import factorflow as ff
from tolerances import assert_close


def singular_values_by_hand(rows: int, columns: int, alpha: float) -> np.ndarray:
    return np.full(min(rows, columns), alpha)


REFERENCES = {ff.Orthogonal: singular_values_by_hand}


@pytest.mark.parametrize(
    ("shape", "hidden"), [((3, 3), (3, 3)), ((4, 2), (3, 5)), ((3, 3), (2,)), ((2, 4), ())], ids=str
)
def test_singular_values_of_factors(shape, hidden):
    fz = ff.DeepMatrix(shape, depth=len(hidden) + 1, hidden=hidden)
    key, alpha = jax.random.key(0), 0.3
    by_factor = ff.Orthogonal(factor_scale=alpha)(fz, key)
    by_product = ff.Orthogonal(product_scale=alpha**fz.depth)(fz, key)
    for first, second, struct in zip(by_factor, by_product, fz.shapes(), strict=True):
        expected = REFERENCES[ff.Orthogonal](*struct.shape, alpha)
        assert_close(np.linalg.svd(np.asarray(first), compute_uv=False), expected)
        assert_close(second, first)


def test_singular_values_of_a_square_product():
    fz = ff.DeepMatrix((3, 3), depth=4)
    product = fz.compose(ff.Orthogonal(product_scale=0.01)(fz, jax.random.key(1)))
    values = np.linalg.svd(np.asarray(product), compute_uv=False)
    assert_close(values, np.full(3, 0.01), scale=0.01)


def test_uniform_over_the_orthogonal_group():
    # Moments of a Haar orthogonal matrix; QR's sign convention alone gives E[tr Q] != 0.
    count, dim = 4000, 4
    fz = ff.DeepMatrix((dim, dim), depth=1)
    keys = jax.random.split(jax.random.key(2), count)
    (factor,) = jax.vmap(ff.Orthogonal(factor_scale=1.0), (None, 0))(fz, keys)
    samples = np.asarray(factor, np.float64)
    trace = np.trace(samples, axis1=1, axis2=2)
    moments = {
        "E[tr Q] = 0": (trace, 0.0),
        "E[(tr Q)^2] = 1": (trace**2, 1.0),
        "E[(tr Q)^4] = 3": (trace**4, 3.0),
        "E[tr Q^2] = 1": (np.einsum("nij,nji->n", samples, samples), 1.0),
        "E[Q_ij] = 0": (samples, 0.0),
        "E[Q_ij^2] = 1/d": (samples**2, 1 / dim),
        "E[Q_ij^4] = 3/(d (d + 2))": (samples**4, 3 / (dim * (dim + 2))),
        "E[det Q] = 0": (np.linalg.det(samples), 0.0),
    }
    for name, (values, expected) in moments.items():
        error = np.std(values, axis=0) / math.sqrt(count)
        assert np.all(np.abs(np.mean(values, axis=0) - expected) < 5 * error), name


def test_layers_are_independent_of_depth():
    key, initializer = jax.random.key(3), ff.Orthogonal(factor_scale=0.1)
    shallow = initializer(ff.DeepMatrix((3, 3), depth=2), key)
    deep = initializer(ff.DeepMatrix((3, 3), depth=4), key)
    assert_close(shallow[0], deep[0])
    assert_close(shallow[1], deep[1])
    assert not np.allclose(deep[0], deep[1])
