"""Ranks: against numpy, their order, the documented values, and precision without cancellation."""

import decimal
import itertools

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import exact
from _measure.references import (
    DTYPE,
    EXTREMES,
    assert_agrees,
    every_matrix,
    observe,
    observe_deep,
    orthogonal,
    rows,
    together,
)
from tolerances import assert_close

EXCESS = "effective_rank_excess"
EPS = float(np.finfo(DTYPE).eps)
INVARIANT = ("rank", "rank[0.001]", "effective_rank", EXCESS, "stable_rank")
DISTANCES = ("distance_to_rank[0]", "distance_to_rank[1]")
RANKS = INVARIANT + DISTANCES


def ranks_of(matrix) -> dict[str, np.ndarray]:
    return observe(RANKS, matrix)


def rotated(diagonal, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dim = len(diagonal)
    return orthogonal(rng, dim) * np.asarray(diagonal) @ orthogonal(rng, dim)


@pytest.mark.parametrize(("case", "measure", "family", "parameters"), rows("ranks"))
def test_against_numpy(case, measure, family, parameters):
    assert_agrees(case, measure, family, parameters)


@every_matrix
def test_scales_rotations_and_transposition(matrix):
    rng = np.random.default_rng(0)
    left, right = (orthogonal(rng, dim) for dim in matrix.shape)
    expected = ranks_of(matrix)
    for factor, other in [(3.0, -3 * matrix), (1.0, left @ matrix @ right), (1.0, matrix.T)]:
        actual = ranks_of(other)
        same = together(expected, INVARIANT)
        assert_close(together(actual, INVARIANT), same, "linear_algebra")
        scaled = factor * together(expected, DISTANCES)
        assert_close(together(actual, DISTANCES), scaled, "linear_algebra")


@every_matrix
def test_order(matrix):
    ranks = ranks_of(matrix)
    assert 1 < ranks["effective_rank"] < ranks["rank"] == min(matrix.shape)
    assert 1 < ranks["stable_rank"] < ranks["rank"]
    assert_close(ranks["effective_rank"] - ranks["effective_rank_excess"], 1.0)


@hypothesis.given(st.lists(st.floats(0.0078125, 1, width=32), min_size=3, max_size=3))
def test_order_for_any_spectrum(diagonal):
    ranks = ranks_of(rotated(diagonal))
    slack = 100 * EPS  # of three singular values, within a factor of 128
    assert 1 - slack <= ranks["effective_rank"] <= ranks["rank"] * (1 + slack)
    assert 1 - slack <= ranks["stable_rank"] <= ranks["rank"] * (1 + slack)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_orthogonal_matrices_have_full_rank_in_every_sense(dim, size):
    ranks = ranks_of(size * orthogonal(np.random.default_rng(3), dim))
    for name in ("rank", "effective_rank", "stable_rank"):
        assert_close(ranks[name], float(dim), "linear_algebra")


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_rank_deficient(rank, seed):
    diagonal = [2.0, 1.0][:rank] + [0.0] * (3 - rank)
    ranks = ranks_of(rotated(diagonal, seed))
    assert ranks["rank"] == ranks["rank[0.001]"] == rank
    # Rounding leaves singular values of a few eps: their share of the entropy is eps ln(1 / eps).
    bits = [1.0, 2 ** (np.log2(3) - 2 / 3)][rank - 1]  # entropy of (2/3, 1/3), in closed form
    assert_close(ranks["effective_rank"], bits, "linear_algebra")
    assert_close(ranks["stable_rank"], [1.0, 1.25][rank - 1], "linear_algebra")
    assert_close(ranks["distance_to_rank[1]"], float(rank - 1), "linear_algebra")


@every_matrix
def test_zero_has_the_documented_values(matrix):
    ranks = ranks_of(0 * matrix)
    expected = {name: 0.0 for name in RANKS} | {"effective_rank_excess": -1.0}
    assert {name: float(value) for name, value in ranks.items()} == expected


def test_rank_counts_above_its_tolerance():
    names = ("rank", "rank[0.24]", "rank[0.26]", "rank[1e-05]", "rank[1e-09]")
    ranks = observe(names, np.diag([4.0, 1.0, 4e-8]))
    assert [int(ranks[name]) for name in names] == [2, 2, 1, 2, 3]


def test_no_matrix_of_lower_rank_is_nearer():
    rng = np.random.default_rng(4)
    matrix = rng.normal(size=(4, 3))
    names = [f"distance_to_rank[{k}]" for k in range(3)] + ["frobenius_norm"]
    *distances, size = together(observe(names, matrix))
    assert_close(distances[0], size)
    assert (np.diff(distances) < 0).all()
    for k in (1, 2):
        for _ in range(50):
            # The best matrix with these columns: a competitor, not a straw man.
            columns = np.linalg.qr(rng.normal(size=(4, k)))[0]
            other = columns @ columns.T @ matrix
            assert distances[k] <= np.linalg.norm(matrix - other)


def excess_of(singular_values) -> float:
    """Effective rank minus 1 in 400 decimal digits, more than any ratio here can hide in."""
    with decimal.localcontext(decimal.Context(prec=400)):
        values = [decimal.Decimal(value) for value in singular_values]
        parts = [value / sum(values) for value in values]
        return float((-sum(part * part.ln() for part in parts)).exp() - 1)


@pytest.mark.parametrize(
    "diagonal",
    [
        (1.0, 1e-3),
        (1.0, 1e-9),
        (1.0, 1e-17),
        (1.0, 1e-30),
        (1.0, 1 - 2**-20),
        (1.0, 1e-4, 1e-12),
        (1.0, 1e-25, 1e-26),
        (1.0, 1.0, 1e-20),
        pytest.param((1.0, 1e-60), marks=pytest.mark.x64),
        pytest.param((1.0, 1e-300), marks=pytest.mark.x64),
    ],
    ids=str,
)
def test_excess_has_no_cancellation(diagonal):
    expected = excess_of(float(DTYPE.type(value)) for value in diagonal)
    actual = ranks_of(np.diag(diagonal))["effective_rank_excess"]
    # ln(sigma) is rounded relative to its size, 69 at 1e-30 and 690 at 1e-300.
    assert_close(actual / expected, 1.0, scale=-np.log(min(diagonal)))


@pytest.mark.parametrize("depth", [3, pytest.param(6, marks=pytest.mark.x64)])
def test_excess_through_deep_factors(depth):
    """A ratio of 1e-10 per factor, up to 1e-60 in the product, where ln(sigma) is -138."""
    factors = tuple(jnp.asarray(np.diag([1.0, 1e-10]), DTYPE) for _ in range(depth))
    small = float(DTYPE.type(1e-10))
    assert_close(
        observe_deep([EXCESS], factors)[EXCESS] / excess_of([1.0, small**depth]), 1.0, scale=138.0
    )


def test_excess_through_rotated_deep_factors():
    """Ten times smaller per factor, in hidden bases; the answer is over the rationals."""
    depth = 60 if DTYPE.itemsize == 8 else 30  # float32 holds no share of 1e-60
    rng = np.random.default_rng(5)
    bases = [orthogonal(rng, 2) for _ in range(depth + 1)]
    factors = tuple(
        jnp.asarray(after * np.array([1.0, 0.1]) @ before.T, DTYPE)
        for before, after in itertools.pairwise(bases)
    )
    first, second = exact.log_singular_values_2x2(exact.product(factors))
    expected = excess_of([1.0, decimal.Decimal(second - first).exp()])
    actual = observe_deep([EXCESS], factors)[EXCESS]
    # The determinant of each factor is rounded by its condition number, 10, in every layer.
    assert_close(actual / expected, 1.0, "linear_algebra")


@pytest.mark.parametrize("size", EXTREMES)
@every_matrix
def test_neither_underflow_nor_overflow(matrix, size):
    actual, expected = ranks_of(matrix * size), ranks_of(matrix)
    assert_close(together(actual, INVARIANT), together(expected, INVARIANT), "linear_algebra")
    distances = together(actual, DISTANCES) / size
    assert_close(distances, together(expected, DISTANCES), "linear_algebra")
