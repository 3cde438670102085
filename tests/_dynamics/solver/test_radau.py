"""Radau collocation against closed forms: Padé's approximation, a cubic, polynomials."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from factorflow._dynamics.solver.radau import Radau
from runs import DTYPE, EPS, X64

TOLERANCE = DTYPE.type(1e-13 if X64 else 1e-5)
STAGES = (2, 3, 5, 7)
every_stage = pytest.mark.parametrize("stages", STAGES)


def fields_of(field):
    """As the solver wants it: the field and its Jacobian at every stage."""
    return lambda stages: (jax.vmap(field)(stages), jax.vmap(jax.jacfwd(field))(stages))


YES = jnp.asarray(True)


@functools.cache
def stepper(stages: int, name: str):
    """One step of a named equation, whose parameter may vary, compiled once."""
    solver, equation = Radau(stages), EQUATIONS[name]

    @jax.jit
    def step(parameter, y, h):
        guess = jnp.broadcast_to(y, (stages, *y.shape))
        fields = fields_of(lambda y: equation(parameter, y))
        scale = jnp.ones_like(y)
        return solver.step(fields, y, h, guess, scale, jnp.asarray(TOLERANCE), YES)

    def on_arrays(parameter, y, h):
        return step(*(jnp.asarray(value, DTYPE) for value in (parameter, y, h)))

    return on_arrays


EQUATIONS = {
    "linear": lambda matrix, y: matrix @ y,
    # From 1: (1 + 2 rate t)^(-1/2). Squares would flatter: Riccati's equation gains orders.
    "cubic": lambda rate, y: -rate * y**3,
    # (t, t^k): the derivative of a power, with time as a coordinate.
    "power": lambda power, y: jnp.stack([jnp.ones_like(y[0]), power * y[0] ** (power - 1)]),
    # A component that is bound to a moving value, and one that moves it.
    "bound": lambda stiffness, y: jnp.stack([-stiffness * (y[0] - jnp.sin(y[1])), 1 + 0 * y[1]]),
}


def follow(stages: int, name: str, parameter, y, end: float, count: int) -> np.ndarray:
    step = stepper(stages, name)
    for _ in range(count):
        taken = step(parameter, y, end / count)
        assert taken.converged
        y = taken.stages[-1]
    return np.asarray(y, float)


# --- One step


def nodes_of(stages: int) -> np.ndarray:
    """Of a step of y' = 1 from 0 over 1, the stages are the nodes themselves."""
    taken = stepper(stages, "power")(2.0, [0.0, 0.0], 1.0)
    return np.asarray(taken.stages[:, 0], float)


@every_stage
def test_nodes_are_the_right_radau_points(stages):
    nodes = nodes_of(stages)
    # Zeros of P_s - P_{s-1}, of which the last is the end of the step.
    difference = np.zeros(stages + 1)
    difference[-2:] = -1, 1
    slopes = np.abs(np.polynomial.legendre.Legendre(difference).deriv()(2 * nodes - 1))
    values = np.polynomial.legendre.legval(2 * nodes - 1, difference)
    np.testing.assert_allclose(values / slopes, 0, atol=8 * EPS)
    assert nodes[-1] == pytest.approx(1, abs=4 * EPS)
    assert np.all(np.diff(nodes) > 0)


def test_two_stages_have_the_coefficients_of_the_textbook():
    # A = [[5/12, -1/12], [3/4, 1/4]]: of y' = z y with y = 1, (I - z A) Y = 1.
    z = -0.7
    a = np.array([[5 / 12, -1 / 12], [3 / 4, 1 / 4]])
    taken = stepper(2, "linear")([[z]], [1.0], 1.0)
    expected = np.linalg.solve(np.eye(2) - z * a, np.ones(2))
    np.testing.assert_allclose(taken.stages[:, 0], expected, rtol=8 * EPS)


def pade(stages: int, z: float) -> float:
    """Of the exponential, with degrees s - 1 over s: what a step of y' = z y multiplies by."""
    k, m = stages - 1, stages
    above = sum(
        math.comb(k, j) * math.factorial(k + m - j) / math.factorial(k + m) * z**j
        for j in range(k + 1)
    )
    below = sum(
        math.comb(m, j) * math.factorial(k + m - j) / math.factorial(k + m) * (-z) ** j
        for j in range(m + 1)
    )
    return above / below


@every_stage
@pytest.mark.parametrize("z", [-0.5, 0.8, -5.0, -1e3, -1e8])
def test_a_step_of_a_linear_equation_multiplies_by_pade(stages, z):
    taken = stepper(stages, "linear")([[z]], [1.0], 1.0)
    assert taken.converged
    # Stiff components decay as s / |z|: absolute rounding is that of the stages, of size one.
    np.testing.assert_allclose(taken.stages[-1, 0], pade(stages, z), rtol=64 * EPS, atol=64 * EPS)


def test_stiff_components_decay_at_once_and_the_others_stay_accurate():
    # The row of the stiff component is 1e22 times the other's, as on the slow manifold.
    stiffness = 1e22 if X64 else 1e12
    step, y = stepper(7, "bound"), np.array([5.0, 0.3])
    for _ in range(2):
        taken = step(stiffness, y, 0.5)
        assert taken.converged
        y = taken.stages[-1]
    np.testing.assert_allclose(y, [np.sin(1.3), 1.3], rtol=0, atol=16 * EPS)


# --- Many steps

ROTATION = np.array([[-0.3, 2.0], [-1.0, -0.5]])


def orders(stages: int, errors: list[float], counts: list[int]) -> np.ndarray:
    return -np.diff(np.log(errors)) / np.diff(np.log(counts))


@pytest.mark.parametrize(
    ("stages", "counts"),
    # As coarse as the expansion in the step allows, and as fine as rounding does.
    [(2, [16, 32, 64]), (3, [4, 8, 16]), (5, [3, 4, 6])] if X64 else [(2, [4, 8, 16])],
)
def test_the_order_is_two_per_stage_minus_one(stages, counts):
    # To the order, up to the next term of the expansion.
    expected, slack = 2 * stages - 1, 0.35
    start = np.array([1.0, -0.5])
    exact = scipy.linalg.expm(2 * ROTATION) @ start
    errors = [
        np.linalg.norm(follow(stages, "linear", ROTATION, start, 2.0, count) - exact)
        for count in counts
    ]
    assert np.all(np.abs(orders(stages, errors, counts) - expected) < slack)
    errors = [abs(follow(stages, "cubic", 0.2, [1.0], 2.0, n)[0] - 1.8**-0.5) for n in counts]
    assert np.all(np.abs(orders(stages, errors, counts) - expected) < 2 * slack)


@pytest.mark.x64
def test_seven_stages_reach_rounding_in_a_few_steps():
    assert follow(7, "cubic", 0.8, [1.0], 2.0, 6)[0] == pytest.approx(4.2**-0.5, rel=8 * EPS)


# --- Along a step


@pytest.mark.parametrize("stages", [3, 5] if X64 else [2])
def test_the_polynomial_is_accurate_along_the_step_to_its_degree(stages):
    solver, step = Radau(stages), stepper(stages, "cubic")
    shares = np.linspace(0.05, 0.95, 7)
    errors, sizes = [], [0.1, 0.05] if X64 else [0.2, 0.1]
    for h in sizes:
        start = jnp.asarray([1.0], DTYPE)
        taken = step(0.8, start, h)
        values = [
            solver.interpolate(start, taken.stages, jnp.asarray(share, DTYPE))[0]
            for share in shares
        ]
        exact = (1 + 1.6 * h * shares) ** -0.5
        errors.append(np.max(np.abs(np.asarray(values, float) - exact)))
    order = np.log(errors[0] / errors[1]) / np.log(2)
    # Degree s through s + 1 points: h^(s + 1).
    assert order == pytest.approx(stages + 1, abs=0.5)


@every_stage
def test_the_polynomial_passes_through_start_and_stages(stages):
    solver, start = Radau(stages), jnp.asarray([1.0], DTYPE)
    taken = stepper(stages, "cubic")(0.8, start, 1.0)
    at = jax.jit(jax.vmap(lambda share: solver.interpolate(start, taken.stages, share)))
    points = np.concatenate([[0.0], nodes_of(stages)]).astype(DTYPE)
    values = np.concatenate([start[None], taken.stages])
    # At a node exactly, and next to it, where two large numbers divide.
    np.testing.assert_allclose(at(points), values, rtol=8 * EPS)
    beside = np.nextafter(points, DTYPE.type(0.5))
    np.testing.assert_allclose(at(beside), values, rtol=64 * EPS)


@every_stage
def test_prediction_and_quadrature_are_exact_for_polynomials(stages):
    solver, power = Radau(stages), stages
    start, h, ratio = jnp.asarray([0.2, 0.2**power], DTYPE), 0.5, 1.7
    taken = stepper(stages, "power")(float(power), start, h)
    predicted = solver.predict(start, taken.stages, jnp.asarray(ratio, DTYPE))
    times = 0.2 + h + h * ratio * nodes_of(stages)
    # Extrapolation by 1.7 steps multiplies rounding by the size of the polynomials there.
    expected = np.stack([times, times**power], axis=1)
    np.testing.assert_allclose(predicted, expected, rtol=EPS * 40.0**stages)
    # Of degree 2 s - 2 at s points, one of which is an end.
    rates = nodes_of(stages) ** (2 * stages - 2)
    total = solver.quadrature(jnp.asarray(rates, DTYPE))
    assert float(total) == pytest.approx(1 / (2 * stages - 1), rel=32 * EPS)


@every_stage
def test_the_error_is_the_last_legendre_coefficient(stages):
    step, h = stepper(stages, "power"), 0.9
    # Of t^s over a step: h^s over the leading coefficient of the shifted Legendre polynomial.
    expected = h**stages / math.comb(2 * stages, stages)
    taken = step(float(stages), [0.3, 0.3**stages], h)
    assert float(taken.error) == pytest.approx(expected, abs=32 * EPS)
    assert expected > 100 * EPS
    # What the degree can represent leaves none.
    taken = step(float(stages - 1), [0.3, 0.3 ** (stages - 1)], h)
    assert float(taken.error) < 32 * EPS


def test_errors_and_corrections_are_relative_to_the_scale():
    solver, start = Radau(3), jnp.asarray([1e-6], DTYPE)
    fields = fields_of(lambda y: -y)
    guess = jnp.broadcast_to(start, (3, 1))
    steps = [
        solver.step(
            fields, start, jnp.asarray(1.0, DTYPE), guess, jnp.asarray([scale], DTYPE), TOL, YES
        )
        for scale in (1.0, 1e-6)
    ]
    assert float(steps[1].error / steps[0].error) == pytest.approx(1e6, rel=1e-4)


TOL = jnp.asarray(TOLERANCE)


def test_a_step_that_is_not_wanted_costs_no_iteration():
    solver, y = Radau(3), jnp.asarray([1.0], DTYPE)
    guess, h = jnp.broadcast_to(y, (3, 1)), jnp.asarray(0.1, DTYPE)
    fields = fields_of(lambda y: -y)
    taken = solver.step(fields, y, h, guess, jnp.ones_like(y), TOL, jnp.asarray(False))
    assert int(taken.iterations) == 0 and not taken.converged
    np.testing.assert_array_equal(taken.stages, guess)


# --- Failures


def test_a_step_that_leaves_the_domain_does_not_converge():
    solver, y = Radau(3), jnp.asarray([1.0], DTYPE)
    guess = jnp.broadcast_to(y, (3, 1))
    scale, long = jnp.ones_like(y), jnp.asarray(50.0, DTYPE)
    # y' = y^2 from 1 is infinite at time 1; a logarithm of a negative number is NaN.
    for field in (lambda y: y**2, lambda y: jnp.log(y - 2)):
        taken = solver.step(fields_of(field), y, long, guess, scale, TOL, YES)
        assert not taken.converged
        if not np.isfinite(taken.stages).all():
            assert np.isinf(taken.error)


@pytest.mark.parametrize("stages", [1, 0, -3])
def test_bad_input(stages):
    with pytest.raises(ValueError, match=f"`stages` must be at least 2, got {stages}"):
        Radau(stages)
