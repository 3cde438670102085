"""Balanced factors: the product they were asked for, and imbalances that are rounding only."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from tolerances import assert_close


def matrix_of_rank(shape, rank: int, seed: int = 0) -> np.ndarray:
    """Singular values between 1/2 and 2."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((d, rank)))[0] for d in shape)
    return left * np.linspace(2.0, 0.5, rank) @ right.T


def assert_balanced_factors_of(factors, factorization, product):
    rank = np.linalg.matrix_rank(product, tol=1e-6)
    values = np.linalg.svd(product, compute_uv=False)[:rank] ** (1 / factorization.depth)
    assert [f.shape for f in factors] == [s.shape for s in factorization.shapes()]
    precise = [np.asarray(factor, np.float64) for factor in factors]
    composed = precise[0]
    for factor in precise[1:]:
        composed = factor @ composed
    assert_close(composed.astype(factors[0].dtype), product, "linear_algebra")
    for inner, outer in itertools.pairwise(precise):
        imbalance = (outer.T @ outer - inner @ inner.T).astype(factors[0].dtype)
        assert_close(imbalance, np.zeros_like(imbalance))
    for factor in precise:
        # Every factor has the L-th roots of the product's singular values, and nothing else: where
        # a width is too narrow for the rounding beyond the rank, that rounding is cut off, and
        # elsewhere its root would not be small.
        measured = np.linalg.svd(factor, compute_uv=False)[:rank]
        assert_close(measured.astype(factors[0].dtype), values, "linear_algebra")


@pytest.mark.parametrize(
    ("shape", "depth", "hidden"),
    [
        ((3, 4), 1, None),
        ((2, 2), 2, None),
        ((3, 3), 4, None),
        ((2, 5), 3, None),
        ((5, 2), 2, 4),
        ((3, 4), 3, (7, 3)),
        ((4, 3), 4, (3, 9, 5)),
        ((1, 3), 3, (2, 1)),
    ],
    ids=str,
)
def test_full_rank(shape, depth, hidden, dtype):
    factorization = ff.DeepMatrix(shape, depth=depth, hidden=hidden)
    product = matrix_of_rank(shape, min(shape))
    # Under jit the rank is unknown, and need not be known.
    factors = jax.jit(lambda w: ff.balanced_factors(factorization, w))(jnp.asarray(product, dtype))
    assert_balanced_factors_of(factors, factorization, product)


@pytest.mark.parametrize(
    ("shape", "rank", "hidden"),
    [
        ((3, 3), 1, (1, 1)),
        ((3, 3), 1, (1, 3)),
        ((3, 3), 1, (3, 1, 3, 3)),
        ((4, 5), 2, (2, 6)),
        ((5, 4), 2, (3, 2, 4)),
    ],
    ids=str,
)
def test_low_rank_with_narrow_hidden_widths(shape, rank, hidden, dtype):
    factorization = ff.DeepMatrix(shape, depth=len(hidden) + 1, hidden=hidden)
    product = matrix_of_rank(shape, rank)
    factors = ff.balanced_factors(factorization, jnp.asarray(product, dtype))
    assert_balanced_factors_of(factors, factorization, product)


def test_low_rank_with_full_hidden_widths(dtype):
    factorization = ff.DeepMatrix((3, 3), depth=3)
    product = matrix_of_rank((3, 3), 2)
    factors = ff.balanced_factors(factorization, jnp.asarray(product, dtype))
    assert_balanced_factors_of(factors, factorization, product)


def test_zero_product_fits_any_width():
    for hidden in (None, 1):
        factorization = ff.DeepMatrix((2, 3), depth=3, hidden=hidden)
        for factor in ff.balanced_factors(factorization, np.zeros((2, 3))):
            np.testing.assert_array_equal(factor, np.zeros(factor.shape))


@pytest.mark.x64
def test_tiny_products_stay_balanced_relative_to_their_size():
    # The scale of the paper's initializations, and singular values ten orders apart.
    factorization = ff.DeepMatrix((2, 2), depth=3)
    product = 1e-5 * np.diag([1.0, 1e-10])
    factors = ff.balanced_factors(factorization, product)
    for j in range(2):
        imbalance = factors[j + 1].T @ factors[j + 1] - factors[j] @ factors[j].T
        assert_close(imbalance, np.zeros((2, 2)), scale=1e-5 ** (2 / 3))
    logs = ff.Factored(factorization, factors).log_singular_values()
    assert_close(logs, np.log([1e-5, 1e-15]))


def test_integers_and_nested_lists_are_products(dtype):
    factorization = ff.DeepMatrix((2, 2), depth=2)
    for product in (np.array([[0, 4], [1, 0]]), [[0.0, 4.0], [1.0, 0.0]]):
        factors = ff.balanced_factors(factorization, product)
        assert all(factor.dtype == dtype for factor in factors)
        assert_close(factors[1] @ factors[0], [[0.0, 4.0], [1.0, 0.0]], scale=4.0)


def test_under_vmap(dtype):
    factorization = ff.DeepMatrix((3, 2), depth=2, hidden=4)
    products = [matrix_of_rank((3, 2), 2, seed) for seed in range(3)]
    stacked = jnp.asarray(np.stack(products), dtype)
    factors = jax.vmap(lambda w: ff.balanced_factors(factorization, w))(stacked)
    for lane, product in enumerate(products):
        assert_balanced_factors_of(tuple(f[lane] for f in factors), factorization, product)


# --- Bad input

NARROW = ff.DeepMatrix((3, 3), depth=3, hidden=(3, 1))


def balanced(product, factorization=NARROW):
    return lambda: ff.balanced_factors(factorization, product)


BAD_INPUT = [
    (
        "hidden width too small",
        balanced(np.eye(3)),
        r"width 1 of \(3, 1\) is too small.*3x3 product.*widths of 3 or more.*rank 1 or less",
    ),
    ("rank above the width", balanced(matrix_of_rank((3, 3), 2)), r"hidden width 1 of \(3, 1\)"),
    (
        "unknown rank under jit",
        lambda: jax.jit(lambda w: ff.balanced_factors(NARROW, w))(jnp.zeros((3, 3))),
        r"hidden width 1 of \(3, 1\)",
    ),
    ("transposed", balanced(np.ones((2, 3)), ff.DeepMatrix((3, 2), 2)), r"\(3, 2\), got \(2, 3\)"),
    ("not a matrix", balanced(np.ones(3)), r"\(3, 3\), got \(3,\)"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
