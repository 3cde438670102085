"""Minibatches and label noise: what one key gives exactly, and what many give on average.

Statistics are compared within five standard errors, computed beside them; keys are fixed, so a
test that passes keeps passing.
"""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import factorflow as ff
from factorflow._names import named
from factorflow._problem.observations import NORMALIZATIONS, PENALTIES
from tolerances import assert_close

KEYS = 4000
VALUES = [1.0, -2.0, 0.5, 3.0]
INDICES = [(0, 1), (1, 3), (1, 0), (0, 4)]
SHAPE = (2, 5)


@functools.cache
def problem(kind: str):
    if kind == "completion":
        return ff.Completion(SHAPE, INDICES, VALUES)
    rng = np.random.default_rng(0)
    return ff.Sensing(rng.standard_normal((4, *SHAPE)), VALUES, normalization="mean")


@functools.cache
def draws(kind: str, batch_size: int | None, label_noise: float | None):
    """Values, weights, losses and gradients under many keys."""
    product = jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE), jnp.result_type(float))
    noise = None if label_noise is None else jnp.asarray(label_noise, product.dtype)

    def once(key):
        sample = problem(kind).resample(key, batch_size=batch_size, label_noise=noise)
        loss, gradient = jax.value_and_grad(lambda w: sample.loss(ff.Dense(w)))(product)
        return sample.values, sample.weights, loss, gradient

    keys = jax.random.split(jax.random.key(0), KEYS)
    full = jax.value_and_grad(lambda w: problem(kind).loss(ff.Dense(w)))(product)
    results = jax.vmap(once)(keys)
    as_double = functools.partial(np.asarray, dtype=np.float64)
    return tuple(map(as_double, results)), tuple(map(as_double, full))


def assert_mean(samples: np.ndarray, expected) -> None:
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    # Entries that never vary still carry rounding.
    assert np.all(np.abs(np.mean(samples, axis=0) - expected) <= 5 * error + 1e-5)


def test_minibatches():
    (values, weights, losses, gradients), (loss, gradient) = draws("completion", 3, None)
    # Every key: exactly batch_size observations, each weighing n / batch_size; values untouched.
    np.testing.assert_array_equal(np.sum(weights != 0, axis=1), 3)
    np.testing.assert_allclose(weights[weights != 0], 4 / 3, rtol=1e-6)
    np.testing.assert_array_equal(values, np.tile(VALUES, (KEYS, 1)))
    # On average: the loss and its gradient.
    assert_mean(weights, 1.0)
    assert_mean(losses, loss)
    assert_mean(gradients, gradient)
    assert np.std(losses) > 0.1
    # Without replacement, every pair is as likely: 3/4 * 2/3.
    together = (weights[:, :, None] != 0) & (weights[:, None, :] != 0)
    pairs = np.triu_indices(4, 1)
    assert_mean(together[:, pairs[0], pairs[1]], 0.5)


def test_label_noise():
    sigma = 0.7
    (values, weights, losses, gradients), (loss, gradient) = draws("completion", None, sigma)
    noise = values - VALUES
    np.testing.assert_array_equal(weights, 1.0)
    assert_mean(noise, 0.0)
    assert_mean(noise**2, sigma**2)
    assert_mean(noise**4, 3 * sigma**4)  # Gaussian
    assert_mean(noise[:, :-1] * noise[:, 1:], 0.0)  # independent
    # The gradient is unbiased; the loss gains half the variance per observation.
    assert_mean(gradients, gradient)
    assert_mean(losses, loss + 4 * sigma**2 / 2)


def test_batches_and_noise_together():
    sigma = 0.7
    (values, weights, losses, gradients), (loss, gradient) = draws("sensing", 2, sigma)
    noise = values - VALUES
    np.testing.assert_array_equal(np.sum(weights != 0, axis=1), 2)
    assert_mean(noise**2 * weights, sigma**2)  # independent of each other
    assert_mean(noise * weights, 0.0)
    assert_mean(gradients, gradient)
    assert_mean(losses, loss + sigma**2)  # normalization "mean"


KINDS = ["completion", "sensing"]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_batch_and_no_noise_change_nothing(kind):
    same = problem(kind).resample(
        jax.random.key(3), batch_size=4, label_noise=jnp.zeros((), jnp.result_type(float))
    )
    np.testing.assert_array_equal(same.weights, np.ones(4))
    np.testing.assert_array_equal(same.values, problem(kind).values)
    untouched = problem(kind).resample(jax.random.key(3))
    assert jax.tree.structure(untouched) == jax.tree.structure(problem(kind))
    jax.tree.map(np.testing.assert_array_equal, untouched, problem(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_gives_one_sample(kind):
    def weights(seed):
        return np.asarray(problem(kind).resample(jax.random.key(seed), batch_size=2).weights)

    np.testing.assert_array_equal(weights(0), weights(0))
    assert len({tuple(weights(seed)) for seed in range(10)}) > 1


# --- Penalties and names


def test_penalties_join_smoothly_and_stay_even():
    points = jnp.asarray([0.0, 0.5, 1.0, 1.0 + 1e-3, 3.0], jnp.result_type(float))
    huber = [0.0, 0.125, 0.5, 0.501, 2.5]
    for name, expected in [
        ("squared", [0.0, 0.25, 1.0, 1.002001, 9.0]),
        ("absolute", [0.0, 0.5, 1.0, 1.001, 3.0]),
        ("huber", huber),
    ]:
        penalty = jax.jit(PENALTIES[name])
        assert_close(penalty(points), expected)
        np.testing.assert_array_equal(penalty(-points), penalty(points))
    slopes = jax.jit(jax.vmap(jax.grad(PENALTIES["huber"])))(points)
    assert_close(slopes, [0.0, 0.5, 1.0, 1.0, 1.0])


def test_known_names_are_returned():
    for known in (PENALTIES, NORMALIZATIONS):
        for name in known:
            assert named("name", name, known) == name


# --- Bad input

BAD_INPUT = [
    (
        f"{kind}, batch of {size}",
        lambda kind=kind, size=size: problem(kind).resample(jax.random.key(0), batch_size=size),
        rf"batch_size must be between 1 and the 4 observations, got {size}",
    )
    for kind in KINDS
    for size in (0, 5)
] + [
    (
        "near name",
        lambda: named("color", "bleu", ["red", "blue"]),
        r"^Unknown color 'bleu'. Did you mean 'blue'\? Known: blue, red.$",
    ),
    ("far name", lambda: named("color", "xyz", ["red"]), r"^Unknown color 'xyz'. Known: red.$"),
    ("no name", lambda: named("color", None, ["red"]), r"^Unknown color None. Known: red.$"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message, monkeypatch):
    # As users see it: without the annotations' checks, which only the tests switch on.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call()
