"""Problems in the session's precision: what is found holds up to their rounding, in both jobs."""

import jax
import numpy as np
import pytest

import factorflow as ff
from factorflow.reference import local_uniqueness, minimum_norm, observation_graph, solution_ranks


@pytest.fixture(scope="module")
def problem():
    return ff.random_low_rank_problem(jax.random.key(0), (6, 5), rank=1, n_observed=20)


def test_a_least_solution_fits_to_rounding(problem):
    found = minimum_norm(problem)
    observed = np.asarray(problem.observed_entries())
    fitted = found.product[tuple(np.asarray(problem.indices).T)]
    # The problem's values are kept as they are: in double precision nothing is lost again.
    np.testing.assert_allclose(fitted, np.asarray(problem.values), rtol=0, atol=1e-12)
    assert found.certified
    assert found.lower <= found.value <= np.linalg.norm(observed, "nuc")


def test_ranks_forgive_the_rounding_of_the_data(problem):
    ranks = solution_ranks(problem)
    assert (ranks.minimal_upper, ranks.infimal_upper) == (1, 1)
    assert ranks.attained


def test_graph_and_uniqueness(problem):
    assert observation_graph(problem).connected
    assert local_uniqueness(problem, 1).unique
