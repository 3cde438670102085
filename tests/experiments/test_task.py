"""Tasks build the named problems with their own fields, from the key, and are JSON."""

import dataclasses

import jax
import numpy as np
import pytest

import factorflow as ff
from factorflow._problem import catalogue, sensing_catalogue
from factorflow.experiments import Experiment
from factorflow.experiments.codec import decode, encode
from factorflow.experiments.task import (
    TASKS,
    BlockCompletionTask,
    CommutingSensingTask,
    ConnectedCompletionTask,
    RandomLowRankTask,
    RandomSensingTask,
    RazinCohenTask,
)

# Every field differs from its default, so that one that is dropped on the way is noticed.
CASES = [
    (RazinCohenTask(3, 2.0, -1.0, 0.5), lambda _: ff.razin_cohen_problem(3, 2.0, -1.0, 0.5)),
    (
        RandomLowRankTask((4, 3, 2), 1, 7, 2.0, "mean", "huber", 9),
        lambda key: ff.random_low_rank_problem(
            key,
            (4, 3, 2),
            1,
            7,
            frobenius_norm=2.0,
            normalization="mean",
            loss="huber",
            room=9,
        ),
    ),
    (
        BlockCompletionTask((2, 1), (1, 3), 2, 2.0, "mean", 6),
        lambda key: catalogue.block_completion_problem(
            key, (2, 1), (1, 3), 2, frobenius_norm=2.0, normalization="mean", room=6
        ),
    ),
    (
        ConnectedCompletionTask((3, 4), 2, 8, 2.0, "mean", 9),
        lambda key: catalogue.connected_completion_problem(
            key, (3, 4), 2, 8, frobenius_norm=2.0, normalization="mean", room=9
        ),
    ),
    (
        RandomSensingTask((3, 3), 1, 4, True, 2.0, "mean"),
        lambda key: sensing_catalogue.random_sensing_problem(
            key, (3, 3), 1, 4, semidefinite=True, frobenius_norm=2.0, normalization="mean"
        ),
    ),
    (
        CommutingSensingTask(3, 1, 2, "random", 2.0, "mean"),
        lambda key: sensing_catalogue.commuting_sensing_problem(
            key, 3, 1, 2, basis="random", frobenius_norm=2.0, normalization="mean"
        ),
    ),
]
IDS = [type(task).__name__ for task, _ in CASES]


def same(first, second) -> bool:
    leaves = [jax.tree.leaves(problem) for problem in (first, second)]
    shapes = [jax.tree.structure(problem) for problem in (first, second)]
    return shapes[0] == shapes[1] and all(map(np.array_equal, *leaves))


def test_every_task_has_a_case():
    assert [type(task) for task, _ in CASES] == list(TASKS)
    for task, _ in CASES:
        default = type(task)()
        for field in dataclasses.fields(task):
            assert getattr(task, field.name) != getattr(default, field.name), field.name


@pytest.mark.parametrize(("task", "problem"), CASES, ids=IDS)
def test_a_task_builds_its_problem_from_all_its_fields(task, problem):
    key = jax.random.key(3)
    assert same(task.build(key), problem(key))


@pytest.mark.parametrize(("task", "problem"), CASES[1:], ids=IDS[1:])
def test_the_data_are_drawn_from_the_key(task, problem):
    assert not same(task.build(jax.random.key(3)), problem(jax.random.key(4)))


@pytest.mark.parametrize("task", [task for task, _ in CASES], ids=IDS)
def test_a_task_is_json(task):
    assert decode(encode(task)) == task
    # In an experiment too, where lists come back as tuples.
    experiment = Experiment(
        task,
        ff.DeepMatrix((2, 2), depth=2),
        ff.Balanced(product_scale=1e-2),
        ff.GradientFlow(),
        ff.AtEnd(),
        ff.Stop(loss=1e-2),
    )
    again = Experiment.from_json(experiment.to_json())
    assert again == experiment
    assert again.key() == experiment.key()


def test_bad_numbers_are_refused_where_the_problem_is_built():
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
        RandomSensingTask(rank=0).build(jax.random.key(0))
    with pytest.raises(ValueError, match=r"n_observed must be between 10, which connect"):
        ConnectedCompletionTask(n_observed=9).build(jax.random.key(0))
