"""What has a precision of its own, in a session of single precision: the float32 job alone."""

import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from conftest import X64
from experiments.common import base
from factorflow.analysis import greedy_low_rank
from factorflow.experiments import run, sweep

pytestmark = pytest.mark.skipif(X64, reason="needs single precision")


@pytest.fixture(autouse=True)
def sessions_precision_is_left_alone():
    yield
    assert jnp.zeros(1).dtype == jnp.float32


def test_what_is_minimized_is_found_in_double_precision():
    problem = ff.razin_cohen_problem()
    assert problem.values.dtype == jnp.float32
    answer = ff.what_is_minimized(
        problem,
        ff.DeepMatrix((2, 2), depth=2),
        scales=(1e-2, 1e-3, 1e-4, 1e-5),
        seeds=(0, 5),
        norms=("nuclear_norm",),
    )
    assert answer.verdict == "rank"
    assert np.all(answer.runs.certified)
    assert answer.runs.products.dtype == np.float64


def test_greedy_phases_are_found_in_double_precision():
    target = np.diag([2.0, 1.0])
    problem = ff.Completion((2, 2), list(np.ndindex(2, 2)), target.ravel())
    assert problem.values.dtype == jnp.float32
    greedy = greedy_low_rank(problem, rows=20)
    assert greedy.products.dtype == np.float64
    # The gradient at the best approximation is what it lacks, to the gradient norm asked for.
    np.testing.assert_allclose(greedy.phases[0].values, [2, 1], atol=2e-6)
    np.testing.assert_allclose(greedy.phases[1].values, [1, 0], atol=2e-6)
    # Single precision does not resolve the loss asked for.
    np.testing.assert_allclose(greedy.losses[-1], 1e-8 * np.sum(target**2) / 2, rtol=1e-6)


def test_a_batch_of_experiments_agrees_with_simulate(tmp_path):
    runs = sweep(base(), dynamics__optimizer=[1e-2, 2e-2])
    store = run(runs, tmp_path / "store", progress=False)
    experiment = runs[1]
    trajectory = ff.simulate(
        experiment.problem(),
        experiment.factorization,
        experiment.dynamics,
        experiment.build().factors,
        observe=experiment.observe,
        stop=experiment.stop,
        measures=experiment.measures,
    )
    stored = store.dataset([experiment])
    for name, values in trajectory.measures.items():
        np.testing.assert_array_equal(values, stored[name].values[0])
    np.testing.assert_array_equal(trajectory.steps, stored["step"].values[0])


def test_double_precision_must_be_enabled():
    with pytest.raises(ValueError, match="jax_enable_x64"):
        base(dtype="float64").build()
