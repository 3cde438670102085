"""Semidefinite ranks of problems whose rank is known, and what is found against the problem."""

import numpy as np
import pytest

import factorflow as ff
from factorflow.reference import lowest_semidefinite_rank

# Exact least squares of few numbers end at a residual of 1e-8 or better; the numbers here are exact
# in single precision too.
CLOSE = 1e-7


def observed(matrix):
    """The entries that are not NaN."""
    matrix = np.asarray(matrix, float)
    at = np.argwhere(~np.isnan(matrix))
    return ff.Completion(matrix.shape, at, matrix[tuple(at.T)])


def assert_found(problem, rank, **options):
    found = lowest_semidefinite_rank(problem, **options)
    assert found is not None
    assert found[0] == rank
    matrix = found[1]
    eigenvalues = np.linalg.eigvalsh(matrix)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.all(eigenvalues[: len(matrix) - rank] <= 1e-12 * eigenvalues[-1])
    assert np.all(eigenvalues >= -1e-12 * eigenvalues[-1])
    values = np.asarray(problem.values, np.float64)
    if isinstance(problem, ff.Completion):
        measured = matrix[tuple(np.asarray(problem.indices).T)]
    else:
        measured = np.einsum("ipq,pq->i", np.asarray(problem.measurements, np.float64), matrix)
    # What is asked for by default, by the observations' own precision.
    asked = 1e-8 if np.asarray(problem.values).dtype == np.float64 else 1e-5
    assert np.linalg.norm(measured - values) <= 1.01 * asked * np.linalg.norm(values)
    return matrix


H = np.nan


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_diagonal_alone_has_a_solution_of_rank_one(size):
    diagonal = np.arange(1.0, size + 1) ** 2
    matrix = np.full((size, size), H)
    np.fill_diagonal(matrix, diagonal)
    found = assert_found(observed(matrix), 1)
    # u u^T with u the roots of the diagonal, up to signs.
    np.testing.assert_allclose(np.abs(found), np.outer(*[np.sqrt(diagonal)] * 2), rtol=CLOSE)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_identity_in_full_has_full_rank(size):
    np.testing.assert_allclose(assert_found(observed(np.eye(size)), size), np.eye(size), atol=CLOSE)


def test_orthogonal_pairs_take_as_many_dimensions():
    """Zeros between unit vectors: three of them pairwise orthogonal, the fourth is free."""
    matrix = np.eye(4)
    matrix[3, :3] = matrix[:3, 3] = H
    assert_found(observed(matrix), 3)


def test_sign_makes_a_difference_to_arbitrary_solutions():
    """Rank one of a matrix with this diagonal and a zero beside it, but not semidefinite."""
    matrix = [[H, 0.0, 1.0], [0.0, 1.0, H], [1.0, H, H]]
    # [a, b, c] with b^2 = 1, ab = 0 and ac = 1 contradict each other, two columns do not.
    assert_found(observed(matrix), 2)


def test_the_pentagon_with_its_diagonal():
    """Cosines of 144 degrees on the edges: the vectors of a pentagon, in the plane and not less."""
    matrix = np.full((5, 5), H)
    np.fill_diagonal(matrix, 1.0)
    for k in range(5):
        matrix[k, (k + 1) % 5] = matrix[(k + 1) % 5, k] = np.cos(4 * np.pi / 5)
    assert_found(observed(matrix), 2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_random_measurements_find_a_planted_rank(rank):
    """Enough of them that no lower rank can fit by chance: d r - r(r-1)/2 parameters at most."""
    rng = np.random.default_rng(rank)
    factor = rng.normal(size=(4, rank))
    measurements = rng.normal(size=(9, 4, 4))
    values = np.einsum("ipq,pq->i", measurements, factor @ factor.T)
    # 4, 7 and 9 parameters; with nine measurements rank 2 fits by a coincidence only.
    assert_found(ff.Sensing(measurements, values), rank)


def test_starting_higher_finds_no_lower_rank():
    diagonal = observed([[1.0, H, H], [H, 1.0, H], [H, H, 1.0]])
    assert lowest_semidefinite_rank(diagonal, lower=2)[0] == 2
    assert lowest_semidefinite_rank(diagonal, lower=0)[0] == 1


def test_the_same_seed_finds_the_same():
    diagonal = observed([[1.0, H, H], [H, 1.0, H], [H, H, 1.0]])
    one, same = (lowest_semidefinite_rank(diagonal, seed=3)[1] for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_none_where_no_semidefinite_matrix_fits():
    assert lowest_semidefinite_rank(observed([[-1.0, H], [H, 1.0]])) is None
    assert lowest_semidefinite_rank(observed([[0.0, 1.0], [1.0, H]])) is None
    # Symmetric matrices cannot have these two entries.
    assert lowest_semidefinite_rank(observed([[H, 1.0], [2.0, H]])) is None


def test_zeros_have_rank_zero():
    rank, product = lowest_semidefinite_rank(observed([[0.0, H], [H, 0.0]]))
    assert rank == 0
    np.testing.assert_array_equal(product, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("problem", "options", "words"),
    [
        (observed([[1.0, H, 2.0], [H, 1.0, 1.0]]), {}, "2x3"),
        (observed([[1.0, H], [H, 1.0]]), {"lower": -1}, "lower must be >= 0, got -1"),
        (observed([[1.0, H], [H, 1.0]]), {"starts": 0}, "starts must be >= 1, got 0"),
        (observed([[1.0, H], [H, 1.0]]), {"tolerance": 0.0}, "tolerance must lie .* got 0.0"),
        (observed([[1.0, H], [H, 1.0]]), {"tolerance": 1.5}, "tolerance must lie .* got 1.5"),
        (observed([[1.0, H], [H, 1.0]]), {"seed": -1}, "seed must be >= 0, got -1"),
        (observed([[1.0, H], [H, 1.0]]), {"lower": 3}, "lower must be at most 2, got 3"),
        (ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0]), {}, "matrices"),
        (ff.Sensing(np.ones((2, 2, 2)), [1.0, 2.0]), {}, "contradict .* 0.707"),
    ],
)
def test_bad_input_is_refused(problem, options, words):
    with pytest.raises(ValueError, match=words):
        lowest_semidefinite_rank(problem, **options)
