"""Solution sets against entries written out, least squares and SciPy's constrained minimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import factorflow as ff
from factorflow.reference.solutions.solution_set import SolutionSet, require_solutions

GENERATOR = np.random.default_rng(0)


def sensing(count, shape, seed=0):
    generator = np.random.default_rng(seed)
    measurements = generator.standard_normal((count, *shape))
    truth = generator.standard_normal(shape)
    return ff.Sensing(measurements, np.tensordot(measurements, truth, 2))


def dependent(value):
    """Three measurements of 2x2, the third the sum of the others; consistent at `value` = 3."""
    first, second = np.eye(2), np.array([[0.0, 1.0], [0.0, 0.0]])
    return ff.Sensing(np.stack([first, second, first + second]), [1.0, 2.0, value])


def rounding(dtype):
    """Some hundred roundings of numbers of order one in the problem's dtype."""
    return 300 * float(jnp.finfo(dtype).eps)


def test_a_completion_is_its_entries():
    problem = ff.Completion((2, 3), [[1, 2], [0, 1]], [5.0, -1.0])
    solutions = SolutionSet.of(problem)
    assert solutions.shape == (2, 3) and solutions.dimension == 4
    assert solutions.inconsistency == 0 and solutions.condition == 1
    np.testing.assert_array_equal(solutions.mask, [[False, True, False], [False, False, True]])
    matrix = np.arange(6.0).reshape(2, 3)
    # Sorted by place: (0, 1) comes first.
    np.testing.assert_array_equal(solutions.values, [-1, 5])
    np.testing.assert_array_equal(solutions.measure(matrix), [1, 5])
    np.testing.assert_array_equal(solutions.adjoint(np.array([3.0, 4.0])), [[0, 3, 0], [0, 0, 4]])
    assert solutions.residual(matrix) == 2
    np.testing.assert_array_equal(solutions.project(matrix), [[0, -1, 2], [3, 4, 5]])


@pytest.mark.parametrize("room", [None, 9])
def test_repeated_and_padded_observations_count_once(room):
    problem = ff.Completion((2, 2), [[0, 1], [0, 1], [1, 0]], [2.0, 2.0, 3.0], room=room)
    solutions = SolutionSet.of(problem)
    np.testing.assert_array_equal(solutions.values, [2, 3])
    assert solutions.residual(np.zeros((2, 2))) == np.sqrt(13)
    assert solutions.dimension == 2


def test_fully_observed_problems_have_one_solution():
    indices = [(i, j) for i in range(2) for j in range(2)]
    solutions = SolutionSet.of(ff.Completion((2, 2), indices, [1.0, 2.0, 3.0, 4.0]))
    assert solutions.dimension == 0
    np.testing.assert_array_equal(solutions.project(np.zeros((2, 2))), [[1, 2], [3, 4]])
    assert SolutionSet.of(sensing(7, (2, 3))).dimension == 0


def test_measurements_and_their_adjoint_are_the_problem_s(dtype):
    problem = sensing(5, (3, 4))
    solutions = SolutionSet.of(problem)
    assert solutions.mask is None and solutions.dimension == 7
    measurements = np.asarray(problem.measurements, np.float64)
    matrix, multipliers = GENERATOR.standard_normal((3, 4)), GENERATOR.standard_normal(5)
    # The decomposition and back, in double precision whatever the problem's: 1e-12.
    np.testing.assert_allclose(
        solutions.measure(matrix), np.tensordot(measurements, matrix, 2), atol=1e-12
    )
    np.testing.assert_allclose(
        solutions.adjoint(multipliers), np.tensordot(multipliers, measurements, 1), atol=1e-12
    )
    loss = float(problem.loss(ff.Dense(jnp.asarray(matrix, dtype))))
    np.testing.assert_allclose(solutions.residual(matrix) ** 2 / 2, loss, rtol=rounding(dtype))


def test_projections_are_least_squares():
    problem = sensing(5, (3, 4))
    solutions = SolutionSet.of(problem)
    matrix = GENERATOR.standard_normal((3, 4))
    flat = np.asarray(problem.measurements, np.float64).reshape(5, -1)
    gap = np.asarray(problem.values, np.float64) - flat @ matrix.ravel()
    expected = matrix + np.linalg.lstsq(flat, gap)[0].reshape(3, 4)
    np.testing.assert_allclose(solutions.project(matrix), expected, atol=1e-12)
    assert solutions.residual(expected) < 1e-12


@pytest.mark.parametrize("kind", ["completion", "sensing", "dependent"])
@pytest.mark.parametrize("tolerance", [0.05, 0.8])
def test_projections_within_a_tolerance_are_the_nearest(kind, tolerance):
    problems = {
        "completion": ff.Completion((2, 2), [[0, 0], [0, 1], [1, 1]], [1.0, -2.0, 0.5]),
        "sensing": sensing(3, (2, 2)),
        "dependent": dependent(3.0),
    }
    solutions = SolutionSet.of(problems[kind])
    matrix = np.array([[3.0, 1.0], [-1.0, 2.0]])
    nearest = solutions.project(matrix, tolerance)
    np.testing.assert_allclose(solutions.residual(nearest), tolerance, rtol=1e-9)
    found = scipy.optimize.minimize(
        lambda x: np.sum((x - matrix.ravel()) ** 2) / 2,
        solutions.project(matrix).ravel(),
        jac=lambda x: x - matrix.ravel(),
        constraints={
            "type": "ineq",
            "fun": lambda x: tolerance**2 - solutions.residual(x.reshape(2, 2)) ** 2,
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    # SLSQP differentiates the constraint numerically.
    np.testing.assert_allclose(nearest.ravel(), found.x, atol=2e-6)
    inside = solutions.project(matrix, 100.0)
    np.testing.assert_allclose(inside, matrix, atol=1e-14)


def test_dependent_measurements_leave_a_residual(dtype):
    consistent, contradicting = SolutionSet.of(dependent(3.0)), SolutionSet.of(dependent(4.0))
    assert consistent.dimension == contradicting.dimension == 2
    assert consistent.inconsistency < rounding(dtype)
    # The distance of (1, 2, 4) from the plane x + y = z.
    np.testing.assert_allclose(contradicting.inconsistency, 1 / np.sqrt(3), rtol=rounding(dtype))
    best = contradicting.project(np.zeros((2, 2)))
    np.testing.assert_allclose(contradicting.residual(best), 1 / np.sqrt(3), rtol=rounding(dtype))
    require_solutions(consistent)
    with pytest.raises(ValueError, match=r"residual below 0.577"):
        require_solutions(contradicting, 0.5)
    require_solutions(contradicting, 0.6)


def test_rounding_is_not_a_contradiction():
    # Ninety measurements of fifty numbers: the residual is rounding of the problem's dtype.
    generator = np.random.default_rng(3)
    measurements = generator.standard_normal((90, 5, 10))
    truth = 100 * generator.standard_normal((5, 10))
    solutions = SolutionSet.of(ff.Sensing(measurements, np.tensordot(measurements, truth, 2)))
    assert 0 < solutions.inconsistency < solutions.slack
    require_solutions(solutions)


def test_ill_conditioned_measurements_do_not_excuse_contradictions():
    # The third contradicts the first by 1e-3; the second has a condition number of 1e4.
    flat = np.eye(4)[[0, 1, 0]] * np.array([[1.0], [1e-4], [1.0]])
    problem = ff.Sensing(flat.reshape(3, 2, 2), [1.0, 1e-4, 1.001])
    solutions = SolutionSet.of(problem)
    np.testing.assert_allclose(solutions.condition, np.sqrt(2) * 1e4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"residual below 0\.000707"):
        require_solutions(solutions)


def test_symmetric_matrices_see_mirrored_entries():
    problem = ff.Completion((3, 3), [[0, 1], [1, 0], [0, 2], [1, 1]], [2.0, 2.0, 1.0, 4.0])
    solutions = SolutionSet.of(problem)
    symmetric = solutions.symmetric()
    assert symmetric.inconsistency == 0
    fitted = symmetric.project(np.zeros((3, 3)))
    np.testing.assert_array_equal(fitted, [[0, 2, 1], [2, 4, 0], [1, 0, 0]])
    # Within a tolerance: of the problem's own residual, where (0, 1) counts twice.
    near = symmetric.project(np.zeros((3, 3)), 1.0)
    np.testing.assert_allclose(near, near.T)
    np.testing.assert_allclose(solutions.residual(near), 1.0, rtol=1e-12)
    measured = ff.Sensing(np.eye(9).reshape(9, 3, 3)[[1, 3, 2, 4]], problem.values)
    twin = SolutionSet.of(measured).symmetric()
    np.testing.assert_allclose(twin.project(np.zeros((3, 3)), 1.0), near, atol=1e-12)


def test_contradicting_mirrored_entries_leave_a_residual(dtype):
    problem = ff.Completion((2, 2), [[0, 1], [1, 0]], [2.0, 3.0])
    symmetric = SolutionSet.of(problem).symmetric()
    # Both at their mean: each is off by a half.
    np.testing.assert_allclose(symmetric.inconsistency, np.sqrt(0.5))
    entries = ff.Sensing(np.eye(4).reshape(4, 2, 2)[1:3], problem.values)
    np.testing.assert_allclose(
        SolutionSet.of(entries).symmetric().inconsistency, np.sqrt(0.5), rtol=rounding(dtype)
    )


def test_label_noise_on_repetitions_is_a_contradiction():
    problem = ff.Completion((2, 2), [[0, 1], [0, 1]], [2.0, 2.0])
    noisy = problem.resample(jax.random.key(0), label_noise=jnp.asarray(0.5))
    solutions = SolutionSet.of(noisy)
    first, second = np.asarray(noisy.values, np.float64)
    np.testing.assert_allclose(solutions.inconsistency, abs(first - second) / np.sqrt(2))
    np.testing.assert_allclose(solutions.values, (first + second) / 2)


def test_bad_input_is_refused():
    tensor = ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0])
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        SolutionSet.of(tensor)
    solutions = SolutionSet.of(ff.razin_cohen_problem())
    for tolerance in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="tolerance must be 0 or more"):
            require_solutions(solutions, tolerance)
    with pytest.raises(ValueError, match=r"must have shape \(2, 2\), got \(3, 2\)"):
        solutions.project(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"got the shape \(2, 3\)"):
        SolutionSet.of(ff.Completion((2, 3), [[0, 0]], [1.0])).symmetric()
