"""The balancedness gap: against numpy, its symmetries, and that gradient flow conserves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from _measure.references import (
    CASES,
    DTYPE,
    assert_agrees,
    evaluated,
    observe_deep,
    orthogonal,
    rows,
)
from tolerances import assert_close


def gap_of(factors) -> np.ndarray:
    return observe_deep(["balancedness_gap"], factors)["balancedness_gap"]


def random_factors(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in [(3, 2), (3, 3), (2, 3)]]


@pytest.mark.parametrize(("case", "measure", "family", "parameters"), rows("conserved"))
def test_against_numpy(case, measure, family, parameters):
    assert_agrees(case, measure, family, parameters)


def test_takes_the_largest_of_the_layers():
    scales = (1.0, 3.0, 1.0), (1.0, 1.0, 3.0), (3.0, 1.0, 1.0)
    for layers in scales:
        # Multiples of the identity: the differences of the squares, in the spectral norm.
        assert gap_of([scale * np.eye(2) for scale in layers]) == 8.0
    assert gap_of([np.diag([1.0, 2.0]), np.diag([1.5, 1.0])]) == 3.0  # not the Frobenius norm


@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("depth", [2, 5])
def test_balanced_factors_have_none(depth, hidden):
    fz = ff.DeepMatrix((3, 2), depth=depth, hidden=hidden)
    product = np.random.default_rng(1).normal(size=(3, 2))
    assert_close(gap_of(ff.balanced_factors(fz, jnp.asarray(product, DTYPE))), 0.0)


def test_one_factor_has_none_and_keeps_its_dtype():
    gap = gap_of([np.ones((2, 3))])
    assert gap == 0 and gap.shape == () and gap.dtype == DTYPE


def test_zero_factors_have_none():
    assert gap_of([np.zeros((2, 3)), np.zeros((3, 2))]) == 0


def test_scales_with_the_square_of_the_factors():
    factors = random_factors()
    scaled = [-3 * factor for factor in factors]
    assert_close(gap_of(scaled), 9 * gap_of(factors), "linear_algebra")


def test_rotating_hidden_layers_changes_nothing_but_rescaling_does():
    first, second, third = random_factors()
    rotation = orthogonal(np.random.default_rng(2), 3)
    rotated = [rotation @ first, second @ rotation.T, third]
    assert_close(gap_of(rotated), gap_of([first, second, third]), "linear_algebra")
    # The same product, and another gap: it is a property of the factors.
    assert abs(gap_of([2 * first, second / 2, third]) / gap_of([first, second, third]) - 1) > 0.1


def test_does_not_depend_on_the_problem():
    case = CASES["3x3-deep"]
    assert_close(gap_of(case.factors), evaluated(case)["balancedness_gap"])


def test_descent_conserves_it_the_better_the_smaller_its_steps():
    """Gradient flow conserves it; descent to a given time drifts in proportion to its step."""
    problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=3)
    factors = ff.Gaussian(factor_scale=0.5)(fz, jax.random.key(0))
    drifts = []
    for steps in (50, 100):
        trajectory = ff.simulate(
            problem,
            fz,
            ff.GradientDescent(5.0 / steps),
            factors,
            observe=ff.AtSteps([0, steps]),
            stop=ff.Stop(max_steps=steps),
            measures=["balancedness_gap", "loss"],
        )
        before, after = trajectory.measures["balancedness_gap"]
        assert trajectory.measures["loss"][1] < trajectory.measures["loss"][0] / 2  # it moved
        assert before > 0.1  # and had something to conserve
        drifts.append(abs(float(after - before)))
    assert drifts[0] > 1e-3
    # First order: half the step, half the drift, up to terms of second order.
    assert 0.4 < drifts[1] / drifts[0] < 0.6
