"""The lambda-balanced closed form: against an independent integration, and in its limits."""

import doctest

import numpy as np
import pytest

import factorflow.reference.unbalanced
import runs
from factorflow.reference import lambda_balanced_flow

pytestmark = pytest.mark.x64

TIMES = (0.3, 1.0, 3.0, 10.0)


def balanced_to(shape, width: int, size: float, scale: float, seed: int = 0):
    """Factors with W2' W2 - W1 W1' = size I: W2 = P sqrt(S^2 + size) U' for W1 = U S V'."""
    rng = np.random.default_rng(seed)
    if size < 0:
        first, second = balanced_to(shape[::-1], width, -size, scale, seed)
        return second.T, first.T
    first = scale * rng.normal(size=(width, shape[1]))
    left, values, _ = np.linalg.svd(first)
    squares = np.pad(values**2, (0, width - len(values))) + size
    rank = min(width, shape[0])
    basis = np.linalg.qr(rng.normal(size=(shape[0], shape[0])))[0][:, :rank]
    return first, (basis * np.sqrt(squares[:rank])) @ left[:, :rank].T


def goal(shape) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape)


def everything(target) -> runs.Linear:
    places = list(np.ndindex(target.shape))
    return runs.Linear.completion(target.shape, places, target.ravel())


# Tall, wide, a bottleneck, a width beyond what the product needs (lambda = 0 only).
@pytest.mark.parametrize(
    ("shape", "width", "sizes"),
    [
        ((3, 2), 2, (0.0, 1e-8, 0.3, 10.0, -1e-3, -2.0)),
        ((2, 4), 2, (0.0, 1.0, -0.5)),
        ((3, 3), 1, (1e-4, 10.0)),
        ((3, 2), 5, (0.0,)),
    ],
)
def test_against_an_integration_of_the_factors(shape, width, sizes):
    target = goal(shape)
    for size in sizes:
        factors = balanced_to(shape, width, size, 0.3)
        path = runs.integrate(everything(target), factors, TIMES)
        expected = np.stack([runs.compose(chain) for chain in path])
        actual = lambda_balanced_flow(factors, target, TIMES)
        # What the integration is asked for, 1e-12 per step.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1e-8, 10.0])
def test_from_vanishing_factors_to_the_end_of_time(size):
    """Nothing overflows: what grows by e^(1e6) ends at the best approximation of rank h."""
    target = goal((4, 3))
    left, values, right = np.linalg.svd(target)
    for width in (1, 3):
        factors = balanced_to((4, 3), width, size, 1e-40)
        start, end = lambda_balanced_flow(factors, target, [0.0, 1e6])
        runs.assert_ulps(start, factors[1] @ factors[0], 4)
        best = target if width == 3 else values[0] * np.outer(left[:, 0], right[0])
        runs.assert_ulps(end, best, 50 * max(1, size))


def test_one_number_is_the_logistic_law():
    # Balanced, W = s: s' = 2 s (m - s).
    start, m, times = 1e-12, 1.7, np.array([[0.1, 5.0], [8.0, 30.0]])
    root = np.full((1, 1), np.sqrt(start))
    actual = lambda_balanced_flow((root, root), np.full((1, 1), m), times)
    expected = m / (1 + (m / start - 1) * np.exp(-2 * m * times))
    assert actual.shape == (2, 2, 1, 1)
    np.testing.assert_allclose(actual[..., 0, 0], expected, rtol=1e-12)


def test_factors_that_are_zero_stay():
    zeros = np.zeros((2, 2))
    assert not np.any(lambda_balanced_flow((zeros, zeros), np.eye(2), 3.0))


def test_what_does_not_fit_is_refused():
    good = balanced_to((3, 2), 2, 0.5, 1.0)
    target = goal((3, 2))
    with pytest.raises(ValueError, match=r"lambda-balanced.*miss it by"):
        lambda_balanced_flow((good[0], 1.01 * good[1]), target, 1.0)
    with pytest.raises(ValueError, match=r"shapes \(h, n\) and \(m, h\)"):
        lambda_balanced_flow(good[::-1], target, 1.0)
    with pytest.raises(ValueError, match="first factor has 2 columns"):
        lambda_balanced_flow(good, goal((3, 3)), 1.0)
    with pytest.raises(ValueError, match="times must be >= 0"):
        lambda_balanced_flow(good, target, -1.0)
    with pytest.raises(ValueError, match="times must be finite"):
        lambda_balanced_flow(good, target, np.inf)
    with pytest.raises(ValueError, match="NaN or infinity"):
        lambda_balanced_flow((good[0] * np.nan, good[1]), target, 1.0)


def test_the_example_runs():
    assert doctest.testmod(factorflow.reference.unbalanced).failed == 0
