"""Completion against loops over the observations, in plain Python."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
import factorflow._problem.completion as completion_module
from tolerances import assert_close, tolerance


def squared(e: float) -> float:
    return e * e


def huber(e: float) -> float:
    return e * e / 2 if abs(e) <= 1 else abs(e) - 0.5


# (what Completion is given, the same function of one Python float)
PENALTIES = {
    "squared": ("squared", squared),
    "absolute": ("absolute", abs),
    "huber": ("huber", huber),
    "callable": (lambda e: jnp.log(jnp.cosh(e)), lambda e: math.log(math.cosh(e))),
}


def loss_by_loops(indices, values, weights, product, penalty=squared, normalization="half_sum"):
    total = 0.0
    for index, value, weight in zip(indices, values, weights, strict=True):
        total += float(weight) * penalty(float(product[tuple(index)]) - float(value))
    return total / 2 if normalization == "half_sum" else total / len(values)


REFERENCES = {ff.Completion: loss_by_loops}

# name -> (shape, indices, values); values of repeated entries agree.
OBSERVATIONS = {
    "wide": ((2, 5), [(1, 4), (0, 3), (1, 0), (0, 0)], [1.0, -2.0, 0.25, 3.0]),
    "order 3": ((2, 3, 4), [(1, 2, 3), (0, 2, 1), (1, 0, 0), (0, 0, 3)], [0.5, 1.5, -3.0, 0.0]),
    "repeated": ((3, 2), [(2, 1), (0, 0), (2, 1), (2, 1)], [1.5, 0.25, 1.5, 1.5]),
}


@pytest.fixture(params=["dense", "entries"])
def layout(request, monkeypatch) -> str:
    """Both ways to compute the loss: over the whole product, or at the observed entries."""
    if request.param == "entries":
        monkeypatch.setattr(completion_module, "_DENSE_ENTRIES", 0)
    return request.param


def product_of(shape, dtype, seed: int = 0) -> jax.Array:
    return jnp.asarray(1.5 * np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize("observations", OBSERVATIONS)
def test_loss(observations, layout, dtype):
    shape, indices, values = OBSERVATIONS[observations]
    product = product_of(shape, dtype)
    cases = list(itertools.product(PENALTIES.values(), ["half_sum", "mean"]))
    problems = [
        ff.Completion(shape, indices, values, normalization=normalization, loss=given)
        for (given, _), normalization in cases
    ]
    # Repeated observations are never merged: label noise would differ between them.
    dense = layout == "dense" and observations != "repeated"
    assert all((problem.masked is not None) == dense for problem in problems)
    losses = jax.jit(lambda w: [problem.loss(ff.Dense(w)) for problem in problems])(product)
    for loss, ((_, penalty), normalization) in zip(losses, cases, strict=True):
        assert loss.dtype == dtype
        expected = REFERENCES[ff.Completion](
            indices, values, np.ones(len(values)), product, penalty, normalization
        )
        assert_close(loss, expected)


@pytest.mark.parametrize("observations", ["order 3", "repeated"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient(observations, penalty, layout, dtype):
    shape, indices, values = OBSERVATIONS[observations]
    given, reference = PENALTIES[penalty]
    product = product_of(shape, dtype, seed=1)
    problem = ff.Completion(shape, indices, values, loss=given)
    gradient = jax.jit(jax.grad(lambda array: problem.loss(ff.Dense(array))))(product)
    base, step, expected = np.asarray(product, np.float64), 1e-5, np.zeros(shape)
    for index in np.ndindex(shape):
        ends = []
        for sign in (1, -1):
            moved = base.copy()
            moved[index] += sign * step
            ends.append(loss_by_loops(indices, values, np.ones(len(values)), moved, reference))
        expected[index] = (ends[0] - ends[1]) / (2 * step)
    assert_close(gradient, expected, "finite_difference", scale=10.0)  # losses up to 10


def test_loss_of_factors(layout, dtype):
    shape, indices, values = OBSERVATIONS["repeated"]
    fz = ff.DeepMatrix(shape, depth=3, hidden=(4, 2))
    factors = tuple(product_of(s.shape, dtype, seed) for seed, s in enumerate(fz.shapes()))
    problem = ff.Completion(shape, indices, values)
    dense = np.linalg.multi_dot([np.asarray(f, np.float64) for f in factors[::-1]])
    loss = jax.jit(lambda factors: problem.loss(ff.Factored(fz, factors)))(factors)
    assert_close(loss, loss_by_loops(indices, values, [1] * 4, dense), scale=10.0)


def test_problems_of_one_structure_can_be_stacked(layout, dtype):
    shape, indices, values = OBSERVATIONS["wide"]
    product = product_of(shape, dtype)
    scales = (1.0, 2.0, -3.0)
    problems = [ff.Completion(shape, indices, np.multiply(c, values)) for c in scales]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    losses = eqx.filter_vmap(lambda problem: problem.loss(ff.Dense(product)))(stacked)
    expected = [loss_by_loops(indices, np.multiply(c, values), [1] * 4, product) for c in scales]
    assert_close(losses, expected)


@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("normalization", ["half_sum", "mean"])
def test_held_out_loss(observations, normalization, layout, dtype):
    shape, indices, values = OBSERVATIONS[observations]
    product, target = product_of(shape, dtype), product_of(shape, dtype, seed=2)
    hidden = [index for index in np.ndindex(shape) if index not in indices]
    expected = loss_by_loops(
        hidden, [target[i] for i in hidden], [1] * len(hidden), product, huber, normalization
    )
    problem = ff.Completion(shape, indices, values, target, normalization, "huber")
    assert_close(problem.held_out_loss(ff.Dense(product)), expected)
    # What a minibatch leaves out has been observed all the same.
    batch = problem.resample(jax.random.key(0), batch_size=1)
    assert_close(batch.held_out_loss(ff.Dense(product)), expected)


def test_held_out_loss_is_zero_where_everything_is_observed(dtype):
    problem = ff.Completion((1, 2), [[0, 0], [0, 1]], [1.0, 1.0], np.ones((1, 2)), "mean")
    assert float(problem.held_out_loss(ff.Dense(product_of((1, 2), dtype)))) == 0.0


def test_observed_entries(layout):
    for shape, indices, values in OBSERVATIONS.values():
        expected = np.zeros(shape)
        for index, value in zip(indices, values, strict=True):
            expected[index] = value
        actual = ff.Completion(shape, indices, values).observed_entries()
        np.testing.assert_array_equal(actual, expected)


# --- Resampling, whichever the layout


@pytest.mark.parametrize("penalty", ["squared", "absolute"])
def test_loss_of_a_resampled_problem(penalty, layout, dtype):
    shape, indices, values = OBSERVATIONS["order 3"]
    given, reference = PENALTIES[penalty]
    product = product_of(shape, dtype)
    problem = ff.Completion(shape, indices, values, loss=given)
    noise = jnp.asarray(0.3, dtype)
    for seed in range(3):
        batch = problem.resample(jax.random.key(seed), batch_size=2, label_noise=noise)
        assert jax.tree.structure(batch) == jax.tree.structure(problem)
        expected = loss_by_loops(indices, batch.values, batch.weights, product, reference)
        assert_close(batch.loss(ff.Dense(product)), expected)


def test_repeated_entries_resampled(layout, dtype):
    """A minibatch counts each copy; noisy copies pull toward their mean, as they do one by one."""
    shape, indices, values = OBSERVATIONS["repeated"]
    product = product_of(shape, dtype)
    problem = ff.Completion(shape, indices, values)
    gradient_of = jax.jit(jax.grad(lambda w, problem: problem.loss(ff.Dense(w))))
    for seed in range(3):
        key = jax.random.key(seed)
        batch = problem.resample(key, batch_size=2)
        expected = loss_by_loops(indices, values, batch.weights, product)
        assert_close(batch.loss(ff.Dense(product)), expected)

        noisy = problem.resample(key, batch_size=2, label_noise=jnp.asarray(0.5, dtype))
        gradient = gradient_of(product, noisy)
        expected = np.zeros(shape)
        for index, value, weight in zip(indices, noisy.values, noisy.weights, strict=True):
            expected[index] += float(weight) * (float(product[index]) - float(value))
        assert_close(gradient, expected, scale=10.0)


# --- Observations padded to a common number


@pytest.mark.parametrize("observations", ["wide", "order 3"])
@pytest.mark.parametrize("normalization", ["half_sum", "mean"])
@pytest.mark.parametrize("room", [4, 7])
def test_room_changes_nothing(observations, normalization, room, layout, dtype):
    shape, indices, values = OBSERVATIONS[observations]
    target, product = product_of(shape, dtype, seed=2), product_of(shape, dtype)
    plain, padded = (
        ff.Completion(shape, indices, values, target, normalization, "huber", room=given)
        for given in (None, room)
    )
    assert padded.values.shape == (room,)
    assert (padded.masked is not None) == (layout == "dense")
    for name in ("loss", "held_out_loss"):
        functions = (
            jax.value_and_grad(lambda w, p=problem, name=name: getattr(p, name)(ff.Dense(w)))
            for problem in (plain, padded)
        )
        for one, other in zip(*(function(product) for function in functions), strict=True):
            assert_close(other, one)
    np.testing.assert_array_equal(padded.observed_entries(), plain.observed_entries())


def test_room_leaves_label_noise_and_refuses_minibatches(layout, dtype):
    shape, indices, values = OBSERVATIONS["order 3"]
    problem = ff.Completion(shape, indices, values, room=6)
    noisy = problem.resample(jax.random.key(0), label_noise=jnp.asarray(0.3, dtype))
    product = product_of(shape, dtype)
    expected = loss_by_loops(indices, noisy.values[:4], np.ones(4), product)
    assert_close(noisy.loss(ff.Dense(product)), expected)
    with pytest.raises(ValueError, match=r"padded to room=6; leave room= out"):
        problem.resample(jax.random.key(0), batch_size=2)


# --- Bad input

SHAPE, INDICES, VALUES = (2, 3), [(0, 1), (1, 2)], [1.0, -1.0]


def completion(shape=SHAPE, indices=INDICES, values=VALUES, **kwargs):
    return lambda: ff.Completion(shape, indices, values, **kwargs)


BAD_INPUT = [
    ("shape of order 1", completion((3,), [[0]], [1.0]), r"two or more modes of size >= 1.*\(3,\)"),
    ("mode of size 0", completion((2, 0)), r"size >= 1, got \(2, 0\)"),
    ("empty", completion(indices=[], values=[]), r"indices is empty"),
    ("empty, of shape (0, 2)", completion(indices=np.zeros((0, 2), int)), r"indices is empty"),
    ("float indices", completion(indices=[[0.0, 1.0], [1.0, 2.0]]), r"integers, got float64"),
    ("boolean indices", completion(indices=np.ones((2, 2), bool)), r"integers, got bool"),
    (
        "too few columns",
        completion((2, 3, 4)),
        r"\(n, 3\), one row per .*column per mode.*got \(2, 2\)",
    ),
    ("flat indices", completion(indices=[0, 1]), r"\(n, 2\).*got \(2,\)"),
    (
        "row out of range",
        completion(indices=[[0, 1], [2, 0]]),
        r"indices\[1\] = \(2, 0\) is out of range for shape \(2, 3\)",
    ),
    ("column out of range", completion(indices=[[0, 3], [1, 0]]), r"indices\[0\] = \(0, 3\)"),
    ("negative index", completion(indices=[[0, 0], [-1, 0]]), r"\(-1, 0\).*count from 0"),
    ("too few values", completion(values=[1.0]), r"shape \(2,\), one per row.*got \(1,\)"),
    ("values as a column", completion(values=[[1.0], [2.0]]), r"shape \(2,\).*got \(2, 1\)"),
    ("NaN value", completion(values=[1.0, np.nan]), r"values holds nan at \(1,\)"),
    ("infinite value", completion(values=[-np.inf, 0.0]), r"values holds -inf at \(0,\)"),
    (
        "contradiction",
        completion(indices=[[0, 1], [1, 2], [0, 1]], values=[1.0, 2.0, 3.0]),
        r"Entry \(0, 1\) is observed more than once with different values, 1.0 and 3.0",
    ),
    ("target of another shape", completion(target=np.ones((3, 2))), r"\(2, 3\), got \(3, 2\)"),
    ("NaN in the target", completion(target=np.full((2, 3), np.nan)), r"target holds nan at"),
    (
        "misspelt normalization",
        completion(normalization="half_sun"),
        r"Unknown normalization 'half_sun'. Did you mean 'half_sum'\? Known: half_sum, mean",
    ),
    (
        "misspelt loss",
        completion(loss="sqaured"),
        r"Unknown loss 'sqaured'. Did you mean 'squared'",
    ),
    ("unknown loss", completion(loss="xyz"), r"'xyz'\. Known: absolute, huber, squared"),
    ("too little room", completion(room=1), r"room=1 does not hold the 2 observations"),
    (
        "no target",
        lambda: ff.Completion(*OBSERVATIONS["wide"]).held_out_loss(ff.Dense(jnp.ones((2, 5)))),
        r"held_out_loss needs a target",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_agreeing_repetitions_are_accepted_after_rounding(dtype):
    # Equal in float32, different in float64: the check sees the values the problem will hold.
    values = [0.1, 0.1 * (1 + tolerance("rounding", np.float32).rtol * 1e-6)]
    if dtype == jnp.float32:
        ff.Completion((2, 2), [[0, 1], [0, 1]], values)
    else:
        with pytest.raises(ValueError, match="more than once"):
            ff.Completion((2, 2), [[0, 1], [0, 1]], values)
