"""Experiments are names and numbers: they survive JSON, and their key is their identity."""

import json
import re

import jax
import numpy as np
import pytest

import factorflow as ff
from experiments.common import base
from factorflow._spec import structure
from factorflow.experiments import (
    BlockCompletionTask,
    CommutingSensingTask,
    ConnectedCompletionTask,
    Experiment,
    RandomLowRankTask,
    RandomSensingTask,
    RazinCohenTask,
    sweep,
)
from factorflow.experiments.codec import KINDS, decode, encode

EXAMPLES = [
    RazinCohenTask(dim=3, eps=0.05),
    RandomLowRankTask(shape=(4, 3), rank=1, n_observed=5, frobenius_norm=1.0),
    RandomLowRankTask(shape=(4, 3), rank=1, n_observed=5, loss="huber", room=12),
    BlockCompletionTask(rows=(2, 2), columns=(1, 3), rank=1),
    ConnectedCompletionTask(shape=(4, 3), rank=1, n_observed=8, room=12),
    RandomSensingTask(shape=(4, 4), rank=1, n_measurements=6, semidefinite=True),
    CommutingSensingTask(dim=4, rank=2, n_measurements=2, basis="random"),
    ff.DeepMatrix((4, 3), depth=3, hidden=(5, 2)),
    ff.DeepMatrix((4, 3), depth=3),
    ff.CP((4, 3, 2), rank=5),
    ff.CP((4, 3, 2)),
    ff.TensorTrain((4, 3, 2), ranks=(2, 3)),
    ff.TensorTrain((4, 3, 2)),
    ff.Tucker((4, 3, 2), ranks=2),
    ff.Balanced(product=[[1.0, 0.5], [0.0, 2.0]]),
    ff.Gaussian(factor_scale=0.1),
    ff.Identity(product_scale=0.1, determinant="negative"),
    ff.Imbalanced(product_scale=0.1, imbalance=1e-3),
    ff.Orthogonal(product_scale=0.1),
    ff.EndToEndFlow("Tsit5", rtol=1e-6),
    ff.GradientDescent(0.1, batch_size=2, label_noise=0.5),
    ff.GradientDescent(ff.Optimizer("adam", {"learning_rate": 1e-3})),
    ff.GradientFlow("Dopri8", atol=1e-9),
    ff.MultirateFlow(tolerance=1e-3, rtol=1e-5, capacity=4),
    ff.Optimizer("group_rmsprop", {"learning_rate": 1e-2, "eps": 1e-9}),
    ff.AtEnd(),
    ff.AtLosses([1.0, 0.1]),
    ff.AtSteps([0, 5]),
    ff.AtTimes([0.0, 0.5]),
    ff.LogSpaced(5),
    ff.Stop(gradient_norm=1e-3, max_time=5.0, every=50, patience=3),
]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_every_part_survives_json(value):
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_every_kind_has_an_example():
    assert {type(value).__name__ for value in EXAMPLES} == set(KINDS)


def test_an_experiment_survives_json():
    experiment = base()
    again = Experiment.from_json(experiment.to_json())
    assert again == experiment
    assert again.key() == experiment.key()


@pytest.mark.parametrize(
    "field",
    ["seed", "factorization.depth", "dynamics.optimizer", "dtype", "stop.loss", "measures"],
)
def test_the_key_depends_on_every_field(field):
    values = {
        "seed": 1,
        "factorization.depth": 3,
        "dynamics.optimizer": 0.02,
        "dtype": "float64",
        "stop.loss": 0.02,
        "measures": ["loss"],
    }
    assert base().replace(**{field: values[field]}).key() != base().key()


def test_the_key_depends_on_the_revision_of_the_numerics(monkeypatch):
    before = base().key()
    monkeypatch.setattr("factorflow.experiments.experiment.NUMERICS_REVISION", -1)
    assert base().key() != before


def test_measures_are_named_once_and_for_all():
    assert base(measures=["entry[0, 0]"]).measures == ("entry[0,0]",)
    assert base(measures=["entry[0, 0]"]).key() == base(measures=["entry[0,0]"]).key()


def test_a_sweep_is_the_product_of_its_axes_last_fastest():
    runs = sweep(base(), factorization__depth=[2, 3], seed=range(2))
    assert [(run.factorization.depth, run.seed) for run in runs] == [(2, 0), (2, 1), (3, 0), (3, 1)]


def test_whole_parts_can_be_swept():
    starts = [ff.Gaussian(factor_scale=0.1), ff.Identity(factor_scale=0.1)]
    assert [run.initializer for run in sweep(base(), initializer=starts)] == starts


def test_the_depth_does_not_change_the_data():
    task = RandomLowRankTask(shape=(4, 3), rank=1, n_observed=5)
    runs = [
        base(task=task, factorization=ff.DeepMatrix((4, 3), depth), initializer=start).build()
        for depth, start in ((2, ff.Gaussian(factor_scale=0.1)), (4, ff.Identity(factor_scale=0.1)))
    ]
    np.testing.assert_array_equal(runs[0].problem.values, runs[1].problem.values)
    np.testing.assert_array_equal(runs[0].problem.indices, runs[1].problem.indices)


def test_the_seed_changes_the_data_and_the_start():
    task = RandomLowRankTask(shape=(4, 3), rank=1, n_observed=5)
    fz = ff.DeepMatrix((4, 3), 2)
    start = ff.Gaussian(factor_scale=0.1)
    first, second = (
        base(task=task, factorization=fz, initializer=start, seed=seed).build() for seed in (0, 1)
    )
    assert not np.array_equal(first.problem.values, second.problem.values)
    assert not np.array_equal(first.factors[0], second.factors[0])


@pytest.mark.parametrize("room", [None, 12])
def test_with_room_the_number_of_observations_is_no_structure(room):
    def spec(n_observed):
        task = RandomLowRankTask(shape=(4, 3), rank=1, n_observed=n_observed, room=room)
        fz, start = ff.DeepMatrix((4, 3), 2), ff.Gaussian(factor_scale=0.1)
        return base(task=task, factorization=fz, initializer=start).build()

    assert (structure(spec(5)) == structure(spec(12))) == (room is not None)


@pytest.mark.x64
def test_both_precisions_start_from_the_same_numbers():
    double, single = (base(dtype=dtype).build().factors for dtype in ("float64", "float32"))
    for wide, narrow in zip(double, single, strict=True):
        assert str(narrow.dtype) == "float32"
        np.testing.assert_array_equal(np.asarray(wide).astype(np.float32), narrow)


BAD_INPUT = [
    ("not JSON", lambda: Experiment.from_json("{"), "invalid JSON"),
    ("no object", lambda: Experiment.from_json("[]"), "expected a JSON object"),
    ("missing parts", lambda: Experiment.from_json("{}"), "needs task, factorization"),
    ("unknown field", lambda: Experiment.from_json('{"sead": 1}'), "Did you mean 'seed'"),
    ("unknown path", lambda: base().replace(factorization__dept=3), "Did you mean 'depth'"),
    ("path through a number", lambda: base().replace(seed__x=3), "'seed' is 0 here"),
    ("unknown kind", lambda: decode({"kind": "DeepMatrx"}), "Did you mean 'DeepMatrix'"),
    ("empty axis", lambda: sweep(base(), seed=[]), "Axis 'seed' is empty"),
    ("unknown measure", lambda: base(measures=["nuclear_nrm"]), "Did you mean 'nuclear_norm'"),
    ("unknown dtype", lambda: base(dtype="float16"), "Unknown dtype 'float16'"),
    ("depth 0", lambda: base().replace(factorization__depth=0), "depth counts matrices"),
    (
        "a word for a number",
        lambda: base().replace(task__z="abc"),
        "RazinCohenTask.z must be float",
    ),
    ("a fraction for a seed", lambda: base().replace(seed=1.5), "Experiment.seed must be int"),
    ("a seed beyond 64 bits", lambda: base().replace(seed=2**70), "Experiment.seed must be int"),
    ("no measures", lambda: base().replace(measures=None), "Experiment.measures must be"),
    ("no shape", lambda: base().replace(factorization__shape=None), "DeepMatrix.shape must be"),
    (
        "an optax object",
        lambda: encode(ff.GradientDescent(ff.group_rmsprop(1e-2))),
        "cannot be stored in an experiment",
    ),
    (
        "part of the wrong kind",
        lambda: base().replace(task=ff.Stop(loss=0.1)),
        "task must be a AbstractTask",
    ),
]


@pytest.mark.parametrize(("call", "message"), [(c, m) for _, c, m in BAD_INPUT])
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_configuration_does_not_change_what_a_seed_means():
    with jax.enable_x64(False):
        narrow = base().build()
    with jax.enable_x64(True):
        wide = base().build()
    for first, second in zip(narrow.factors, wide.factors, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(narrow.problem.values, wide.problem.values)
