"""The lowest effective rank among solutions, against closed forms and SciPy's line search."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import factorflow as ff
from factorflow.reference import SolutionSet, infimal_effective_rank
from solution_cases import HIDDEN, completion, gaussian

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64


def effective_rank(matrix):
    sizes = np.linalg.svd(matrix, compute_uv=False)
    shares = sizes[sizes > 0] / np.sum(sizes)
    return math.exp(-np.sum(shares * np.log(shares)))


@pytest.mark.parametrize("dim", [2, 4])
def test_one_hidden_entry_lets_the_effective_rank_tend_to_one(dim):
    problem = ff.razin_cohen_problem(dim=dim)
    bounds = infimal_effective_rank(problem)
    assert (bounds.lower, bounds.upper, bounds.attained) == (1.0, 1.0, False)
    assert bounds.certified and bounds.direction
    solutions = SolutionSet.of(problem)
    far = [solutions.project(t * bounds.product) for t in (1e2, 1e4, 1e6)]
    excess = [effective_rank(matrix) - 1 for matrix in far]
    assert excess[0] > excess[1] > excess[2] > 0 and excess[2] < 1e-3
    assert all(solutions.residual(matrix) == 0 for matrix in far)


def test_it_is_attained_where_a_solution_has_rank_one():
    bounds = infimal_effective_rank(ff.razin_cohen_problem(eps=0.5))
    assert (bounds.lower, bounds.upper, bounds.attained) == (1.0, 1.0, True)
    assert not bounds.direction
    assert effective_rank(bounds.product) == pytest.approx(1.0, abs=1e-12)


def test_a_unique_solution_has_its_effective_rank():
    bounds = infimal_effective_rank(completion([[2.0, 0.0], [0.0, 1.0]]))
    # Shares of 2/3 and 1/3.
    expected = 3 / 2 ** (2 / 3)
    assert bounds.lower == bounds.upper == pytest.approx(expected, rel=1e-12)
    assert bounds.attained and not bounds.direction
    zero = infimal_effective_rank(completion([[0.0, HIDDEN]]))
    assert (zero.lower, zero.upper, zero.attained) == (0.0, 0.0, True)


def test_sensing_with_a_direction_of_rank_one():
    # Twelve dimensions measure zero: more than enough to contain a matrix of rank one.
    problem = gaussian(4, (4, 4), np.array([1.0, -1.0, 2.0, 0.5]), seed=1)
    wide = infimal_effective_rank(problem)
    assert (wide.lower, wide.upper) == (1.0, 1.0)
    # Of full rank wherever it is scaled to: the identity, blind for one entry off the diagonal.
    measurements = [np.outer(*np.eye(3)[[i, j]]) for i, j in itertools.product(range(3), repeat=2)]
    seen = [k for k in range(9) if k != 2]
    blind = ff.Sensing(np.array(measurements)[seen], np.eye(3).ravel()[seen])
    bounds = infimal_effective_rank(blind)
    assert (bounds.lower, bounds.upper, bounds.attained) == (1.0, 1.0, False)
    assert bounds.direction and effective_rank(bounds.product) == pytest.approx(1.0, abs=1e-6)
    assert SolutionSet.of(blind).measure(bounds.product) == pytest.approx(0.0, abs=1e-6)


def test_one_direction_of_full_rank_against_a_line_search():
    """Solutions W_0 + t D on a line: SciPy finds the lowest point, the ends are D's own."""
    generator = np.random.default_rng(4)
    directions = np.linalg.qr(generator.standard_normal((9, 9)))[0].T
    hidden = directions[0].reshape(3, 3)
    problem = ff.Sensing(directions[1:].reshape(8, 3, 3), generator.standard_normal(8))
    bounds = infimal_effective_rank(problem)
    solutions = SolutionSet.of(problem)
    start = solutions.project(np.zeros((3, 3)))
    points = np.tan(np.linspace(-1.55, 1.55, 400))
    values = [effective_rank(start + t * hidden) for t in points]
    k = int(np.clip(np.argmin(values), 1, 398))
    around = minimize_scalar(
        lambda t: effective_rank(start + t * hidden),
        bounds=(points[k - 1], points[k + 1]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    lowest = min(around.fun, *values, effective_rank(hidden))
    assert bounds.lower <= lowest
    # 1e-4: descent stops on the smoothed entropy, and single precision bends the line.
    assert bounds.upper == pytest.approx(lowest, rel=1e-4)
    assert bounds.lower > 1.05 and not bounds.certified


def test_the_lower_bound_holds_for_solutions_far_and_near():
    problem = gaussian(14, (5, 4), np.random.default_rng(9).standard_normal(14), seed=9)
    bounds = infimal_effective_rank(problem)
    assert 1.05 < bounds.lower <= bounds.upper
    assert effective_rank(bounds.product) == pytest.approx(bounds.upper, rel=1e-9)
    solutions, generator = SolutionSet.of(problem), np.random.default_rng(0)
    for size in np.repeat([0.1, 1.0, 10.0, 1e3], 50):
        point = np.outer(generator.standard_normal(5), generator.standard_normal(4))
        assert effective_rank(solutions.project(size * point)) >= bounds.lower
