"""Optax transformations: the steps of a plain loop, and one compilation for every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import factorflow as ff
from factorflow import _follow
from factorflow._dynamics.parametric import Parametric
from runs import EPS

FZ = ff.DeepMatrix((2, 2), depth=2)
PROBLEM = ff.razin_cohen_problem()
STEPS = 6


def start() -> tuple[jax.Array, ...]:
    return ff.Identity(factor_scale=0.5)(FZ)


def run(optimizer, measures=("product",)):
    return ff.simulate(
        PROBLEM,
        FZ,
        ff.GradientDescent(optimizer),
        start(),
        observe=ff.AtSteps([STEPS]),
        stop=ff.Stop(max_steps=STEPS),
        measures=measures,
    )


def loop(optimizer) -> np.ndarray:
    """What optax's own documentation does."""

    def loss(factors):
        return PROBLEM.loss(ff.Factored(FZ, factors))

    optimizer, factors = optax.with_extra_args_support(optimizer), start()
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(factors)
        for _ in range(STEPS):
            value, grad = jax.value_and_grad(loss)(factors)
            extra = {"value": value, "grad": grad, "value_fn": loss}
            updates, state = optimizer.update(grad, state, factors, **extra)
            factors = optax.apply_updates(factors, updates)
    return np.asarray(FZ.compose(factors))


def decided_by_its_number(rate: float) -> optax.GradientTransformation:
    """Asks a number for a decision, which an array under a trace cannot take."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda leaf: -rate * leaf if rate < 0.5 else leaf, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


# Each at two rates, and how many times both together may compile.
KINDS = {
    "group_rmsprop": (ff.group_rmsprop, 1),
    "sgd": (optax.sgd, 1),
    "adam": (optax.adam, 1),
    "adamw with a schedule": (lambda r: optax.adamw(optax.cosine_decay_schedule(r, 10)), 1),
    "a schedule of one's own": (lambda r: optax.sgd(lambda count: r / (1 + count)), 1),
    # These are given the loss, its gradient and the function itself.
    "lbfgs": (lambda r: optax.lbfgs(), 1),
    "polyak_sgd": (lambda r: optax.polyak_sgd(max_learning_rate=r), 1),
    "reduce_on_plateau": (
        lambda r: optax.chain(optax.rmsprop(r), optax.contrib.reduce_on_plateau(patience=1)),
        1,
    ),
    "decided by its number": (decided_by_its_number, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_rate_takes_optaxs_steps_and_compiles_nothing(kind):
    make, compilations = KINDS[kind]
    before = _follow._compiled.cache_info().misses
    for rate in (1e-2, 3e-2):
        found = run(make(rate)).measures["product"][0]
        # A few roundings per step; a line search multiplies them by its slopes.
        np.testing.assert_allclose(
            found, loop(make(rate)), atol=1e5 * EPS if kind == "lbfgs" else 1e3 * EPS
        )
    assert _follow._compiled.cache_info().misses - before <= compilations


def test_minibatches_hand_on_their_own_loss():
    """Polyak's step divides the minibatch's own loss by its own gradient's square."""
    optimizer = optax.polyak_sgd(max_learning_rate=10.0)
    trajectory = ff.simulate(
        PROBLEM,
        FZ,
        ff.GradientDescent(optimizer, batch_size=1),
        start(),
        observe=ff.AtSteps([1]),
        stop=ff.Stop(max_steps=1),
        measures=["product"],
        key=jax.random.key(3),
    )
    # One of three observations at three times its weight, whichever it was.
    candidates = []
    for place, value in (((0, 1), 1.0), ((1, 0), 1.0), ((1, 1), 0.0)):

        def loss(factors, place=place, value=value):
            return 1.5 * (FZ.compose(factors)[place] - value) ** 2

        found, grad = jax.value_and_grad(loss)(start())
        square = sum(jnp.sum(leaf**2) for leaf in grad)
        step = jnp.minimum(jnp.where(square > 0, found / square, 0.0), 10.0)
        moved = tuple(w - step * g for w, g in zip(start(), grad, strict=True))
        candidates.append(np.asarray(FZ.compose(moved)))
    found = trajectory.measures["product"][0]
    assert min(np.abs(found - candidate).max() for candidate in candidates) < 1e3 * EPS


def test_what_can_change_is_no_number():
    rates = [1e-2]
    assert Parametric.of(optax.sgd(lambda count: rates[0])) is None
    one, other = (Parametric.of(optax.adam(1e-3, b1=b1)) for b1 in (0.9, 0.5))
    assert one.code == other.code and one.numbers != other.numbers
    assert one.code != Parametric.of(optax.adam(1e-3, nesterov=True)).code


def test_group_rmsprop_has_the_companions_of_its_name():
    """By function or by name it is one optimizer, with one certificate."""
    descent = ff.GradientDescent(ff.group_rmsprop(1e-2, decay=0.9)).resolve(PROBLEM, FZ, start())
    assert descent.optimizer.name == "group_rmsprop"
    assert descent.optimizer.parameters == {"learning_rate": 1e-2, "decay": 0.9, "eps": 1e-6}


RATE = 2.0


def scaled(rate):
    return lambda snapshot: rate * snapshot.loss


def test_a_measure_made_anew_compiles_nothing_unless_it_is_another():
    before = _follow._compiled.cache_info().misses
    values = [run(optax.sgd(1e-2), [scaled(rate)]).measures["<lambda>"][0] for rate in (2.0, 2.0)]
    assert _follow._compiled.cache_info().misses - before == 1
    other = run(optax.sgd(1e-2), [scaled(3.0)]).measures["<lambda>"][0]
    assert values[0] == values[1]
    np.testing.assert_allclose(other, 1.5 * values[0], rtol=4 * EPS)
