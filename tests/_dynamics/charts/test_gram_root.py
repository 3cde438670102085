"""Fractional powers of Gram matrices, their derivatives, and the field made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import fields
from factorflow._dynamics.charts.gram_root import end_to_end_field, gram_roots, powers
from runs import DTYPE, EPS, X64, draw

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

DEPTHS = (2, 3, 4)
every_depth = pytest.mark.parametrize("depth", DEPTHS)

LEFT, RIGHT = (np.linalg.qr(matrix)[0].astype(float) for matrix in draw([(3, 3)] * 2, seed=3))
# Singular values that are apart, two that coincide, and all of them.
VALUES = {"apart": [2.0, 0.9, 0.3], "two": [1.5, 0.7, 0.7], "all": [0.8, 0.8, 0.8]}
every_matrix = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)


def matrix_of(values) -> np.ndarray:
    return (LEFT * values) @ RIGHT.T


@functools.cache
def compiled(depth: int):
    """The roots, and how they change along a direction."""

    def along(matrix, way):
        return jax.jvp(lambda m: gram_roots(m, depth), (matrix,), (way,))

    return jax.jit(along)


@every_depth
@every_matrix
def test_roots_are_fractional_powers(values, depth):
    matrix = matrix_of(values)
    way = draw([(3, 3)], seed=4)[0]
    (outer, inner), _ = compiled(depth)(jnp.asarray(matrix, DTYPE), jnp.asarray(way))
    for root, gram in ((outer, matrix @ matrix.T), (inner, matrix.T @ matrix)):
        expected = scipy.linalg.fractional_matrix_power(gram, 1 / depth)
        np.testing.assert_allclose(root, expected, rtol=0, atol=32 * EPS)
        # Whose powers lead back.
        ladder = [*powers(root, depth), root @ powers(root, depth)[-1]]
        np.testing.assert_allclose(ladder[0], np.eye(3))
        np.testing.assert_allclose(ladder[1], root)
        np.testing.assert_allclose(ladder[depth], gram, rtol=0, atol=200 * EPS)


@every_depth
@every_matrix
def test_derivatives_are_those_of_fractional_powers_also_where_singular_values_coincide(
    values, depth
):
    matrix, way = matrix_of(values), draw([(3, 3)], seed=4)[0]
    _, slopes = compiled(depth)(jnp.asarray(matrix, DTYPE), jnp.asarray(way))
    way = way.astype(float)
    # SciPy's powers round by some 1e-15 and are smooth on a scale of the smallest value, 0.3:
    # a fourth-order difference over 1e-3 errs by 1e-15 / 1e-3 + (1e-3 / 0.3)^4 in the slope.
    step = 1e-3

    def root(share: float, side: int) -> np.ndarray:
        m = matrix + share * step * way
        return scipy.linalg.fractional_matrix_power(m @ m.T if side == 0 else m.T @ m, 1 / depth)

    for side, slope in enumerate(slopes):
        expected = (8 * (root(1, side) - root(-1, side)) - (root(2, side) - root(-2, side))) / (
            12 * step
        )
        np.testing.assert_allclose(slope, expected, rtol=0, atol=3e-9 if X64 else 1e-4)


@every_depth
@every_matrix
def test_the_field_is_the_sum_over_layers(values, depth):
    matrix, gradient = matrix_of(values), draw([(3, 3)], seed=5)[0]
    actual = end_to_end_field(jnp.asarray(matrix, DTYPE), jnp.asarray(gradient), depth)
    expected = fields.end_to_end_field(matrix, gradient, depth)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=200 * EPS)
    # The same in known bases, which squares no condition.
    same = fields.field_in_bases(LEFT, np.array(values), RIGHT, gradient, depth)
    np.testing.assert_allclose(actual, same, rtol=0, atol=200 * EPS)
