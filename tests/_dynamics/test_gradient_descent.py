"""Plain and stochastic descent, against loops in NumPy."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow import _follow
from factorflow._certify import follow_certified as follow
from factorflow._spec import prepare
from runs import (
    DTYPE,
    EPS,
    GENERIC,
    RAZIN_COHEN,
    Linear,
    assert_ulps,
    compose,
    descend,
    draw,
    in_numpy,
    on_device,
    random_factors,
    steps_of,
)

STEPS = [0, 1, 7, 30]


# --- Plain descent


def completion(shape) -> tuple[ff.Completion, Linear]:
    """Half of the entries, in the normalization that averages."""
    indices = list(itertools.product(*map(range, shape)))[::2]
    (values,) = draw([len(indices)], seed=3)
    problem = ff.Completion(shape, indices, values, normalization="mean")
    return problem, Linear.completion(shape, indices, values, weight=2 / len(indices))


def sensing(shape) -> tuple[ff.Sensing, Linear]:
    measurements, values = draw([(5, *shape), 5], seed=4)
    return ff.Sensing(measurements, values), Linear(measurements, values)


# Rectangular, too narrow and too wide hidden layers; `test_simulate` has the square depth 2.
CASES = {
    "depth 1": (completion, (2, 3), 1, None),
    "depth 2": (completion, (4, 3), 2, 1),
    "depth 3": (sensing, (2, 3), 3, (7, 5)),
    "depth 4": (sensing, (2, 2), 4, None),
}


@pytest.mark.parametrize(
    ("make", "shape", "depth", "hidden"), CASES.values(), ids=[name for name in CASES]
)
def test_descent_is_a_plain_loop(make, shape, depth, hidden):
    problem, reference = make(shape)
    fz, rate = ff.DeepMatrix(shape, depth, hidden), 0.02
    start = random_factors(fz)
    trajectory = ff.simulate(
        problem,
        fz,
        ff.GradientDescent(rate),
        on_device(start),
        observe=ff.AtSteps(STEPS),
        stop=ff.Stop(max_steps=STEPS[-1]),
        measures=["loss", "product"],
    )
    path = steps_of(descend(reference, start, rate), STEPS[-1])
    # A step sums up to 40 products (5 measurements of 6 entries, or 7 hidden units, in any order),
    # and this small rate amplifies no rounding of the steps before by more than a few times.
    for row, step in enumerate(STEPS):
        ulps = 40 * (1 + step)
        assert_ulps(trajectory.measures["product"][row], compose(path[step]), ulps)
        assert_ulps(trajectory.measures["loss"][row], reference.loss(path[step]), ulps)
    for factor, expected in zip(trajectory.factors, path[-1], strict=True):
        assert_ulps(factor, expected, 40 * STEPS[-1])
    assert_ulps(trajectory.times, rate * np.array(STEPS), STEPS[-1])


# --- Stochastic descent

PROBLEM = ff.razin_cohen_problem()
# Depth 1, where a step is minus the rate times the gradient of the loss itself.
FZ = ff.DeepMatrix((2, 2), depth=1)
START = in_numpy([10 * GENERIC])
RATE = 0.125
KEYS = [jax.random.key(seed) for seed in range(24)]


def batch(dynamics, keys) -> ff.Trajectory:
    specs = [
        prepare(
            PROBLEM,
            FZ,
            dynamics,
            on_device(START),
            observe=ff.AtSteps([1, 2, 3, 4]),
            stop=ff.Stop(max_steps=4),
            measures=["product", "loss"],
            key=key,
        )
        for key in keys
    ]
    return follow(specs, width=len(KEYS))


@functools.cache
def steps(batch_size: int | None, label_noise: float | None) -> np.ndarray:
    """Minus the gradients that the steps used: `(key, step, 2, 2)`."""
    dynamics = ff.GradientDescent(RATE, batch_size=batch_size, label_noise=label_noise)
    products = batch(dynamics, KEYS).measures["product"]
    first = np.broadcast_to(START[0], products[:, :1].shape)
    return np.diff(np.concatenate([first, products], axis=1), axis=1) / RATE


def full_gradient() -> np.ndarray:
    return RAZIN_COHEN.gradient(START)[0]


# The difference of two products of size 1, divided by the rate.
DIFFERENCE = 8 * EPS / RATE


def test_minibatches_of_one_are_single_observations_times_their_number():
    gradients = -steps(1, 0.0)[:, 0]
    places = np.argwhere(np.abs(gradients) > DIFFERENCE)
    # One entry per key, each of the three comes up, and the unobserved one does not.
    assert places[:, 0].tolist() == list(range(len(KEYS)))
    assert {(i, j) for _, i, j in places.tolist()} == {(0, 1), (1, 0), (1, 1)}
    single = {(i, j): gradients[key, i, j] for key, i, j in places.tolist()}
    for place, value in single.items():
        np.testing.assert_allclose(value, 3 * full_gradient()[place], rtol=0, atol=3 * DIFFERENCE)


def test_the_mean_over_minibatches_of_two_is_the_full_gradient():
    gradients = -steps(2, None)[:, 0]
    left_out = np.abs(gradients) <= DIFFERENCE
    batches = {tuple(map(tuple, np.argwhere(mask).tolist())) for mask in left_out}
    assert len(batches) == 3
    kinds = {tuple(np.round(g.ravel(), 4).tolist()): g for g in gradients}
    assert len(kinds) == 3
    mean = np.mean(list(kinds.values()), axis=0)
    np.testing.assert_allclose(mean, full_gradient(), rtol=0, atol=3 * DIFFERENCE)


def test_minibatches_are_drawn_anew_for_each_step():
    moved = np.abs(steps(1, 0.0)) > DIFFERENCE
    # The chance of one entry in all four steps is 1/27 per key.
    same = np.all(moved == moved[:, :1], axis=(1, 2, 3))
    assert same.mean() < 0.25


def test_label_noise_moves_the_observed_entries_only_and_scales():
    full = full_gradient()
    noise, twice = (-steps(None, scale)[:, 0] - full for scale in (0.25, 0.5))
    assert np.all(np.abs(noise[:, 0, 0]) <= DIFFERENCE)
    np.testing.assert_allclose(twice, 2 * noise, rtol=0, atol=3 * DIFFERENCE)
    observed = noise[:, [0, 1, 1], [1, 0, 1]] / 0.25
    # 72 standard normal draws: five standard errors of their mean and of their variance.
    assert abs(observed.mean()) < 5 / np.sqrt(72)
    assert abs(observed.var() - 1) < 5 * np.sqrt(2 / 72)


@pytest.mark.parametrize(("batch_size", "label_noise"), [(2, None), (None, 0.25), (1, 0.25)])
def test_the_key_decides(batch_size, label_noise):
    dynamics = ff.GradientDescent(RATE, batch_size=batch_size, label_noise=label_noise)
    once, again = (batch(dynamics, KEYS[:3]).measures["product"] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    (other,) = batch(dynamics, [jax.random.key(99)]).measures["product"]
    assert not any(np.array_equal(rows, other) for rows in once)


def test_a_batch_of_all_without_noise_is_full_descent():
    trajectory = batch(ff.GradientDescent(RATE, batch_size=3), KEYS[:2])
    path = steps_of(descend(RAZIN_COHEN, START, RATE), 4)
    for products in trajectory.measures["product"]:
        # The weights are 1 exactly; four steps of some roundings.
        assert_ulps(products, [compose(factors) for factors in path[1:]], 20)


def test_the_recorded_loss_has_all_observations_and_no_noise():
    trajectory = batch(ff.GradientDescent(RATE, batch_size=1, label_noise=0.25), KEYS)
    for products, losses in zip(*trajectory.measures.values(), strict=True):
        products, losses = (losses, products) if products.ndim == 1 else (products, losses)
        # Sums of three squares.
        assert_ulps(losses, [RAZIN_COHEN.loss((product,)) for product in products], 16)


def test_the_factors_dtype_rules_the_noise_too():
    trajectory = batch(ff.GradientDescent(RATE, label_noise=0.25), KEYS[:1])
    assert trajectory.measures["product"].dtype == DTYPE


# --- Lanes of a batch that end before the others


def by_name(name: str, **options):
    return lambda rate: ff.GradientDescent(ff.Optimizer(name, {"learning_rate": rate}), **options)


KINDS = {
    "plain": ff.GradientDescent,
    "group_rmsprop": by_name("group_rmsprop"),
    "adam": by_name("adam"),
    "minibatch": lambda rate: ff.GradientDescent(rate, batch_size=2, label_noise=0.25),
    "minibatch of adam": by_name("adam", batch_size=1),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
DEEP = ff.DeepMatrix((2, 2), depth=2)


def lane(kind: str, index: int, rates=(0.05, 0.02, 0.1, 0.01)):
    return prepare(
        PROBLEM,
        DEEP,
        KINDS[kind](rates[index]),
        on_device(random_factors(DEEP, scale=1.0, seed=index)),
        observe=ff.AtSteps([1, 5]),
        stop=ff.Stop(max_steps=(40, 3, 17, 60)[index]),
        measures=["product", "loss", "balancedness_gap"],
        key=jax.random.key(index),
    )


def bits(tree) -> list[bytes]:
    keys = jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree, is_leaf=_is_key
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(keys)]


def _is_key(leaf) -> bool:
    return eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@every_kind
def test_a_lane_that_ends_early_keeps_the_bits_of_its_end(kind):
    batch = _follow.follow([lane(kind, index) for index in range(4)])
    assert batch[0].counters["num_steps"].tolist() == [40, 3, 17, 60]
    for index in range(4):
        alone = _follow.follow([lane(kind, index)])
        in_batch = jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        assert bits(in_batch) == bits(jax.tree.map(lambda leaf: leaf[0], alone)), f"lane {index}"


def test_a_lane_that_fails_keeps_its_last_finite_factors():
    """Its gradient is infinite, and zero times that is no zero."""
    rates = (0.05, 0.02, 50.0, 0.01)
    batch = _follow.follow([lane("plain", index, rates) for index in range(4)])
    (alone,) = (_follow.follow([lane("plain", 2, rates)])[0],)
    assert not np.isfinite(alone.counters["loss"][0])
    assert all(np.isfinite(factor).all() for factor in alone.factors)
    for one, other in zip(alone.factors, batch[0].factors, strict=True):
        np.testing.assert_array_equal(one[0], other[2])


@every_kind
def test_an_inactive_lane_takes_no_step(kind):
    spec = lane(kind, 0)
    dynamics, problem, fz = spec.dynamics, spec.problem, spec.factorization
    state = dynamics.init(problem, fz, spec.factors, spec.key)
    advance = eqx.filter_jit(
        lambda state, active: dynamics.advance(problem, fz, state, active=active)
    )
    go, wait = jnp.asarray(True), jnp.asarray(False)
    once = advance(state, go)
    assert bits(once) != bits(state)
    waited = advance(advance(once, wait), wait)
    assert bits(waited) == bits(once)
    # Waiting leaves no trace: neither a key nor an optimizer's state has moved on.
    assert bits(advance(waited, go)) == bits(advance(once, go)) != bits(once)


BAD_INPUT = [
    ("a rate of 0", lambda: ff.GradientDescent(0), "learning rate must be positive.*got 0"),
    ("a negative rate", lambda: ff.GradientDescent(-1e-3), "got -0.001"),
    ("a NaN rate", lambda: ff.GradientDescent(np.nan), "finite, got nan"),
    ("a NaN rate of NumPy", lambda: ff.GradientDescent(np.float32(np.nan)), "finite, got nan"),
    ("an infinite rate", lambda: ff.GradientDescent(np.inf), "finite, got inf"),
    ("a name alone", lambda: ff.GradientDescent("adam"), r"Optimizer\('adam', .*learning_rate"),
    ("an empty batch", lambda: ff.GradientDescent(0.1, batch_size=0), "1 or more, got 0"),
    ("negative noise", lambda: ff.GradientDescent(0.1, label_noise=-1.0), "got -1"),
    ("NaN noise", lambda: ff.GradientDescent(0.1, label_noise=np.nan), "label_noise.*got nan"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
