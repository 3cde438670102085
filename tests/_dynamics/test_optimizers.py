"""Optimizers by name and from optax, against loops that know nothing of ours."""

import jax
import numpy as np
import optax
import pytest

import factorflow as ff
from factorflow._dynamics import OPTIMIZERS
from runs import (
    DTYPE,
    RAZIN_COHEN,
    assert_ulps,
    compose,
    in_numpy,
    on_device,
    random_factors,
    steps_of,
)

FZ = ff.DeepMatrix((2, 2), depth=2)
START = random_factors(FZ)
STEPS = [0, 1, 5, 20]

# Every name with numbers other than its defaults, and optax's own transformation for them.
NAMED = {
    "adam": (
        {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95, "eps": 1e-6},
        optax.adam(0.02, b1=0.8, b2=0.95, eps=1e-6),
    ),
    "adagrad": (
        {"learning_rate": 0.05, "initial_accumulator_value": 0.3, "eps": 1e-5},
        optax.adagrad(0.05, initial_accumulator_value=0.3, eps=1e-5),
    ),
    "group_rmsprop": (
        {"learning_rate": 0.03, "decay": 0.9, "eps": 1e-3},
        ff.group_rmsprop(0.03, decay=0.9, eps=1e-3),
    ),
    "momentum": (
        {"learning_rate": 0.02, "decay": 0.7, "nesterov": True},
        optax.sgd(0.02, momentum=0.7, nesterov=True),
    ),
    "rmsprop": (
        {"learning_rate": 0.01, "decay": 0.8, "eps": 1e-6},
        optax.rmsprop(0.01, decay=0.8, eps=1e-6),
    ),
}
# Needs the parameters as well as the gradient.
CHAINED = optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.scale_by_adam(),
    optax.add_decayed_weights(0.1),
    optax.scale(-0.02),
)


def run(optimizer, factors=START) -> ff.Trajectory:
    return ff.simulate(
        ff.razin_cohen_problem(),
        FZ,
        ff.GradientDescent(optimizer),
        on_device(factors),
        observe=ff.AtSteps(STEPS),
        stop=ff.Stop(max_steps=STEPS[-1]),
        measures=["product"],
    )


def optax_loop(transformation: optax.GradientTransformation):
    """Step by step, outside any compilation, with NumPy's gradients."""
    factors = on_device(START)
    # optax itself mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(factors)
    while True:
        yield in_numpy(factors)
        with jax.numpy_dtype_promotion("standard"):
            gradient = on_device(RAZIN_COHEN.gradient(in_numpy(factors)))
            updates, state = transformation.update(gradient, state, factors)
            factors = optax.apply_updates(factors, updates)


def assert_follows(trajectory: ff.Trajectory, loop) -> None:
    path = steps_of(loop, STEPS[-1])
    assert trajectory.steps.tolist() == STEPS
    for row, step in enumerate(STEPS):
        # Some twenty roundings per step. Normalized steps also divide rounding by the size of the
        # gradient, which stays above a hundredth here.
        ulps = 4 + 500 * step
        assert_ulps(trajectory.measures["product"][row], compose(path[step]), ulps)


def test_every_name_has_a_row():
    assert set(NAMED) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", NAMED)
def test_names_are_optax(name):
    parameters, transformation = NAMED[name]
    trajectory = run(ff.Optimizer(name, parameters))
    assert_follows(trajectory, optax_loop(transformation))
    # Only a step that is one number for all factors makes a time.
    if name == "group_rmsprop":
        assert np.all(np.diff(trajectory.times) > 0)
    else:
        assert trajectory.times[0] == 0
        assert np.isnan(trajectory.times[1:]).all()
    assert trajectory.measures["product"].dtype == DTYPE


def test_any_optax_transformation_works():
    trajectory = run(CHAINED)
    assert_follows(trajectory, optax_loop(CHAINED))
    assert np.isnan(trajectory.times[1:]).all()


def group_rmsprop(rate: float, decay: float, eps: float):
    """The formula, and the sum of its steps."""
    factors, mean_square, time = START, 0.0, 0.0
    for count in range(1, 1000):
        yield factors, time
        gradients = RAZIN_COHEN.gradient(factors)
        square = sum(float(np.sum(g.astype(float) ** 2)) for g in gradients)
        mean_square = decay * mean_square + (1 - decay) * square
        step = rate / (np.sqrt(mean_square / (1 - decay**count)) + eps)
        factors = tuple(
            w - np.asarray(step, DTYPE) * g for w, g in zip(factors, gradients, strict=True)
        )
        time += step


@pytest.mark.parametrize(("decay", "eps"), [(0.99, 1e-6), (0.5, 0.1), (0.0, 1e-9)])
def test_group_rmsprop_is_its_formula_and_keeps_time(decay, eps):
    parameters = {"learning_rate": 0.03, "decay": decay, "eps": eps}
    trajectory = run(ff.Optimizer("group_rmsprop", parameters))
    path = steps_of(group_rmsprop(0.03, decay, eps), STEPS[-1])
    for row, step in enumerate(STEPS):
        factors, time = path[step]
        # Some twenty roundings per step. For small counts 1 - decay^count cancels: at 0.99 it
        # costs two digits.
        ulps = 4 + 1000 * step
        assert_ulps(trajectory.measures["product"][row], compose(factors), ulps)
        assert_ulps(trajectory.times[row], time, ulps)


def test_numbers_of_an_optimizer_are_traced():
    adam = ff.Optimizer("adam", {"learning_rate": 0.1, "b1": 0.5})
    assert len(jax.tree.leaves(adam)) == 2
    assert jax.tree.structure(adam) == jax.tree.structure(
        ff.Optimizer("adam", {"learning_rate": 0.2, "b1": 0.9})
    )


BAD_INPUT = [
    ("a name", lambda: ff.Optimizer("adamm", {"learning_rate": 0.1}), "Did you mean 'adam'"),
    ("a far name", lambda: ff.Optimizer("xyz", {}), "Unknown optimizer 'xyz'. Known: adagrad"),
    (
        "a parameter",
        lambda: ff.Optimizer("adam", {"learning_rat": 0.1}),
        "Unknown parameter of adam 'learning_rat'.*Did you mean 'learning_rate'",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
