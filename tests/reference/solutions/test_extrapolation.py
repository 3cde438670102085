"""Safeguarded extrapolation of a fixed-point iteration, against linear maps."""

import numpy as np
import pytest

from factorflow.reference.solutions._extrapolation import Extrapolation

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64


def test_extrapolation_solves_linear_maps_in_as_many_steps_as_dimensions():
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    contraction, fixed = (turn * [0.999, 0.9, -0.5]) @ turn.T, np.array([1.0, -2.0, 3.0])
    memory, point, plain = Extrapolation(), np.zeros(3), np.zeros(3)
    for _ in range(5):
        end = fixed + contraction @ (point - fixed)
        plain = fixed + contraction @ (plain - fixed)
        point = memory.following(point, end)
    assert np.linalg.norm(plain - fixed) > 0.5
    np.testing.assert_allclose(point, fixed, atol=1e-9)


def test_extrapolation_goes_back_when_it_does_not_help():
    memory = Extrapolation()
    zero, first, second = np.zeros(2), np.array([1.0, 0.0]), np.array([1.5, 0.1])
    np.testing.assert_array_equal(memory.following(zero, first), first)
    astray = memory.following(first, second)
    assert np.linalg.norm(astray - second) > 0.3
    # The map moves further from there than from `first`: on from its plain result.
    np.testing.assert_array_equal(memory.following(astray, astray + 5), second)
    # Whatever comes next is taken, having nothing to go back to.
    np.testing.assert_array_equal(memory.following(second, second + 9), second + 9)
