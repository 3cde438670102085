"""Endings: each has a name, a sentence, and is an error or not."""

import diffrax
import pytest

from factorflow import RESULTS
from factorflow._results import failed, result_name

LIMITS = (
    "successful",
    "loss_reached",
    "gradient_norm_reached",
    "observations_complete",
    "time_limit_reached",
    "step_limit_reached",
)
FAILURES = ("loss_nonfinite", "step_size_underflow", "every_step_rejected", "came_to_rest")
SOLVER_FAILURES = ("dt_min_reached", "nonlinear_divergence", "nonlinear_max_steps_reached")


@pytest.mark.parametrize("name", LIMITS + FAILURES + SOLVER_FAILURES)
def test_every_ending_knows_its_name(name):
    assert result_name(getattr(RESULTS, name)) == name


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_no_errors(name):
    assert not failed(getattr(RESULTS, name))


@pytest.mark.parametrize("name", FAILURES + SOLVER_FAILURES + ("singular", "event_occurred"))
def test_failures_are_errors(name):
    assert failed(getattr(RESULTS, name))


def test_endings_of_solvers_without_a_name_of_ours():
    assert result_name(RESULTS.internal_error) == "solver_failure"


@pytest.mark.parametrize("name", SOLVER_FAILURES)
def test_endings_of_diffrax_are_ours(name):
    promoted = RESULTS.promote(getattr(diffrax.RESULTS, name))
    assert result_name(promoted) == name


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("loss_nonfinite", "Lower the learning rate"),
        ("step_size_underflow", "Loosen `rtol` and `atol`, use float64, or choose an integrator"),
        ("step_limit_reached", "Raise it"),
        ("came_to_rest", "Raise the limit, or start elsewhere"),
        ("every_step_rejected", "Loosen `rtol` and `atol`, use float64, choose another"),
        ("time_limit_reached", "Raise it"),
    ],
)
def test_sentences_say_what_to_do(name, remedy):
    assert remedy in RESULTS[getattr(RESULTS, name)]
