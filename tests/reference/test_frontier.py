"""The loss frontier against brute-force minimization, exact arithmetic and published markers."""

import doctest
from decimal import Decimal, localcontext

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from scipy.optimize import minimize

import factorflow.reference.frontier
from factorflow import reference as ref
from tolerances import assert_close


def brute_force_loss(a: float) -> float:
    """Smallest loss with w11 = a and det W >= 0: the slack tau^2 in w22 frees the constraint."""

    def loss(v):
        x, y, tau = v
        corner = (x * y + tau * tau) / a
        return 0.5 * ((x - 1) ** 2 + (y - 1) ** 2 + corner**2)

    starts = [(0.9, 0.9, 0.1), (0.2, 0.7, 0.5), (0.7, 0.2, 0.5), (0.1, 0.1, 0.0), (1.0, -0.1, 0.3)]
    options = {"gtol": 1e-10}
    return min(minimize(loss, start, method="BFGS", options=options).fun for start in starts)


@pytest.mark.x64
@pytest.mark.parametrize("a", [0.05, 0.3, 0.49, 0.5, 0.51, 0.8, 1.505, 6.0, 19.56, 70.7])
def test_no_matrix_gets_below(a):
    # BFGS stops at gradients near 1e-8 (differences of rounded losses); the error is quadratic.
    np.testing.assert_allclose(ref.frontier_loss(a), brute_force_loss(a), rtol=1e-9)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("loss", "entry", "digits"),
    [
        (1.3e-1, 1.505, 3),
        (1.3e-2, 6.043, 3),
        (1.3e-3, 19.56, 2),
        (1.3e-4, 62.00, 2),
        (1.0e-4, 70.70, 2),
    ],
)
def test_published_markers(loss, entry, digits):
    assert round(float(ref.frontier_entry(loss)), digits) == entry
    # The entry is given to half a unit of its last digit, and the loss varies as its -2nd power.
    np.testing.assert_allclose(ref.frontier_loss(entry), loss, rtol=10.0**-digits / entry)


@pytest.mark.x64
@example(0.495)  # the branches differ by third order only where they meet
@example(0.505)
@given(st.floats(-3.0, 12.0).map(lambda u: 10.0**u))
def test_the_two_functions_are_inverse(a):
    loss = ref.frontier_loss(a)
    # An entry below 1/2 enters the loss as 1 - a^2, which forgets it: the error grows as 1/a^2.
    assert_close(ref.frontier_entry(loss) / a, 1.0, scale=max(1.0, a**-2))


@pytest.mark.x64
@pytest.mark.parametrize("a", ["0.5", "0.505", "0.7", "3", "1e3", "1e8", "1e15", "1e120"])
def test_full_relative_accuracy(a):
    """The stationarity condition s^3 = a^2 (1 - s), solved with 300 digits."""
    with localcontext() as context:
        context.prec = 300
        square = Decimal(float(a)) ** 2
        gap = min(1 / square, Decimal("0.5"))  # Newton on a^2 g = (1 - g)^3, g = 1 - s
        for _ in range(60):
            gap -= (square * gap - (1 - gap) ** 3) / (square + 3 * (1 - gap) ** 2)
        expected = float(gap * (1 + gap) / 2)
    # arsinh, sinh and the powers after them: a few roundings each.
    np.testing.assert_allclose(ref.frontier_loss(float(a)), expected, rtol=20 * 2.2e-16)


@pytest.mark.x64
def test_agrees_with_the_printed_infimum():
    r = np.array([1e-6, 1e-3, 0.1, 0.5, 0.8, np.sqrt(0.75)])
    q = np.sqrt(1 + 4 * r**2)
    printed = (3 - q) ** 1.5 * (q + 1) ** 0.5 / (4 * r)
    assert_close(ref.frontier_entry(r**2 / 2) / printed, np.ones(6))
    assert_close(ref.entry_infimum()(r**2 / 2), ref.frontier_entry(r**2 / 2))
    r = np.array([0.87, 0.9, 0.999])
    assert_close(ref.frontier_entry(r**2 / 2), np.sqrt(1 - r**2))
    assert_close(ref.frontier_entry(jnp.asarray([0.5, 0.7, jnp.inf])), np.zeros(3))


def test_branches_meet():
    assert_close(ref.frontier_loss(0.5), 0.375)
    assert_close(ref.frontier_entry(0.375), 0.5)
    eps = 1e-3
    loss = ref.frontier_loss(jnp.asarray([0.5 - eps, 0.5 + eps]))
    # The slopes agree as well (-1/2 on both sides), so what is left is second order.
    np.testing.assert_allclose(loss - 0.375, [eps / 2, -eps / 2], atol=eps**2)
    for a in (0.5 - eps, 0.5 + eps):
        np.testing.assert_allclose(jax.grad(ref.frontier_loss)(a), -0.5, atol=4 * eps)


@pytest.mark.parametrize("function", [ref.frontier_loss, ref.frontier_entry])
def test_dtypes_transformations_and_edges(function, dtype):
    values = jnp.asarray([[0.01, 0.2, 0.374], [0.376, 0.49, 0.7]])
    for narrow in (jnp.dtype(jnp.float32), dtype):
        result = function(values.astype(narrow))
        assert result.dtype == narrow and result.shape == (2, 3)
        assert_close(result, [[float(function(float(x))) for x in row] for row in values])
    assert function(1).dtype == dtype
    assert_close(jax.jit(function)(values), function(values))
    assert_close(jax.vmap(function)(values), function(values))
    assert jnp.isnan(function(jnp.nan))
    assert jnp.all(jnp.isfinite(jax.vmap(jax.grad(function))(values.reshape(-1)[:5])))


def test_edges_and_errors():
    assert_close(ref.frontier_loss(jnp.asarray([0.0, jnp.inf])), [0.5, 0.0])
    assert_close(ref.frontier_loss(-3.0), ref.frontier_loss(3.0))
    assert jnp.isinf(ref.frontier_entry(0.0))
    with pytest.raises(ValueError, match=r"loss must be >= 0, got -0.1: pass half the sum"):
        ref.frontier_entry(-0.1)


def test_examples_run():
    outcome = doctest.testmod(factorflow.reference.frontier)
    assert outcome.failed == 0 and outcome.attempted > 0
