"""Singular values and determinants against exact rational arithmetic.

The chains are deep: their products are singular to every digit of their entries, their factors are
not. Every reference below is a rational number computed from the very same factors.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from factorflow._product import log_determinant, log_singular_values
from tolerances import assert_close


def gaussian_chain(seed: int, widths, dtype) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    pairs = zip(widths[1:], widths[:-1], strict=True)
    return tuple(jnp.asarray(rng.standard_normal(pair), dtype) for pair in pairs)


def aligned_chain(seed: int, widths, values, dtype) -> tuple[jax.Array, ...]:
    """Factors that share singular vectors: the product's singular values are `values**depth`."""
    rng = np.random.default_rng(seed)
    rank = len(values)
    bases = [np.linalg.qr(rng.standard_normal((width, rank)))[0] for width in widths]
    pairs = zip(bases[1:], bases[:-1], strict=True)
    return tuple(jnp.asarray(left * values @ right.T, dtype) for left, right in pairs)


@jax.jit
def measured(factors):
    return log_singular_values(factors), log_determinant(factors)


def assert_determinant(actual, matrix, tolerance="rounding"):
    sign, log = actual
    expected = exact.determinant(matrix)
    assert float(sign) == math.copysign(1.0, expected)
    assert_close(log, exact.log(abs(expected)), tolerance)


# --- Far below the rounding of the entries


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make",
    [
        # sigma_2 / sigma_1 = 0.05^20 = 1e-26
        lambda seed, dtype: aligned_chain(seed, [2] * 21, [1.0, 0.05], dtype),
        # The ratio falls by a factor of about e^0.6 per layer.
        lambda seed, dtype: gaussian_chain(seed, [2] * 101, dtype),
    ],
    ids=["aligned", "gaussian"],
)
def test_both_singular_values_of_a_deep_2x2_product(make, seed, dtype):
    factors = make(seed, dtype)
    matrix = exact.product(factors)
    expected = exact.log_singular_values_2x2(matrix)
    assert expected[1] - expected[0] < math.log(jnp.finfo(dtype).eps) - 5
    # Some sixty relative errors of the size of a factor's condition number (20) times epsilon,
    # in a logarithm of about -50.
    assert_close(log_singular_values(factors), expected)
    assert_determinant(log_determinant(factors), matrix)


@pytest.mark.parametrize(
    ("values", "hidden"),
    [
        ([1.0, 0.9, 0.05], "square"),
        ([1.0, 0.9, 0.05], "mixed"),
        ([1.1, 1.0, 0.95, 0.9, 0.05], "wide"),
    ],
    ids=["3x3 square", "3x3 mixed", "5x5 wide"],
)
def test_smallest_singular_value_of_a_deep_product(values, hidden, dtype):
    dim, depth = len(values), 14  # sigma_d / sigma_1 <= 0.05^14 = 6e-19
    widths = [dim] * (depth + 1)
    if hidden != "square":
        widths[1:-1] = [dim + 2 + (hidden == "mixed") * (j % 3 - 2) for j in range(depth - 1)]
    factors = aligned_chain(dim, widths, values, dtype)
    matrix = exact.product(factors)
    logs, determinant = measured(factors)
    resolved = np.log(np.linalg.svd(exact.to_float(matrix), compute_uv=False)[:-1])
    last = exact.log(abs(exact.determinant(matrix))) - np.sum(resolved)
    assert last - resolved[0] < math.log(jnp.finfo(dtype).eps) - 5
    assert_close(logs, [*resolved, last])
    assert_determinant(determinant, matrix)


def test_sign_of_a_determinant_that_the_entries_get_wrong(dtype):
    depth, seeds = 60, 40
    chains = [gaussian_chain(seed, [2] * (depth + 1), dtype) for seed in range(seeds)]
    signs, _ = jax.jit(jax.vmap(log_determinant))(
        tuple(jnp.stack(layer) for layer in zip(*chains, strict=True))
    )
    products = [exact.product(chain) for chain in chains]
    expected = [math.copysign(1.0, exact.determinant(matrix)) for matrix in products]
    np.testing.assert_array_equal(signs, expected)
    # These are the cases that matter: the sign of the rounded product is a coin toss.
    rounded = [np.asarray(exact.to_float(matrix), dtype) for matrix in products]
    assert np.sum(np.linalg.slogdet(np.stack(rounded))[0] != expected) > seeds / 4


# --- Every chain of widths


@pytest.mark.parametrize(
    "widths",
    [
        (1, 1),
        (1, 1, 1),
        (1, 4, 1),
        (2, 2, 2),
        (2, 3, 2, 2),
        (3, 3),
        (3, 7, 4, 3),
        (4, 4, 6, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_square_products(widths, seed, dtype):
    factors = gaussian_chain(seed, widths, dtype)
    matrix = exact.product(factors)
    logs, determinant = measured(factors)
    # Gaussian products of these sizes have condition numbers up to about 1e3.
    assert_determinant(determinant, matrix, "linear_algebra")
    expected = np.log(np.linalg.svd(exact.to_float(matrix), compute_uv=False))
    assert_close(logs, expected, "linear_algebra")


@pytest.mark.parametrize("widths", [(5, 3), (3, 5), (5, 2, 3), (2, 6, 4), (1, 3)], ids=str)
def test_rectangular_products(widths, dtype):
    factors = gaussian_chain(7, widths, dtype)
    logs = np.asarray(jax.jit(log_singular_values)(factors))
    matrix = exact.to_float(exact.product(factors))
    rank = min(widths)
    expected = np.log(np.linalg.svd(matrix, compute_uv=False)[:rank])
    assert logs.shape == (min(matrix.shape),)
    assert_close(logs[:rank], expected, "linear_algebra")
    # A narrow hidden width leaves zeros, which the dense product knows only to rounding.
    floor = logs[0] + math.log(10 * max(matrix.shape) * jnp.finfo(dtype).eps)
    assert np.all(np.asarray(logs[rank:]) < floor)


def test_single_numbers(dtype):
    factors = tuple(jnp.full((1, 1), value, dtype) for value in (-2.0, 0.25, 3.0))
    sign, log = log_determinant(factors)
    assert float(sign) == -1.0
    assert_close(log, math.log(1.5))
    assert_close(log_singular_values(factors), [math.log(1.5)])


# --- Singular input


@pytest.mark.parametrize("widths", [(1, 1), (2, 2, 2), (3, 3, 3), (3, 5, 3)], ids=str)
def test_zero_product(widths, dtype):
    factors = gaussian_chain(3, widths, dtype)
    for zero in (tuple(0 * factor for factor in factors), (*factors[:-1], 0 * factors[-1])):
        logs, (sign, log) = measured(zero)
        assert (float(sign), float(log)) == (0.0, -math.inf)
        np.testing.assert_array_equal(logs, np.full(widths[0], -np.inf))


@pytest.mark.parametrize("dim", [2, 3])
def test_narrow_hidden_width_makes_the_determinant_exactly_zero(dim, dtype):
    factors = gaussian_chain(5, (dim, dim - 1, dim), dtype)
    sign, log = log_determinant(factors)
    assert (float(sign), float(log)) == (0.0, -math.inf)
    logs = log_singular_values(factors)
    assert float(logs[-1]) == -math.inf
    matrix = exact.to_float(exact.product(factors))
    expected = np.log(np.linalg.svd(matrix, compute_uv=False)[:-1])
    assert_close(logs[:-1], expected, "linear_algebra")


def test_rank_deficient_factor(dtype):
    # Powers of two: the elimination is exact, so zero is zero.
    factor = jnp.asarray([[1.0, 2.0], [0.5, 1.0]], dtype)
    sign, log = log_determinant((factor, factor))
    assert (float(sign), float(log)) == (0.0, -math.inf)
    logs = log_singular_values((factor, factor))
    assert_close(logs[0], math.log(5.0))  # factor = (1, 1/2) (1, 2)^T, squared: (1 + 1) times it
    assert float(logs[1]) == -math.inf


def test_order_of_equal_singular_values(dtype):
    """Rounding makes either the larger, but they are promised in descending order."""
    angles = np.linspace(0.0, 3.0, 64)
    turns = np.moveaxis(
        [[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]], -1, 0
    )
    for sign in (1.0, -1.0):
        # Of size one, where logarithms resolve the last digit.
        factors = (jnp.asarray(turns, dtype), jnp.asarray(turns * [1.0, sign], dtype))
        logs, (signs, _) = jax.vmap(measured)(factors)
        assert np.all(logs[:, 0] >= logs[:, 1])
        assert_close(logs, np.zeros((64, 2)))
        np.testing.assert_array_equal(signs, sign)


# --- Transformations


@pytest.mark.parametrize("widths", [(2, 2, 2), (3, 5, 3), (4, 2, 3)], ids=str)
def test_vmap_agrees_with_single_calls(widths, dtype):
    chains = [gaussian_chain(seed, widths, dtype) for seed in range(4)]
    stacked = tuple(jnp.stack(layer) for layer in zip(*chains, strict=True))
    functions = [log_singular_values] + [log_determinant] * (widths[0] == widths[-1])
    for function in functions:
        compiled = jax.jit(function)
        expected = jax.tree.map(lambda *leaves: np.stack(leaves), *map(compiled, chains))
        batched = jax.jit(jax.vmap(function))(stacked)
        jax.tree.map(lambda a, b: assert_close(a, b, "linear_algebra"), batched, expected)
