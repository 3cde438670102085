"""The flow of the product: its field, and its agreement with the flow of balanced factors."""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
import fields
from factorflow._dynamics.end_to_end_flow import end_to_end_field
from runs import (
    DTYPE,
    EPS,
    GENERIC,
    RAZIN_COHEN,
    X64,
    Linear,
    assert_ulps,
    compose,
    draw,
    imbalance,
    in_numpy,
    integrate,
    on_device,
    random_factors,
)

TIMES = np.array([0.0, 1.0, 5.0], DTYPE)
RTOL = 1e-9 if X64 else 1e-5
# Below RTOL and some roundings per step, of which a contracting flow remembers the last few. The
# field divides by nothing, but its singular vectors round by EPS over the gap.
ALLOWED = 10 * (RTOL + 10 * EPS)


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (1, 3)], ids=str)
def test_the_field_is_the_sum_over_layers(shape):
    product, gradient = draw([shape, shape], seed=1)
    singular = np.outer(product[:, 0], product[0])
    identity = 0.5 * np.eye(*shape, dtype=DTYPE)
    for depth in (1, 2, 3, 5):
        for matrix, rank in ((product, min(shape)), (identity, min(shape)), (singular, 1)):
            actual = end_to_end_field(jnp.asarray(matrix), jnp.asarray(gradient), depth)
            expected = fields.end_to_end_field(matrix, gradient, depth, rank)
            # A singular value that should be zero rounds to EPS; powers of 2/depth and above occur.
            allowed = 100 * EPS + (20 * EPS ** (2 / depth) if rank < min(shape) else 0)
            np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed)


def test_depth_1_is_the_flow_of_the_product_alone():
    product, gradient = draw([(2, 3), (2, 3)], seed=2)
    # Two rotations there and back.
    assert_ulps(end_to_end_field(jnp.asarray(product), jnp.asarray(gradient), 1), -gradient, 32)


def sensing() -> tuple[ff.Sensing, Linear]:
    measurements, values = draw([(5, 2, 3), 5], scale=0.5, seed=4)
    return ff.Sensing(measurements, values), Linear(measurements, values)


CASES = {
    "square": ((2, 2), 3, None, 50 * GENERIC),
    # Singular vectors of a multiple of the identity are any: the field is still a function.
    "identity": ((2, 2), 3, None, 0.3 * np.eye(2)),
    "rectangular and wide": ((2, 3), 2, 4, draw([(2, 3)], scale=0.5, seed=7)[0]),
}


@functools.cache
def follow_case(name: str):
    shape, depth, hidden, product = CASES[name]
    made = sensing() if shape == (2, 3) else (ff.razin_cohen_problem(), RAZIN_COHEN)
    fz = ff.DeepMatrix(shape, depth, hidden)
    start = ff.balanced_factors(fz, product.astype(DTYPE))
    trajectory = ff.simulate(
        made[0],
        fz,
        ff.EndToEndFlow("Tsit5", rtol=RTOL, atol=RTOL / 100),
        start,
        observe=ff.AtTimes(TIMES),
        stop=ff.Stop(max_time=float(TIMES[-1])),
        measures=["loss", "product", "balancedness_gap"],
    )
    return trajectory, made[1], in_numpy(start)


@pytest.mark.parametrize("name", CASES)
def test_the_product_moves_as_under_the_flow_of_balanced_factors(name):
    trajectory, reference, start = follow_case(name)
    assert trajectory.stats["integrator"] == "Tsit5"
    expected = [compose(factors) for factors in integrate(reference, start, TIMES)]
    np.testing.assert_allclose(trajectory.measures["product"], expected, rtol=0, atol=ALLOWED)
    assert trajectory.measures["loss"][-1] < 0.5 * trajectory.measures["loss"][0]


@pytest.mark.parametrize("name", CASES)
def test_the_final_factors_are_balanced_factors_of_the_final_product(name):
    trajectory, reference, start = follow_case(name)
    factors = in_numpy(trajectory.factors)
    assert [factor.shape for factor in factors] == [factor.shape for factor in start]
    # A decomposition and its product, and roots.
    assert_ulps(compose(factors), trajectory.measures["product"][-1], 64)
    assert_ulps(trajectory.stats["loss"], reference.loss(factors), 256)
    for gap in imbalance(factors):
        np.testing.assert_allclose(gap, 0, atol=64 * EPS)
    np.testing.assert_allclose(trajectory.measures["balancedness_gap"], 0, atol=64 * EPS)


@pytest.mark.parametrize(
    ("dim", "name"), [(2, "spectral"), (4, "split"), (13, "Tsit5")], ids=["2", "4", "13"]
)
def test_without_a_name_small_square_products_are_followed_as_by_gradient_flow(dim, name):
    problem, fz = ff.razin_cohen_problem(dim), ff.DeepMatrix((dim, dim), 2)
    factors = ff.balanced_factors(fz, np.eye(dim, dtype=DTYPE))
    resolved = ff.EndToEndFlow(rtol=1e-6).resolve(problem, fz, factors)
    assert resolved.integrator_name == name
    if name != "Tsit5":
        # Balanced factors are followed through their product either way.
        assert eqx.tree_equal(resolved, ff.GradientFlow(rtol=1e-6).resolve(problem, fz, factors))


def run(fz: ff.DeepMatrix, factors):
    problem = ff.Completion(fz.shape, [[0, 1]], [1.0])
    options = {"observe": ff.AtTimes([1.0]), "stop": ff.Stop(max_time=1.0)}
    return lambda: ff.simulate(problem, fz, ff.EndToEndFlow(), on_device(factors), **options)


SQUARE, NARROW = ff.DeepMatrix((2, 2), 3), ff.DeepMatrix((2, 3), 2, hidden=1)
UNBALANCED = in_numpy([[[1.0, 0.0], [0.0, 2.0]], np.eye(2), np.eye(2)])
RANK_ONE = in_numpy(ff.balanced_factors(NARROW, np.ones((2, 3), DTYPE)))

BAD_INPUT = [
    (
        # D_1 = 1 - W_1 W_1^T = diag(0, -3).
        "unbalanced",
        run(SQUARE, UNBALANCED),
        r"balanced factors; these have a balancedness gap of 3 \(allowed: .*GradientFlow",
    ),
    ("random", run(SQUARE, random_factors(SQUARE)), "balancedness gap of"),
    ("narrow", run(NARROW, RANK_ONE), r"hidden widths of 2 or more, got \(1,\)"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
