"""What `minimum_norm` refuses, and what it says."""

import builtins

import numpy as np
import pytest

import factorflow as ff
from factorflow.reference import minimum_norm

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64


def test_contradictions_name_the_residual():
    problem = ff.Sensing(np.ones((2, 2, 2)), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"contradict each other.* 0\.707107"):
        minimum_norm(problem)
    near = minimum_norm(problem, tolerance=0.75)
    assert near.certified and near.residual <= 0.75 * (1 + 1e-9)


def test_semidefinite_problems_without_a_solution():
    with pytest.raises(ValueError, match=r"No positive semidefinite matrix fits"):
        minimum_norm(ff.Completion((2, 2), [[0, 0]], [-1.0]), semidefinite=True)
    # A zero on the diagonal leaves no room beside it.
    with pytest.raises(ValueError, match=r"No symmetric matrix fits.* 0\.707107"):
        minimum_norm(ff.Completion((2, 2), [[0, 1], [1, 0]], [1.0, 2.0]), semidefinite=True)
    with pytest.raises(ValueError, match=r"got shape \(2, 3\)"):
        minimum_norm(ff.Completion((2, 3), [[0, 0]], [1.0]), semidefinite=True)


def test_semidefinite_solutions_at_infinity_are_not_certified():
    # A zero on the diagonal: matrices come near, with ever larger traces, and none fits.
    least = minimum_norm(ff.razin_cohen_problem(), semidefinite=True, max_iterations=500)
    assert not least.certified and least.residual > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "nucular_norm"}, r"Unknown norm 'nucular_norm'. Did you mean 'nuclear_norm'"),
        ({"norm": "schatten_norm[p]"}, "write a number"),
        ({"norm": "schatten_norm[x]"}, "Unknown norm"),
        ({"norm": "schatten_norm[0]"}, "p must be positive"),
        ({"norm": "schatten_norm[-1]"}, "p must be positive"),
        ({"tolerance": -0.1}, "tolerance must be 0 or more"),
        ({"method": "simplex"}, "Unknown method 'simplex'"),
        ({"accuracy": 0.0}, "accuracy must be at least"),
        ({"starts": 0}, "starts must be >= 1"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"max_iterations": 0}, "max_iterations must be >= 1"),
        ({"norm": "schatten_norm[0.5]", "semidefinite": True}, "semidefinite=True is for p >= 1"),
        ({"norm": "schatten_norm[0.5]", "method": "cvxpy"}, "is for p >= 1"),
        ({"norm": "schatten_norm[3]", "method": "cvxpy"}, "knows p = 1, 2 and inf"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        minimum_norm(ff.razin_cohen_problem(), **arguments)


def test_cvxpy_that_is_missing_is_named(monkeypatch):
    found = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "cvxpy":
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="factorflow\\[convex\\]"):
        minimum_norm(ff.razin_cohen_problem(), method="cvxpy")
