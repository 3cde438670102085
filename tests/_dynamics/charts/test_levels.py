"""Levels of singular values, and linear algebra of matrices that are block diagonal over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from factorflow._dynamics.charts.levels import (
    apart,
    descending,
    gram_root,
    level_svd,
    levels_of,
    powers,
    same,
    turn,
)
from runs import DTYPE, EPS, X64, draw

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

every_depth = pytest.mark.parametrize("depth", [2, 3, 4])

LEFT, RIGHT = (np.linalg.qr(matrix)[0].astype(float) for matrix in draw([(3, 3)] * 2, seed=3))
# Singular values that are apart, two that coincide, and all of them.
VALUES = {"apart": [2.0, 0.9, 0.3], "two": [1.5, 0.7, 0.7], "all": [0.8, 0.8, 0.8]}
every_matrix = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
WAY = draw([(3, 3)], seed=4)[0].astype(float)


def test_a_level_begins_where_singular_values_drop_below_a_fifth():
    values = np.array([3.0, 1.0, 0.21, 0.041, 1e-20, 1e-20, 1e-21, 1e-300])
    logs = jnp.asarray(np.log(values), DTYPE)
    np.testing.assert_array_equal(levels_of(logs), [0, 0, 0, 3, 4, 4, 6, 7])
    np.testing.assert_array_equal(levels_of(jnp.full(3, -1e30)), [0, 0, 0])
    np.testing.assert_array_equal(descending(jnp.asarray([1.0, 3.0, 1.0, 2.0])), [1, 3, 0, 2])


def test_singular_vectors_of_different_levels_do_not_mix_where_their_values_are_equal():
    one, other = (draw([(2, 2)], seed=seed)[0].astype(float) for seed in (1, 2))
    blocks = np.asarray(scipy.linalg.block_diag(one, other, one))
    levels = jnp.asarray([0, 0, 2, 2, 4, 4], jnp.int32)
    left, values, right = jax.jit(level_svd)(jnp.asarray(blocks, DTYPE), levels)
    within = np.asarray(same(levels))
    assert not np.asarray(left)[~within].any() and not np.asarray(right)[~within].any()
    product = np.asarray((left * values) @ right.T)
    np.testing.assert_allclose(product, blocks, rtol=0, atol=32 * EPS)
    for basis in map(np.asarray, (left, right)):
        np.testing.assert_allclose(basis.T @ basis, np.eye(6), rtol=0, atol=16 * EPS)
    for number, block in enumerate((one, other, one)):
        expected = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(values[2 * number : 2 * number + 2], expected, rtol=32 * EPS)


@functools.cache
def compiled(depth: int):
    """The root, and how it changes along a direction."""

    def along(matrix, way):
        spectrum = level_svd(matrix, jnp.zeros(3, jnp.int32))
        return jax.jvp(lambda m: gram_root(m, *spectrum, depth), (matrix,), (way,))

    return jax.jit(along)


@every_depth
@every_matrix
def test_roots_are_fractional_powers(values, depth):
    matrix = (LEFT * values) @ RIGHT.T
    root, _ = compiled(depth)(jnp.asarray(matrix, DTYPE), jnp.asarray(WAY, DTYPE))
    gram = matrix @ matrix.T
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
    matrix = (LEFT * values) @ RIGHT.T
    _, slope = compiled(depth)(jnp.asarray(matrix, DTYPE), jnp.asarray(WAY, DTYPE))
    # SciPy's powers round by some 1e-15 and are smooth on a scale of the smallest value, 0.3:
    # a fourth-order difference over 1e-3 errs by 1e-15 / 1e-3 + (1e-3 / 0.3)^4 in the slope.
    step = 1e-3

    def root(share: float) -> np.ndarray:
        m = matrix + share * step * WAY
        return scipy.linalg.fractional_matrix_power(m @ m.T, 1 / depth)

    expected = (8 * (root(1) - root(-1)) - (root(2) - root(-2))) / (12 * step)
    np.testing.assert_allclose(slope, expected, rtol=0, atol=3e-9 if X64 else 1e-4)


def test_a_turn_solves_its_equation_and_so_does_its_derivative():
    levels = jnp.asarray([0, 1, 1], jnp.int32)
    above = np.asarray(apart(levels))
    pair = np.array([[0.9, 0.2], [0.2, 0.5]])
    root = scipy.linalg.block_diag([[1.3]], pair)
    values, vectors = np.linalg.eigh(pair)
    spectrum = scipy.linalg.block_diag([[1.0]], vectors), np.append(1.3, values)
    ratio, side = np.where(above, 0.3, 0.0), np.where(above, WAY, 0.0)
    # Along which the blocks change, the ratio of their sizes, and the right-hand side.
    moved = scipy.linalg.block_diag([[0.4]], [[0.1, -0.3], [-0.3, 0.2]]), 0.7 * ratio, side.T + side

    def solve(root, ratio, side):
        return turn(root, ratio, side, *map(jnp.asarray, spectrum), jnp.asarray(above))

    start, way = (tuple(map(jnp.asarray, part)) for part in ((root, ratio, side), moved))
    x, slope = jax.jvp(solve, start, way)

    def left_side(root, ratio, x):
        return root @ x - ratio * (x @ root)

    assert not np.asarray(x)[~above].any() and not np.asarray(slope)[~above].any()
    np.testing.assert_allclose(left_side(root, ratio, x), side, rtol=0, atol=16 * EPS)
    total = left_side(root, ratio, slope) + left_side(moved[0], ratio, x) - moved[1] * (x @ root)
    np.testing.assert_allclose(total[above], moved[2][above], rtol=0, atol=16 * EPS)
