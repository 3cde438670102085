"""Sensing against loops over measurements and entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from tolerances import assert_close


def loss_by_loops(measurements, values, weights, product, normalization="half_sum") -> float:
    total = 0.0
    for measurement, value, weight in zip(measurements, values, weights, strict=True):
        inner = 0.0
        for index in np.ndindex(product.shape):
            inner += float(measurement[index]) * float(product[index])
        total += float(weight) * (inner - float(value)) ** 2
    return total / 2 if normalization == "half_sum" else total / len(values)


REFERENCES = {ff.Sensing: loss_by_loops}

SHAPES = [(2, 2), (2, 4), (4, 3), (2, 3, 2)]


def data(shape, dtype, count: int = 5):
    rng = np.random.default_rng(0)
    measurements = jnp.asarray(rng.standard_normal((count, *shape)), dtype)
    values = jnp.asarray(rng.standard_normal(count), dtype)
    product = jnp.asarray(rng.standard_normal(shape), dtype)
    return measurements, values, product


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss(shape, dtype):
    measurements, values, product = data(shape, dtype)
    for normalization in ("half_sum", "mean"):
        problem = ff.Sensing(measurements, values, normalization=normalization)
        assert problem.shape == shape
        expected = REFERENCES[ff.Sensing](measurements, values, np.ones(5), product, normalization)
        assert_close(problem.loss(ff.Dense(product)), expected, scale=10.0)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)], ids=str)
def test_gradient(shape, dtype):
    measurements, values, product = data(shape, dtype)
    problem = ff.Sensing(measurements, values)
    gradient = jax.jit(jax.grad(lambda array: problem.loss(ff.Dense(array))))(product)
    base, step, expected = np.asarray(product, np.float64), 1e-5, np.zeros(shape)
    for index in np.ndindex(shape):
        moved = np.zeros(shape)
        moved[index] = step
        above = loss_by_loops(measurements, values, np.ones(5), base + moved)
        below = loss_by_loops(measurements, values, np.ones(5), base - moved)
        expected[index] = (above - below) / (2 * step)
    assert_close(gradient, expected, "finite_difference", scale=20.0)  # losses up to 20


def test_loss_of_factors(dtype):
    fz = ff.DeepMatrix((4, 3), depth=2, hidden=2)
    rng = np.random.default_rng(1)
    factors = tuple(jnp.asarray(rng.standard_normal(s.shape), dtype) for s in fz.shapes())
    measurements, values, _ = data(fz.shape, dtype)
    dense = np.asarray(factors[1], np.float64) @ np.asarray(factors[0], np.float64)
    expected = loss_by_loops(measurements, values, np.ones(5), dense)
    problem = ff.Sensing(measurements, values)
    assert_close(problem.loss(ff.Factored(fz, factors)), expected, scale=10.0)


@pytest.mark.parametrize("normalization", ["half_sum", "mean"])
def test_measurements_of_single_entries_are_completion(normalization, dtype):
    shape, indices, values = (3, 4), [(2, 3), (0, 1), (1, 0)], [1.0, 2.0, -3.0]
    measurements = np.zeros((3, *shape))
    for n, index in enumerate(indices):
        measurements[n][index] = 1.0
    product = ff.Dense(data(shape, dtype)[2])
    sensing = ff.Sensing(measurements, values, normalization=normalization)
    completion = ff.Completion(shape, indices, values, normalization=normalization)
    assert_close(sensing.loss(product), completion.loss(product))


def test_held_out_loss(dtype):
    measurements, values, product = data((2, 3), dtype)
    target = jnp.ones((2, 3), dtype)
    problem = ff.Sensing(measurements, values, target)
    expected = np.mean([(float(product[i]) - 1.0) ** 2 for i in np.ndindex(2, 3)])
    assert_close(problem.held_out_loss(ff.Dense(product)), expected)


def test_held_out_loss_is_the_risk_under_gaussian_measurements(dtype):
    """Its docstring: the mean square of <A, W - W*> for entries of variance 1 / size."""
    _, _, product = data((2, 3), dtype)
    rng = np.random.default_rng(2)
    count = 100_000
    fresh = rng.standard_normal((count, 6)) @ (np.asarray(product, np.float64).ravel() - 1.0)
    squares = fresh**2 / 6
    problem = ff.Sensing(np.ones((1, 2, 3)), [0.0], np.ones((2, 3)))
    error = np.std(squares) / np.sqrt(count)
    risk = float(problem.held_out_loss(ff.Dense(product)))
    assert abs(np.mean(squares) - risk) < 5 * error


def test_loss_of_a_resampled_problem(dtype):
    measurements, values, product = data((2, 3), dtype)
    problem = ff.Sensing(measurements, values, normalization="mean")
    for seed in range(3):
        noise = jnp.asarray(0.3, dtype)
        batch = problem.resample(jax.random.key(seed), batch_size=2, label_noise=noise)
        assert jax.tree.structure(batch) == jax.tree.structure(problem)
        expected = loss_by_loops(measurements, batch.values, batch.weights, product, "mean")
        assert_close(batch.loss(ff.Dense(product)), expected, scale=10.0)


# --- Bad input


MEASUREMENTS = np.ones((2, 2, 3))


def sensing(measurements=MEASUREMENTS, values=(1.0, 2.0), **kwargs):
    return lambda: ff.Sensing(measurements, values, **kwargs)


def with_nan(*shape) -> np.ndarray:
    array = np.ones(shape)
    array.flat[-1] = np.nan
    return array


BAD_INPUT = [
    ("measurements of order 1", sensing(np.ones((2, 3))), r"\(n, d_1, .*N >= 2, got \(2, 3\)"),
    ("no measurements", sensing(np.ones((0, 2, 3)), []), r"non-empty.*got \(0, 2, 3\)"),
    ("too few values", sensing(values=[1.0]), r"shape \(2,\), one per measurement, got \(1,\)"),
    ("NaN measurement", sensing(with_nan(2, 2, 3)), r"measurements holds nan at \(1, 1, 2\)"),
    ("infinite value", sensing(values=[0.0, np.inf]), r"values holds inf at \(1,\)"),
    ("NaN in the target", sensing(target=with_nan(2, 3)), r"target holds nan at \(1, 2\)"),
    ("target of another shape", sensing(target=np.ones((3, 2))), r"\(2, 3\), got \(3, 2\)"),
    ("misspelt normalization", sensing(normalization="maen"), r"'maen'. Did you mean 'mean'"),
    (
        "no target",
        lambda: ff.Sensing(np.ones((1, 2, 2)), [0.0]).held_out_loss(ff.Dense(jnp.ones((2, 2)))),
        r"held_out_loss needs a target",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
