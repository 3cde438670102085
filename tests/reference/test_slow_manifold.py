"""Asymptotic laws against high-precision trajectories (tests/data/oracle.json).

Every law is compared where its neglected terms are known, so tolerances shrink with the loss
instead of being one loose number; where rounding takes over, they stop at rounding.
"""

import doctest
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

import factorflow.reference.slow_manifold
from factorflow import reference as ref
from tolerances import assert_close

EPS = 2.2e-16
ORACLE = json.loads((Path(__file__).parents[1] / "data" / "oracle.json").read_text())


def rows(case: str, depth: int) -> dict[str, np.ndarray]:
    (found,) = (c for c in ORACLE["cases"] if (c["case"], c["L"]) == (case, depth))
    return {
        name: np.array([float(row[name]) for row in found["rows"]])
        for name in ("loss", "t", "w11", "sigma1", "log_sigma2")
    }


# Case a starts at 1e-3 times the identity, case b at a generic balanced product; det > 0 in both.
main_case = pytest.mark.parametrize(("case", "depth"), [("a", 2), ("a", 3), ("b", 3)])


@pytest.mark.x64
@main_case
def test_entry(case, depth):
    row = rows(case, depth)
    r = np.sqrt(2 * row["loss"])
    determinant = row["sigma1"] * np.exp(row["log_sigma2"])
    gap = ref.slow_manifold_entry(row["loss"], determinant) - row["w11"]
    # Neglected: r^5/2 and r det to leading order, which at loss 1e-2 is not all there is.
    neglected = 0.55 * r**5 + 1.1 * r * determinant
    neglected[0] *= 3
    np.testing.assert_array_less(np.abs(gap), neglected + 4 * EPS / r)
    # Every term counts: where det is not negligible, leaving it out must show.
    if depth == 3:
        without = ref.slow_manifold_entry(row["loss"][:2]) - row["w11"][:2]
        assert np.all(np.abs(without) > 2 * neglected[:2])


@pytest.mark.x64
@main_case
def test_entry_lies_above_the_bounds(case, depth):
    row = rows(case, depth)
    excess = row["w11"] / ref.frontier_entry(row["loss"]) - 1
    # Decimal rows rounded to double may miss the frontier by one rounding of each side.
    assert np.all(excess >= -4 * EPS)
    assert np.all(excess[1:] < 1e-5)
    for bound in (ref.entry_bound(), ref.entry_infimum()):
        assert np.all(bound.holds(row["loss"], row["w11"]))


@pytest.mark.x64
@main_case
def test_time(case, depth):
    row = rows(case, depth)
    ratio = row["t"] / ref.slow_manifold_time(row["loss"], depth) - 1
    # Rows from 1e-4 to 1e-12; below, the relative term is lost in rounding.
    coefficient = (ratio / row["loss"])[1:6]
    expected = {2: 24.0, 3: 48.0}[depth]
    # At 1e-4 the next order adds a tenth of it at depth 3; from 1e-8 on the law itself is tested
    # to 5e-7, and the coefficient is known as well as rounding of the powers allows.
    np.testing.assert_allclose(coefficient, expected, rtol=0.12)
    np.testing.assert_allclose(coefficient[2:], expected, rtol=5e-3)
    np.testing.assert_allclose(ratio[6:], 0.0, atol=60 * row["loss"][6] + 100 * EPS)


@pytest.mark.x64
def test_log_sigma2_depth_two():
    row = rows("a", 2)
    x, log_sigma2 = row["w11"][1:5], row["log_sigma2"][1:5]
    constant = log_sigma2 - ref.slow_manifold_log_sigma2(x, 2)
    # The constant settles like 1/x^2, and x^2/2 of size 2.5e9 is rounded to 5e-7 at the last row.
    np.testing.assert_allclose(constant, constant[2], atol=8.0 / x[0] ** 2)
    np.testing.assert_allclose(constant[1:], constant[2], atol=2e-5)
    assert_close(ref.slow_manifold_log_sigma2(x, 2, constant=constant), log_sigma2)


@pytest.mark.x64
@pytest.mark.parametrize("case", ["a", "b"])
def test_log_sigma2_depth_three(case):
    row = rows(case, 3)
    gap = row["log_sigma2"] - ref.slow_manifold_log_sigma2(row["w11"], 3)
    # What the start contributes to sigma_2^(-1/3) is a constant beside x^(5/3): it fades so.
    fading = np.abs(gap[1:6]) * row["w11"][1:6] ** (5 / 3)
    assert np.all(fading < 400)
    assert np.all(np.abs(gap[6:]) < 1e-9)
    assert abs(gap[5]) < 1e-7


@pytest.mark.x64
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_log_sigma2_solves_the_reduced_flow(depth):
    """At every depth: sigma = p^L with dp/dx = -(x^(2/L)/L) p^(L-1) along the slow manifold."""
    x = jnp.asarray([10.0, 100.0])
    slope = jax.vmap(jax.grad(lambda x: ref.slow_manifold_log_sigma2(x, depth)))(x)
    p = jnp.exp(ref.slow_manifold_log_sigma2(x, depth) / depth)
    assert_close(slope, -(x ** (2 / depth)) * p ** (depth - 2))


@pytest.mark.x64
def test_perturbed_limit():
    row = rows("d", 3)
    # det has the sign of z z' = -1; the distance to the limit is of the order of the residual.
    determinant = -row["sigma1"] * np.exp(row["log_sigma2"])
    limits = ref.perturbed_entry_limit(-2.0, 0.5, 0.05, determinant[-1])
    distance = np.abs(row["w11"] - np.asarray(limits))
    r = np.sqrt(2 * row["loss"])
    # To first order w11 = (w12 w21 + det)/w22 moves by at most this multiple of the residual, up
    # to the change of det and second order: both of relative size 1e-3 from loss 1e-6 on.
    sensitivity = np.linalg.norm([20.0043, 2.0, 0.5]) / 0.05
    np.testing.assert_array_less(distance[3:], 1.001 * sensitivity * r[3:])
    # The run ends 4e-3 away from z z'/eps: the determinant must be in the law.
    assert abs(row["w11"][-1] - ref.perturbed_entry_limit(-2.0, 0.5, 0.05)) > 4e-3


# --- The escape horizon


def crossing(imbalance: float, depth: int) -> float:
    """Where one factor of the small direction reaches zero when it is short of all others by D.

    dp/dx = -(x^(2/L)/L) prod of the others, and each other one is sqrt(p^2 + D) by conservation.
    """
    integral, _ = quad(lambda u: (u * u + 1.0) ** (-0.5 * (depth - 1)), 0.0, np.inf)
    return ((depth + 2) * integral * imbalance ** (-0.5 * (depth - 2))) ** (depth / (depth + 2))


@pytest.mark.x64
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_horizon_has_the_exponent_of_the_crossing(depth):
    imbalances = np.array([1e-2, 1e-6, 1e-10])
    expected = np.array([crossing(d, depth) for d in imbalances])
    ratio = expected / ref.escape_horizon(imbalances, depth)
    assert_close(ratio / ratio[0], np.ones(3))
    # The prefactor is no more than a scale: this direction crosses at 0.75, 0.91, 1.05 of it.
    assert 0.7 < ratio[0] < 1.1


def saturated_entry(imbalance: float, depth: int) -> tuple[float, float]:
    """Integrate the flow of unbalanced factors until the loss is gone: (entry, measured D)."""
    rng = np.random.default_rng(1)
    u, s, vt = np.linalg.svd(np.array([[0.3, -0.1], [0.15, 0.4]]))
    root = np.diag(s ** (1 / depth))
    balanced = [root @ vt, *[root] * (depth - 2), u @ root]
    directions = [rng.standard_normal((2, 2)) for _ in balanced]

    def measure(factors):
        pairs = zip(factors[1:], factors, strict=False)
        return max(np.linalg.norm(a.T @ a - b @ b.T, 2) for a, b in pairs)

    step = (
        1e-8
        * imbalance
        / measure([w + 1e-8 * e for w, e in zip(balanced, directions, strict=True)])
    )
    factors = [w + step * e for w, e in zip(balanced, directions, strict=True)]

    def chain(matrices):
        product = np.eye(2)
        for matrix in matrices:
            product = matrix @ product
        return product

    def velocity(_, flat):
        factors = flat.reshape(depth, 2, 2)
        product = chain(factors)
        residual = product - np.array([[product[0, 0], 1.0], [1.0, 0.0]])
        return -np.array(
            [chain(factors[j + 1 :]).T @ residual @ chain(factors[:j]).T for j in range(depth)]
        ).ravel()

    options = {"method": "LSODA", "rtol": 1e-9, "atol": 1e-12}
    flat = solve_ivp(velocity, (0.0, 1e7), np.array(factors).ravel(), **options).y[:, -1]
    product = chain(flat.reshape(depth, 2, 2))
    assert np.linalg.det(product) == pytest.approx(-1.0, abs=1e-6)  # the flow has left the theorem
    return product[0, 0], measure(factors)


@pytest.mark.x64
def test_horizon_of_an_integrated_flow():
    entries, imbalances = zip(*(saturated_entry(d, 3) for d in (1e-4, 1e-5)), strict=True)
    ratio = entries / np.asarray(ref.escape_horizon(np.array(imbalances), 3))
    # A scale: 1.05 to 2.6 over random directions, 1.054 and 1.069 in this one.
    np.testing.assert_allclose(ratio, 1.06, atol=0.015)
    # At a fixed direction the law is asymptotic in D: 1.4% between these two.
    np.testing.assert_allclose(ratio[1], ratio[0], rtol=0.03)


# --- Interfaces

FUNCTIONS = {
    "entry": ref.slow_manifold_entry,
    "time-2": lambda x: ref.slow_manifold_time(x, 2),
    "time-4": lambda x: ref.slow_manifold_time(x, 4),
    "log_sigma2-2": lambda x: ref.slow_manifold_log_sigma2(x, 2),
    "log_sigma2-3": lambda x: ref.slow_manifold_log_sigma2(x, 3),
    "horizon": lambda x: ref.escape_horizon(x, 3),
    "limit": lambda x: ref.perturbed_entry_limit(-2.0, 0.5, x),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_dtypes_and_transformations(function, dtype):
    values = jnp.asarray([[1e-3, 0.02], [0.3, 2.0]])
    for narrow in (jnp.dtype(jnp.float32), dtype):
        result = function(values.astype(narrow))
        assert result.dtype == narrow and result.shape == (2, 2)
        expected = np.array([[float(function(float(x))) for x in row] for row in values])
        assert_close(result / expected.astype(narrow), np.ones((2, 2)))
    assert function(1).dtype == dtype
    assert_close(jax.jit(function)(values), function(values))
    assert_close(jax.vmap(function)(values), function(values))


def test_edges():
    for name, function in FUNCTIONS.items():
        if name != "limit":  # a missing observation is refused, a missing row is not
            assert jnp.isnan(function(jnp.nan)), name
    assert jnp.isinf(ref.slow_manifold_entry(0.0))
    assert jnp.isinf(ref.slow_manifold_time(0.0, 3))
    assert jnp.isinf(ref.escape_horizon(0.0, 3))
    assert_close(ref.slow_manifold_log_sigma2(-9.0, 3), ref.slow_manifold_log_sigma2(9.0, 3))
    assert math.isclose(float(ref.perturbed_entry_limit(1.0, 1.0, 0.1, 1.0)), 20.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.slow_manifold_entry(-1.0), "loss must be >= 0, got -1.0"),
        (lambda: ref.slow_manifold_time(-1.0, 2), "loss must be >= 0, got -1.0"),
        (lambda: ref.slow_manifold_time(1.0, 1), "depth must be >= 2, got 1"),
        (lambda: ref.slow_manifold_log_sigma2(1.0, 1), "depth must be >= 2, got 1"),
        (lambda: ref.slow_manifold_log_sigma2(1.0, 3, constant=2.0), "constant=2.0"),
        (lambda: ref.escape_horizon(1e-4, 2), "depth must be >= 3, got 2"),
        (lambda: ref.escape_horizon(-1e-4, 3), "imbalance must be >= 0"),
        (lambda: ref.perturbed_entry_limit(1.0, 1.0, 0.0), "eps must be finite and nonzero"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_examples_run():
    outcome = doctest.testmod(factorflow.reference.slow_manifold)
    assert outcome.failed == 0 and outcome.attempted > 0
