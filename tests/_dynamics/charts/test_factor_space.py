"""The factors in hidden bases of their own: the same factors, product, flow and loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._dynamics.charts import FactorSpace
from runs import (
    DTYPE,
    EPS,
    Linear,
    assert_ulps,
    compose,
    draw,
    in_numpy,
    on_device,
    random_factors,
)

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

CHARTS = FactorSpace()
(CHART,) = CHARTS.charts
CASES = {
    "square": ff.DeepMatrix((2, 2), 3),
    "wide and narrow": ff.DeepMatrix((3, 2), 4, hidden=(4, 2, 3)),
    "depth 1": ff.DeepMatrix((2, 3), 1),
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def problem(name: str) -> tuple[ff.Sensing, Linear]:
    shape = CASES[name].shape
    measurements, values = draw([(5, *shape), 5], scale=0.5, seed=4)
    return ff.Sensing(measurements, values), Linear(measurements, values)


def start(name: str, seed: int = 0):
    fz = CASES[name]
    factors = random_factors(fz, seed=seed)
    return fz, factors, CHARTS.start(fz, on_device(factors))


def in_bases(fz, position) -> list[np.ndarray]:
    """The coordinates as factors, and the hidden bases they are in."""
    sizes = np.cumsum([np.prod(s.shape) for s in fz.shapes()])[:-1]
    parts = np.split(np.asarray(position.y), sizes)
    return [part.reshape(s.shape) for part, s in zip(parts, fz.shapes(), strict=True)]


@every_case
def test_coordinates_are_the_factors_in_turned_bases(name):
    fz, factors, position = start(name)
    made, _ = problem(name)
    # A handful of products with orthogonal matrices.
    ulps = 64
    for back, factor in zip(
        CHART.factors(made, fz, position.y, position.frame), factors, strict=True
    ):
        assert_ulps(back, factor, ulps)
    bases = [None, *in_numpy(position.frame), None]
    for layer, (turned, factor) in enumerate(zip(in_bases(fz, position), factors, strict=True)):
        left = np.eye(len(factor)) if bases[layer + 1] is None else bases[layer + 1]
        right = np.eye(factor.shape[1]) if bases[layer] is None else bases[layer]
        np.testing.assert_allclose(left @ left.T, np.eye(len(left)), rtol=0, atol=ulps * EPS)
        assert_ulps(turned, left @ factor @ right.T, ulps)
    product = CHART.product(made, fz, position.y, position.frame)
    assert_ulps(product.dense(), compose(factors), ulps)


@every_case
def test_hidden_bases_are_left_singular_vectors(name):
    fz, _, position = start(name)
    for factor in in_bases(fz, position)[:-1]:
        # Rows that are orthogonal, and descend: the right singular vectors stay as they are.
        gram = factor @ factor.T
        assert_ulps(gram, np.diag(np.diagonal(gram)), 64)
        assert np.all(np.diff(np.diagonal(gram)) <= 64 * EPS * gram[0, 0])


@every_case
def test_the_field_is_the_gradient_in_turned_bases(name):
    fz, factors, position = start(name)
    made, reference = problem(name)
    gradients = reference.gradient(in_numpy(factors, float))
    field = CHART.field(made, fz, position.y, position.frame)
    velocity = CHART.factors(made, fz, field, position.frame)
    for moved, gradient in zip(velocity, gradients, strict=True):
        np.testing.assert_allclose(moved, -gradient, rtol=0, atol=200 * EPS)
    squares = sum(np.sum(gradient**2) for gradient in gradients)
    dissipation = CHART.dissipation(made, fz, position.y, position.frame)
    np.testing.assert_allclose(dissipation, squares, rtol=500 * EPS)
    loss = CHART.loss(made, fz, position.y, position.frame)
    np.testing.assert_allclose(loss, reference.loss(in_numpy(factors, float)), rtol=200 * EPS)


@every_case
def test_bases_follow_the_factors(name):
    fz, factors, position = start(name)
    made, _ = problem(name)
    # As a step would move them: not so far that signs are chosen anew.
    moved = position.y + DTYPE.type(0.1) * CHART.field(made, fz, position.y, position.frame)
    before = CHART.factors(made, fz, moved, position.frame)
    leave = jax.jit(CHARTS.leave, static_argnums=(0, 2))
    new = leave(CHART, made, fz, moved, position.frame)
    assert new.kind == position.kind
    for back, factor in zip(CHART.factors(made, fz, new.y, new.frame), before, strict=True):
        assert_ulps(back, factor, 64)
    # Points of the step before, in the bases of the next.
    there = CHART.reexpressed(fz, position.y, position.frame, new.frame)
    for back, factor in zip(CHART.factors(made, fz, there, new.frame), factors, strict=True):
        assert_ulps(back, factor, 128)
    # Which turn by as little as the factors do: prediction goes on across the change.
    if fz.depth > 1:
        assert np.max(np.abs(np.asarray(there - new.y))) < 0.5 * np.max(np.abs(factors[0]))
    np.testing.assert_array_equal(jnp.shape(new.y), jnp.shape(position.y))
