"""Gradients of CP factorizations against TensorLy, automatic differentiation and differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from cp_cases import (
    EACH,
    ORDERS,
    SOME_ORDERS,
    assert_all_close,
    by_einsum,
    in_double,
    loss_of,
    mttkrp,
    product_by_tensorly,
    random_like,
    stacked,
)
from factorflow._spec import prepare
from tolerances import assert_close

# --- Gradients

# Four observations; where one is repeated, the loss goes over entries and not over the product.
BY_PATH = pytest.mark.parametrize("path", ["dense", "entries"])


def observations(shape, path: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape))
    places = rng.choice(math.prod(shape), size=4, replace=False)
    places = places[[0, 1, 2, 0]] if path == "entries" else places
    indices = np.stack(np.unravel_index(places, shape), axis=-1)
    return indices, np.round(np.sin(places), 3)


def completion(fz, path: str) -> ff.Completion:
    problem = ff.Completion(fz.shape, *observations(fz.shape, path))
    assert (problem.masked is not None) == (path == "dense")
    return problem


def plain_loss(indices, values, numpy=jnp):
    """Half the sum of squares, for automatic differentiation and for differences."""

    def loss(factors):
        residuals = by_einsum(factors, numpy)[tuple(indices.T)] - numpy.asarray(values)
        return numpy.sum(residuals**2) / 2

    return loss


def by_differences(function, factors, step: float = 1e-5) -> list[np.ndarray]:
    """Central differences in every number of the factors, in double precision."""
    gradients = []
    for mode, factor in enumerate(factors):
        gradient = np.zeros(factor.shape)
        for place in np.ndindex(factor.shape):
            ends = []
            for sign in (1, -1):
                moved = factor.copy()
                moved[place] += sign * step
                ends.append(function((*factors[:mode], moved, *factors[mode + 1 :])))
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def gradient_by_tensorly(factors, indices, values) -> list[np.ndarray]:
    """Unfoldings of the gradient in the product, times Khatri-Rao products of the other factors."""
    factors = in_double(factors)
    residuals = np.zeros([len(factor) for factor in factors])
    product = product_by_tensorly(factors)
    for place, value in zip(map(tuple, indices), values, strict=True):
        residuals[place] += product[place] - value
    return mttkrp(residuals, factors)


@EACH
def test_pullback_is_mttkrp(fz, rank, dtype):
    factors = random_like(fz, dtype)
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(fz.shape), dtype)
    expected = mttkrp(cotangent, factors)
    pulled, composed = jax.jit(
        lambda f, e: (fz.pullback(f, e), jax.vjp(fz.compose, f)[1](e)[0]),
    )(factors, cotangent)
    assert_all_close(pulled, expected, scale=100.0)  # sums of up to 48 products of size 1 to 10
    assert_all_close(composed, expected, scale=100.0)


@BY_PATH
@EACH
def test_gradient(fz, rank, path, dtype):
    factors = random_like(fz, dtype)
    indices, values = observations(fz.shape, path)
    gradient = jax.jit(jax.grad(loss_of(completion(fz, path), fz)))(factors)
    assert [(g.shape, g.dtype) for g in gradient] == [(f.shape, dtype) for f in factors]
    assert_all_close(gradient, gradient_by_tensorly(factors, indices, values), scale=100.0)
    by_jax = jax.jit(jax.grad(plain_loss(indices, jnp.asarray(values, dtype))))(factors)
    assert_all_close(gradient, by_jax, scale=100.0)
    differences = by_differences(plain_loss(indices, values, np), in_double(factors))
    assert_all_close(gradient, differences, "finite_difference", scale=100.0)


@BY_PATH
@SOME_ORDERS
def test_gradient_in_batches(fz, path, dtype):
    lanes, batch = stacked(fz, dtype)
    indices, values = observations(fz.shape, path)
    gradients = jax.jit(jax.vmap(jax.grad(loss_of(completion(fz, path), fz))))(batch)
    for lane, factors in enumerate(lanes):
        expected = gradient_by_tensorly(factors, indices, values)
        assert_all_close([gradient[lane] for gradient in gradients], expected, scale=100.0)


@BY_PATH
@pytest.mark.parametrize("fz", ORDERS[1:], ids=lambda fz: f"order {len(fz.shape)}")
def test_second_order(fz, path, dtype):
    """The change of the gradient along a direction, forward over reverse, also in batches."""
    indices, values = observations(fz.shape, path)
    lanes, batch = stacked(fz, dtype)
    tangent = random_like(fz, dtype, seed=5)

    def change(loss):
        return lambda factors: jax.jvp(jax.grad(loss), (factors,), (tangent,))[1]

    changes = jax.jit(jax.vmap(change(loss_of(completion(fz, path), fz))))(batch)
    by_jax = jax.jit(jax.vmap(change(plain_loss(indices, jnp.asarray(values, dtype)))))(batch)
    assert_all_close(changes, by_jax, scale=1000.0)  # sums of terms of size 100
    for lane, factors in enumerate(map(in_double, lanes)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = [f + step * t for f, t in zip(factors, in_double(tangent), strict=True)]
            ends.append(gradient_by_tensorly(moved, indices, values))
        expected = [(above - below) / 2e-5 for above, below in zip(*ends, strict=True)]
        lane_changes = [leaf[lane] for leaf in changes]
        assert_all_close(lane_changes, expected, "finite_difference", scale=1000.0)


@pytest.mark.parametrize("shape", [(33, 2, 40), (32, 3), (40, 35)], ids=str)
def test_long_modes_are_gathered(shape, dtype):
    """Beyond 32 rows of a factor are picked in another way, also beside shorter ones."""
    fz = ff.CP(shape, rank=2)
    factors = random_like(fz, dtype)
    indices = np.stack([np.random.default_rng(0).integers(size, size=9) for size in shape], axis=-1)
    indices[-2:] = [0] * len(shape), [size - 1 for size in shape]
    indices[0] = indices[-1]  # what is picked twice counts twice
    values = jnp.asarray(np.linspace(-1, 1, 9), dtype)

    def loss(factors):
        return jnp.sum((fz.entries(factors, jnp.asarray(indices)) - values) ** 2) / 2

    value, gradient = jax.jit(jax.value_and_grad(loss))(factors)
    expected, by_jax = jax.value_and_grad(plain_loss(indices, values))(factors)
    assert_close(value, expected, scale=10.0)
    assert_all_close(gradient, by_jax, scale=100.0)


# --- High orders, whose products do not fit any memory


def by_products(factors, indices) -> np.ndarray:
    rows = [factor[indices[:, mode]] for mode, factor in enumerate(factors)]
    return np.sum(functools.reduce(np.multiply, rows), axis=1)


def gradient_by_products(factors, indices, residuals) -> list[np.ndarray]:
    """Of half the sum of squared residuals; rows must not hold zeros."""
    rows = [factor[indices[:, mode]] for mode, factor in enumerate(factors)]
    weighted = residuals[:, None] * functools.reduce(np.multiply, rows)
    gradients = []
    for mode, factor in enumerate(factors):
        gradient = np.zeros(factor.shape)
        np.add.at(gradient, indices[:, mode], weighted / rows[mode])
        gradients.append(gradient)
    return gradients


def near_one(fz, dtype, seed: int = 0) -> tuple[jax.Array, ...]:
    """Numbers whose products over hundreds of modes stay near 1."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(1 + 0.02 * rng.standard_normal(s.shape), dtype) for s in fz.shapes())


def test_more_modes_than_are_stacked_at_once(dtype):
    """Value, gradient and its change at order 35, in a batch, against plain products."""
    fz = ff.CP((*(2, 3) * 17, 2), rank=2)
    lanes = [near_one(fz, dtype, seed) for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)
    tangent = random_like(fz, dtype, seed=5)
    indices = np.stack([np.random.default_rng(1).integers(s, size=6) for s in fz.shape], axis=-1)

    def derivatives(factors):
        def loss(factors):
            return jnp.sum(fz.entries(factors, jnp.asarray(indices)) ** 2) / 2

        return fz.entries(factors, jnp.asarray(indices)), *jax.jvp(
            jax.grad(loss), (factors,), (tangent,)
        )

    entries, gradients, changes = jax.jit(jax.vmap(derivatives))(batch)
    for lane, factors in enumerate(map(in_double, lanes)):
        assert_close(entries[lane], by_products(factors, indices), scale=10.0)
        ends = []
        for step in (0, 2e-6, -2e-6):
            moved = [f + step * t for f, t in zip(factors, in_double(tangent), strict=True)]
            ends.append(gradient_by_products(moved, indices, by_products(moved, indices)))
        assert_all_close([gradient[lane] for gradient in gradients], ends[0], scale=100.0)
        expected = [(above - below) / 4e-6 for _, above, below in zip(*ends, strict=True)]
        # Sums of some hundred terms.
        lane_changes = [change[lane] for change in changes]
        assert_all_close(lane_changes, expected, "finite_difference", scale=1000.0)


def unseeable(order: int, rank: int = 3) -> tuple[ff.CP, ff.Completion]:
    """50 observed entries of a tensor that nothing could hold: images of two values, 784 pixels."""
    fz = ff.CP((2,) * order, rank)
    rng = np.random.default_rng(3)
    indices = rng.integers(2, size=(50, order))
    problem = ff.Completion(fz.shape, indices, rng.normal(size=50))
    assert problem.masked is None
    return fz, problem


ORDER = 784


@pytest.mark.x64
def test_order_784_entries_and_gradient(dtype):
    fz, problem = unseeable(ORDER)
    factors = near_one(fz, dtype)
    indices, values = np.asarray(problem.indices), np.asarray(problem.values, np.float64)
    precise = in_double(factors)

    def residuals(factors):
        return by_products(factors, indices) - values

    value, gradient = jax.jit(jax.value_and_grad(loss_of(problem, fz)))(factors)
    # Hundreds of roundings, of 50 squares of size 10.
    assert_close(value, np.sum(residuals(precise) ** 2) / 2, scale=1000.0)
    expected = gradient_by_products(precise, indices, residuals(precise))
    assert_all_close(gradient, expected, scale=1000.0)
    rng = np.random.default_rng(4)
    direction = [rng.standard_normal(factor.shape) for factor in precise]
    ends = []
    for step in (1e-6, -1e-6):
        moved = [f + step * d for f, d in zip(precise, direction, strict=True)]
        ends.append(np.sum(residuals(moved) ** 2) / 2)
    slopes = [np.sum(np.asarray(g) * d) for g, d in zip(gradient, direction, strict=True)]
    slope = np.asarray(sum(slopes), dtype)
    # A sum of 4704 terms of size 100.
    difference = (ends[0] - ends[1]) / 2e-6
    assert_close(slope, difference, "finite_difference", scale=1000.0)


def test_order_784_is_prepared_without_its_product(dtype):
    fz, problem = unseeable(ORDER)
    options = {"observe": ff.AtEnd(), "stop": ff.Stop(max_steps=1), "measures": ["loss"]}
    spec = prepare(problem, fz, ff.GradientDescent(1e-5), near_one(fz, dtype), **options)
    assert len(spec.factors) == ORDER
    # Its observed entries are looked at all the same.
    small = tuple(1e-3 * factor for factor in near_one(fz, dtype))
    with pytest.raises(ValueError, match=r"underflows .* largest entry is 0"):
        prepare(problem, fz, ff.GradientDescent(1e-5), small, **options)


@pytest.mark.x64
def test_descent_on_entries_alone(dtype):
    """At order 64: what is compiled for a run grows with the order, and at 784 takes minutes."""
    fz, problem = unseeable(64, rank=2)
    start = near_one(fz, dtype)
    trajectory = ff.simulate(
        problem,
        fz,
        ff.GradientDescent(1e-5),
        start,
        observe=ff.AtSteps([0, 1, 8]),
        stop=ff.Stop(max_steps=8),
        measures=["loss", "largest_component_norms[1]", "norm_differences"],
    )
    losses = trajectory.measures["loss"]
    assert np.all(np.diff(losses) < -0.01 * losses[:-1])
    assert trajectory.measures["norm_differences"].shape == (3, 63, 2)
    precise = in_double(start)
    sizes = np.prod([np.linalg.norm(factor, axis=0) for factor in precise], axis=0)
    largest = trajectory.measures["largest_component_norms[1]"][0]
    np.testing.assert_allclose(largest, [np.max(sizes)], rtol=1e-4 if dtype == "float32" else 1e-12)
