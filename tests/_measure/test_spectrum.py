"""Singular values and determinants: against numpy, and where the product's entries say nothing."""

import numpy as np
import pytest

import factorflow as ff
from _measure.references import (
    CASES,
    DTYPE,
    EXTREMES,
    MATRICES,
    assert_agrees,
    evaluated,
    every_matrix,
    observe,
    observe_deep,
    orthogonal,
    rows,
)
from tolerances import assert_close

VALUES = ("singular_values", "log_singular_values")
DETERMINANTS = ("determinant", "log_abs_determinant", "determinant_sign")
every_square = pytest.mark.parametrize(
    "matrix", [m for s, m in MATRICES.items() if s[0] == s[1]], ids=["2x2", "3x3"]
)


@pytest.mark.parametrize(("case", "measure", "family", "parameters"), rows("spectrum"))
def test_against_numpy(case, measure, family, parameters):
    assert_agrees(case, measure, family, parameters)


MATRICES_ONLY = {name: case for name, case in CASES.items() if case.order == 2}


@pytest.mark.parametrize("case", MATRICES_ONLY.values(), ids=MATRICES_ONLY)
def test_singular_values_descend(case):
    logs = evaluated(case)["log_singular_values"]
    assert (logs[:-1] >= logs[1:]).all()
    assert_close(np.exp(logs), evaluated(case)["singular_values"])


@every_matrix
def test_singular_values_under_scale_rotation_and_transposition(matrix):
    rng = np.random.default_rng(0)
    left, right = (orthogonal(rng, dim) for dim in matrix.shape)
    expected = observe(VALUES, matrix)
    for factor, other in [(3.0, -3 * matrix), (1.0, left @ matrix @ right), (1.0, matrix.T)]:
        actual = observe(VALUES, other)
        scaled = factor * expected["singular_values"]
        assert_close(actual["singular_values"], scaled, "linear_algebra")
        shifted = np.log(factor) + expected["log_singular_values"]
        assert_close(actual["log_singular_values"], shifted, "linear_algebra")


@every_square
def test_determinants_under_scale_transposition_and_row_swap(matrix):
    dim = len(matrix)
    before = observe(DETERMINANTS, matrix)
    for factor, sign, other in [
        (2.0**dim, (-1) ** dim, -2 * matrix),
        (1.0, 1, matrix.T),
        (1.0, -1, matrix[[1, 0, *range(2, dim)]]),
    ]:
        after = observe(DETERMINANTS, other)
        expected = sign * factor * before["determinant"]
        assert_close(after["determinant"], expected, "linear_algebra")
        shifted = np.log(factor) + before["log_abs_determinant"]
        assert_close(after["log_abs_determinant"], shifted, "linear_algebra")
        assert after["determinant_sign"] == sign * before["determinant_sign"]


@every_square
def test_determinant_is_that_of_the_factors(matrix):
    rng = np.random.default_rng(1)
    factors = [matrix, *rng.normal(size=(3, *matrix.shape))]
    actual = observe_deep(DETERMINANTS, factors)
    expected = np.prod([np.linalg.det(factor) for factor in factors])
    assert_close(actual["determinant"], expected, "linear_algebra")
    assert_close(actual["log_abs_determinant"], np.log(abs(expected)), "linear_algebra")
    assert actual["determinant_sign"] == np.sign(expected)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, -1)], ids=str)
@pytest.mark.parametrize("dim", [2, 3])
def test_sign_and_smallest_value_survive_the_rounding_of_the_product(signs, dim):
    """Factors in hidden bases, a hundred times smaller in one direction: 1e-20 after ten."""
    rng = np.random.default_rng(2)
    bases = [orthogonal(rng, dim) for _ in range(11)]
    bases = [basis * np.sign(np.linalg.det(basis)) ** np.eye(dim)[0] for basis in bases]
    factors = []
    for layer in range(10):
        sign = signs[layer] if layer < 2 else 1
        diagonal = np.ones(dim)
        diagonal[-1] = sign * 1e-2
        factors.append(bases[layer + 1] * diagonal @ bases[layer].T)
    actual = observe_deep(VALUES + DETERMINANTS, factors)
    # Relative to 1e-2, the smallest singular value of a factor is rounded by 100 eps.
    expected = 10 * np.log(1e-2)
    assert_close(actual["log_singular_values"][-1], expected, "linear_algebra")
    assert_close(actual["log_abs_determinant"], expected, "linear_algebra")
    assert actual["determinant_sign"] == np.prod(signs)
    expected = np.prod(signs) * 1e-20
    assert_close(actual["determinant"], expected, "linear_algebra", scale=1e-20)


def test_logarithms_go_on_where_values_have_underflowed():
    tiny = EXTREMES[0]
    actual = observe_deep(VALUES + DETERMINANTS, [np.diag([1.0, tiny])] * 3)
    assert actual["singular_values"][1] == actual["determinant"] == 0
    for log in (actual["log_singular_values"][1], actual["log_abs_determinant"]):
        assert_close(log, 3 * np.log(DTYPE.type(tiny)))
    assert actual["determinant_sign"] == 1


@pytest.mark.parametrize("hidden", [1, 2])
def test_a_narrow_hidden_layer_makes_the_determinant_zero_exactly(hidden):
    rng = np.random.default_rng(3)
    factors = [rng.normal(size=(hidden, 3)), rng.normal(size=(3, hidden))]
    actual = observe_deep(VALUES + DETERMINANTS, factors)
    assert actual["determinant_sign"] == actual["determinant"] == 0
    assert actual["log_abs_determinant"] == actual["log_singular_values"][-1] == -np.inf
    assert actual["singular_values"][-1] == 0


@pytest.mark.parametrize("name", DETERMINANTS)
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)], ids=str)
def test_determinants_refuse_other_shapes(name, shape):
    with pytest.raises(ValueError, match=rf"^{name} needs a square product.*\({shape[0]}, "):
        observe([name], np.ones(shape))


@pytest.mark.parametrize("size", EXTREMES)
@every_matrix
def test_neither_underflow_nor_overflow(matrix, size):
    rows, columns = matrix.shape
    names = VALUES + (DETERMINANTS[1:] if rows == columns else ())
    actual, before = observe(names, matrix * size), observe(names, matrix)
    values = actual["singular_values"] / size
    assert_close(values, before["singular_values"], "linear_algebra")
    logs = before["log_singular_values"] + np.log(size)
    assert_close(actual["log_singular_values"], logs, "linear_algebra")
    if rows == columns:
        log = before["log_abs_determinant"] + rows * np.log(size)
        assert_close(actual["log_abs_determinant"], log, "linear_algebra")
        assert actual["determinant_sign"] == before["determinant_sign"]


def test_alignment_is_one_where_the_gradient_points_along_the_product():
    """From W = 2 u v^T towards 0 on all entries, the gradient is W itself."""
    left, right = np.array([0.6, 0.8]), np.array([0.8, 0.0, -0.6])
    matrix = 2 * np.outer(left, right)
    problem = ff.Completion((2, 3), [(i, j) for i in range(2) for j in range(3)], np.zeros(6))
    alignment = observe_deep(["gradient_alignment"], [matrix], problem)["gradient_alignment"]
    assert_close(alignment[0], 1.0)
    assert_close(alignment[1], 0.0, "linear_algebra")


def test_alignment_at_a_stationary_point_is_zero():
    problem = ff.Completion((2, 2), [[0, 0]], [1.0])
    alignment = observe_deep(["gradient_alignment"], [np.diag([1.0, 2.0])], problem)
    assert (alignment["gradient_alignment"] == 0).all()


@pytest.mark.parametrize("size", EXTREMES)
def test_alignment_does_not_see_the_size(size):
    matrix = MATRICES[(3, 3)]
    places = [(i, j) for i in range(3) for j in range(3)]
    one = observe_deep(["gradient_alignment"], [matrix], ff.Completion((3, 3), places, np.zeros(9)))
    scaled = ff.Completion((3, 3), places, np.zeros(9))
    other = observe_deep(["gradient_alignment"], [matrix * size], scaled)
    expected = one["gradient_alignment"]
    assert_close(other["gradient_alignment"], expected, "linear_algebra")
