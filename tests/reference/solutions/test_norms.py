"""Minimum norms against closed forms, brute force over one unknown, and cvxpy."""

import math

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import factorflow as ff
from factorflow.reference import minimum_norm
from factorflow.reference.solutions._splitting import Affine, steps
from factorflow.reference.solutions.solution_set import SolutionSet

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64

NORMS = ("nuclear_norm", "frobenius_norm", "spectral_norm", "schatten_norm[3]")
EXPONENTS = {"nuclear_norm": 1, "frobenius_norm": 2, "spectral_norm": np.inf}


def norm_of(matrix, p):
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return float(values[0]) if np.isinf(p) else float(np.sum(values**p) ** (1 / p))


def completion(shape, count, rank, seed=0):
    generator = np.random.default_rng([seed, *shape])
    truth = generator.standard_normal((shape[0], rank)) @ generator.standard_normal(
        (rank, shape[1])
    )
    places = generator.permutation(truth.size)[:count]
    indices = np.stack(np.unravel_index(places, shape), 1)
    return ff.Completion(shape, indices, truth[tuple(indices.T)])


def sensing(shape, count, rank, seed=0, semidefinite=False):
    generator = np.random.default_rng([seed, *shape])
    left = generator.standard_normal((shape[0], rank))
    truth = left @ (left.T if semidefinite else generator.standard_normal((rank, shape[1])))
    measurements = generator.standard_normal((count, *shape))
    return ff.Sensing(measurements, np.tensordot(measurements, truth, 2))


def by_cvxpy(problem, norm, tolerance=0.0, semidefinite=False):
    """The optimal value from the problem's arrays, by an interior-point method."""
    matrix = cvxpy.Variable(problem.shape, PSD=True) if semidefinite else None
    matrix = cvxpy.Variable(problem.shape) if matrix is None else matrix
    values = np.asarray(problem.values, np.float64)
    if isinstance(problem, ff.Completion):
        measured = matrix[np.asarray(problem.indices)[:, 0], np.asarray(problem.indices)[:, 1]]
    else:
        flat = np.asarray(problem.measurements, np.float64).reshape(len(values), -1)
        measured = flat @ cvxpy.vec(matrix, order="C")
    gap = measured - values
    fits = gap == 0 if tolerance == 0 else cvxpy.norm(gap, 2) <= tolerance
    functions = {"nuclear_norm": cvxpy.normNuc, "spectral_norm": cvxpy.sigma_max}
    functions["frobenius_norm"] = lambda x: cvxpy.norm(x, "fro")
    program = cvxpy.Problem(cvxpy.Minimize(functions[norm](matrix)), [fits])
    return float(program.solve(solver="CLARABEL"))


def assert_sound(least, problem, tolerance=0.0):
    """What holds of every answer: the product fits and has the norm stated, above the bound."""
    p = EXPONENTS.get(least.norm) or float(least.norm[len("schatten_norm[") : -1])
    solutions = SolutionSet.of(problem)
    np.testing.assert_allclose(least.value, norm_of(least.product, p), rtol=1e-12)
    np.testing.assert_allclose(least.residual, solutions.residual(least.product), atol=1e-14)
    # Rounding of the observations, and that of products of several numbers.
    assert least.residual <= tolerance * (1 + 1e-9) + solutions.slack + 1e-11
    assert 0 <= least.lower <= least.value


# --- Closed forms


@pytest.mark.parametrize(
    ("norm", "minimum"),
    [
        ("nuclear_norm", 2.0),
        ("frobenius_norm", math.sqrt(2)),
        ("spectral_norm", 1.0),
        ("schatten_norm[1.5]", 2 ** (2 / 3)),
        ("schatten_norm[4]", 2**0.25),
        ("schatten_norm[inf]", 1.0),
        ("schatten_norm[1]", 2.0),
        ("schatten_norm[0.5]", 4.0),
    ],
)
def test_every_norm_has_its_minimum_where_training_diverges(norm, minimum):
    problem = ff.razin_cohen_problem()
    least = minimum_norm(problem, norm)
    np.testing.assert_allclose(least.value, minimum, rtol=1e-7)
    # To the square root of the accuracy: the norms are flat there.
    np.testing.assert_allclose(least.product, [[0, 1], [1, 0]], atol=1e-3)
    assert least.residual == 0
    assert least.certified == (norm != "schatten_norm[0.5]")
    if norm == "schatten_norm[0.5]":
        # The nuclear norm's minimum is the bound.
        np.testing.assert_allclose(least.lower, 2.0, rtol=1e-6)
        assert least.method == "reweighted"


def test_a_fully_observed_problem_has_the_norm_of_its_solution():
    truth = np.array([[1.0, 2.0], [3.0, 5.0]])
    problem = ff.Completion((2, 2), np.argwhere(truth), truth.ravel())
    for norm, p in EXPONENTS.items():
        least = minimum_norm(problem, norm)
        np.testing.assert_allclose([least.value, least.lower], norm_of(truth, p), rtol=1e-12)
        assert least.certified
    np.testing.assert_array_equal(least.product, truth)


@pytest.mark.parametrize("norm", [*NORMS, "schatten_norm[0.5]"])
def test_one_observed_entry_is_the_norm(norm):
    problem = ff.Completion((3, 2), [[1, 0]], [-2.0])
    least = minimum_norm(problem, norm)
    np.testing.assert_allclose(least.value, 2.0, rtol=1e-7)
    np.testing.assert_allclose(least.lower, 2.0, rtol=1e-6)
    # Rank one is where even a quasi-norm is certified.
    assert least.certified
    assert_sound(least, problem)


def test_one_measurement_is_divided_by_its_dual_norm():
    measurement = np.random.default_rng(4).standard_normal((3, 4))
    problem = ff.Sensing(measurement[None], [2.0])
    for norm, dual in (("nuclear_norm", np.inf), ("spectral_norm", 1), ("schatten_norm[3]", 1.5)):
        least = minimum_norm(problem, norm)
        # Single precision, where the problem is in it.
        np.testing.assert_allclose(least.value, 2 / norm_of(measurement, dual), rtol=5e-7)
        assert least.certified
        assert_sound(least, problem)


def test_disconnected_blocks_add_up():
    """Two observed rank-one blocks: whatever is beside them only adds to the norms."""
    a, b, c, d = (np.array(v) for v in ([1.0, 2.0], [2.0, -1.0, 1.0], [0.5, 1.0, 1.0], [3.0, 1.0]))
    truth = np.zeros((5, 5))
    truth[:2, :3], truth[2:, 3:] = np.outer(a, b), np.outer(c, d)
    problem = ff.Completion((5, 5), np.argwhere(truth), truth[truth != 0])
    blocks = [np.linalg.norm(a) * np.linalg.norm(b), np.linalg.norm(c) * np.linalg.norm(d)]
    for norm, expected in (("nuclear_norm", sum(blocks)), ("spectral_norm", max(blocks))):
        least = minimum_norm(problem, norm)
        np.testing.assert_allclose(least.value, expected, rtol=1e-7)
        assert least.certified
        assert_sound(least, problem)


def test_the_least_frobenius_norm_leaves_zeros():
    problem = completion((5, 7), 12, 2)
    least = minimum_norm(problem, "frobenius_norm")
    np.testing.assert_array_equal(least.product, problem.observed_entries())
    np.testing.assert_allclose(least.lower, least.value, rtol=1e-12)
    assert least.method == "least_norm" and least.certified
    # Within a tolerance the observations shrink by it.
    near = minimum_norm(problem, "schatten_norm[2]", tolerance=0.5)
    np.testing.assert_allclose(near.value, least.value - 0.5, rtol=1e-12)
    assert near.certified


def test_zero_fits():
    zeros = ff.Completion((2, 2), [[0, 0]], [0.0])
    within = ff.Completion((2, 2), [[0, 0], [1, 1]], [3.0, 4.0])
    for problem, tolerance in ((zeros, 0.0), (within, 5.0)):
        for norm in (*NORMS, "schatten_norm[0.5]"):
            least = minimum_norm(problem, norm, tolerance=tolerance)
            assert least.value == least.lower == 0 and least.certified
            assert not np.any(least.product)


# --- Brute force over the unknown entry


@pytest.mark.parametrize("p", [1.2, 3.0, 10.0, 1.0, np.inf])
@pytest.mark.parametrize("rest", [(1.0, 1.0, 0.1), (2.0, 0.5, -0.3)])
def test_one_unknown_entry_by_brute_force(p, rest):
    problem = ff.razin_cohen_problem(2, *rest)
    found = scipy.optimize.minimize_scalar(
        lambda w: norm_of([[w, rest[0]], [rest[1], rest[2]]], p), bounds=(-5, 5), method="bounded"
    )
    least = minimum_norm(problem, f"schatten_norm[{p}]")
    # Single precision, where the problem is in it.
    np.testing.assert_allclose(least.value, found.fun, rtol=5e-7)
    assert least.certified
    assert_sound(least, problem)


@pytest.mark.parametrize("p", [0.5, 0.8])
@pytest.mark.parametrize(
    "rest", [(1.0, 1.0, 0.1), (2.0, 0.5, -0.3), (1.0, 1.0, 1.0), (1.0, 3.0, 0.5)]
)
def test_quasi_norms_by_brute_force(p, rest):
    """The kinks at rank one included, where most of the minima are."""
    problem = ff.razin_cohen_problem(2, *rest)
    z, z_prime, eps = (float(x) for x in np.asarray(problem.values))
    # Every local minimum of a fine grid, refined; and the entry of rank one.
    entries = np.append(np.linspace(-15, 15, 30001), z * z_prime / eps)
    matrices = np.stack([[[w, z], [z_prime, eps]] for w in entries])
    values = np.linalg.svd(matrices, compute_uv=False)
    values[values < 1e-12] = 0
    minimum = np.min(np.sum(values**p, axis=1) ** (1 / p))
    least = minimum_norm(problem, f"schatten_norm[{p}]")
    # The grid is 1e-3 wide, and the quasi-norms curve by order one.
    np.testing.assert_allclose(least.value, minimum, rtol=1e-6)
    nuclear = minimum_norm(problem)
    np.testing.assert_allclose(least.lower, nuclear.lower, rtol=1e-6)


def test_quasi_norms_find_a_planted_matrix():
    problem = completion((20, 20), 180, 2)
    truth = minimum_norm(problem, "schatten_norm[0.5]", starts=2)
    values = np.linalg.svd(truth.product, compute_uv=False)
    assert np.sum(values > 1e-10 * values[0]) == 2
    # The nuclear norm is no way to it here: its minimum is smaller, at a higher rank.
    nuclear = minimum_norm(problem)
    assert nuclear.value < norm_of(truth.product, 1) * (1 - 1e-3)
    assert norm_of(nuclear.product, 0.5) > 1.2 * truth.value
    assert not truth.certified and truth.lower <= nuclear.value


def test_quasi_norms_within_a_tolerance_and_of_measurements():
    for problem in (completion((6, 5), 18, 1), sensing((5, 4), 12, 1)):
        exact = minimum_norm(problem, "schatten_norm[0.5]")
        near = minimum_norm(problem, "schatten_norm[0.5]", tolerance=0.2)
        assert near.value < exact.value
        assert exact.value <= norm_of(minimum_norm(problem).product, 0.5) * (1 + 1e-12)
        np.testing.assert_allclose(near.residual, 0.2, rtol=1e-9)
        assert exact.residual <= SolutionSet.of(problem).slack + 1e-11


# --- cvxpy


@pytest.mark.parametrize("norm", ["nuclear_norm", "spectral_norm"])
@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize(
    "problem", [completion((6, 5), 16, 2), sensing((5, 4), 9, 1)], ids=["completion", "sensing"]
)
def test_convex_solvers_agree(problem, norm, share):
    tolerance = share * float(np.linalg.norm(problem.values))
    least = minimum_norm(problem, norm, tolerance=tolerance)
    np.testing.assert_allclose(least.value, by_cvxpy(problem, norm, tolerance), rtol=1e-5)
    assert least.certified and least.value - least.lower <= 1e-7 * least.value
    assert_sound(least, problem, tolerance)


@pytest.mark.parametrize("norm", ["nuclear_norm", "spectral_norm", "frobenius_norm"])
def test_positive_semidefinite_minima_agree(norm):
    problem = sensing((5, 5), 7, 2, semidefinite=True)
    least = minimum_norm(problem, norm, semidefinite=True)
    np.testing.assert_allclose(least.value, by_cvxpy(problem, norm, 0, True), rtol=1e-5)
    assert least.certified
    np.testing.assert_allclose(least.product, least.product.T, atol=1e-14 * least.value)
    assert np.linalg.eigvalsh(least.product).min() >= -1e-14 * least.value
    assert least.residual <= 1e-6 * np.linalg.norm(problem.values)
    # Fewer matrices, so no smaller norm.
    assert least.value >= minimum_norm(problem, norm).lower * (1 - 1e-6)


def test_positive_semidefinite_completions_agree():
    truth = np.array([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 1.0]])
    places = np.array([[0, 0], [0, 1], [1, 0], [2, 1]])
    problem = ff.Completion((3, 3), places, truth[tuple(places.T)])
    for tolerance in (0.0, 0.3):
        least = minimum_norm(problem, tolerance=tolerance, semidefinite=True)
        expected = by_cvxpy(problem, "nuclear_norm", tolerance, True)
        np.testing.assert_allclose(least.value, expected, rtol=1e-5)
        assert least.certified


@pytest.mark.parametrize(("norm", "tolerance"), [("nuclear_norm", 0.0), ("spectral_norm", 0.4)])
def test_cvxpy_on_request_is_certified_too(norm, tolerance):
    problem = completion((6, 5), 16, 2)
    asked = minimum_norm(problem, norm, tolerance=tolerance, method="cvxpy", accuracy=1e-4)
    ours = minimum_norm(problem, norm, tolerance=tolerance)
    assert asked.method == "cvxpy" and asked.certified
    np.testing.assert_allclose(asked.value, ours.value, rtol=1e-5)
    assert_sound(asked, problem, tolerance)


def test_a_hundred_by_hundred_is_certified():
    problem = ff.random_low_rank_problem(jax.random.key(0), (100, 100), 5, 5000)
    least = minimum_norm(problem)
    assert least.certified and least.residual == 0
    # At 5000 observations the planted matrix is the minimum; 2e-4 where it is in single precision.
    assert problem.target is not None
    np.testing.assert_allclose(least.value, norm_of(problem.target, 1), rtol=2e-4)
    assert least.iterations < 3000


# --- What certificates are worth


def test_bounds_hold_before_convergence():
    problem = completion((6, 5), 16, 2)
    for norm in ("nuclear_norm", "spectral_norm", "schatten_norm[3]"):
        truth = minimum_norm(problem, norm)
        for count in (1, 3, 10):
            early = minimum_norm(problem, norm, max_iterations=count)
            assert early.iterations <= count
            assert early.lower <= truth.value and truth.lower <= early.value
            assert_sound(early, problem)
        assert not minimum_norm(problem, norm, max_iterations=1).certified


def test_semidefinite_answers_before_convergence_are_not_certified():
    """They fit only nearly, which may make their norm smaller than the minimum."""
    problem = sensing((5, 5), 7, 2, semidefinite=True)
    truth = minimum_norm(problem, "nuclear_norm", semidefinite=True)
    for count in (1, 5, 20, 40):
        early = minimum_norm(problem, "nuclear_norm", semidefinite=True, max_iterations=count)
        assert not early.certified
        assert early.lower <= truth.value * (1 + 1e-7)


def test_a_large_spectral_step_leaves_nothing():
    with jax.enable_x64(True):
        zeros = jnp.zeros((2, 2))
        state = steps(
            jnp.eye(2),
            jnp.asarray(3.0),
            jnp.asarray(1.0),
            Affine(None, zeros, zeros, jnp.asarray(0.0)),
            jnp.asarray(1),
            kind="spectral",
            symmetric=False,
        )
        # The singular values sum to less than the step: the nearest point of the dual ball is all.
        np.testing.assert_array_equal(state.primal, np.zeros((2, 2)))


def test_the_answer_does_not_depend_on_units():
    problem = completion((6, 5), 16, 2)
    scaled = ff.Completion((6, 5), problem.indices, np.asarray(problem.values) * 2.0**40)
    least, far = minimum_norm(problem), minimum_norm(scaled)
    np.testing.assert_allclose(far.value, least.value * 2.0**40, rtol=1e-12)
    assert far.certified and far.iterations == least.iterations


def test_the_problem_s_own_precision_is_kept(dtype):
    least = minimum_norm(ff.razin_cohen_problem(), "spectral_norm")
    assert least.product.dtype == np.float64 and isinstance(least.value, float)
    assert jnp.zeros(1).dtype == dtype
