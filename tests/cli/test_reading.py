"""Experiments as files, changes and axes give them."""

import io
import sys

import jax
import pytest

from factorflow.cli.arguments import Reproduce, Run, Sweep, parse
from factorflow.cli.reading import read_axes, read_experiment

pytestmark = pytest.mark.x64


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_files_are_read_in_the_encoding_that_their_editor_chose(encoding, example, tmp_path):
    path = tmp_path / "experiment.json"
    path.write_bytes(example.read_text().encode(encoding))
    assert read_experiment(path).key() == read_experiment(example).key()


def test_one_experiment_has_one_key_however_its_numbers_are_written(example, command):
    base = read_experiment(example)
    same = [
        {"task.z": 1, "stop.loss": 1},
        {"task.z": 1.0, "stop.loss": 1.0},
        {"task.z": 1, "stop.loss": 1.0, "seed": 0.0, "stop.max_steps": 1e6},
    ]
    keys = {base.replace(**changes).key() for changes in same}
    assert len(keys) == 1
    axes = [base.replace(**changes).to_json() for changes in same]
    assert len(set(axes)) == 1
    optimizer = {"kind": "Optimizer", "name": "momentum"}
    keys = {
        base.replace(
            **{"dynamics.optimizer": optimizer | {"parameters": {"learning_rate": rate}}}
        ).key()
        for rate in (1, 1.0)
    }
    assert len(keys | {base.replace(**{"dynamics.optimizer": 1}).key()}) == 2
    # Different numbers stay different, down to the last digit of what is given.
    near = [{"task.eps": eps} for eps in (0.0, 5e-324, 1.0, 1.0 + 2**-52)]
    seeds = [{"seed": seed} for seed in (2**53, 2**53 + 1)]
    assert len({base.replace(**changes).key() for changes in near + seeds}) == 6


def test_options_stand_anywhere_and_lists_may_be_spread():
    expected = Run(experiment=parse(["run", "b"])[0].experiment, example=False)
    for arguments in (
        ["run", "--seed", "1", "b", "--task.eps=-1"],
        ["run", "b", "--seed=1", "--task.eps", "-1"],
    ):
        assert parse(arguments) == (expected, {"seed": "1", "task.eps": "-1"})
    for axes in (
        ["--axis", "a=[1]", "b=[2]", "base.json"],
        ["base.json", "--axis", "a=[1]", "--axis=b=[2]"],
    ):
        command, changes = parse(["sweep", "--store", "s", "--no-progress", *axes])
        assert isinstance(command, Sweep) and not changes and not command.progress
        assert (str(command.experiment), command.axis) == ("base.json", ("a=[1]", "b=[2]"))
    command, _ = parse(["reproduce", "p", "--figure", "x", "y", "--out", "o", "--figure", "z"])
    assert isinstance(command, Reproduce) and command.figure == ("x", "y", "z")


def test_axes_are_lists_of_anything():
    assert read_axes(["a=[1, 2.5]", 'b__c=["x", null]']) == {"a": [1, 2.5], "b.c": ["x", None]}


def test_run_reads_standard_input(example, command, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(example.read_bytes())))
    status, out, err = command("run", "-", "--stop.loss", "0.5", "--observe.levels", "[0.5]")
    assert status == 0, err
    assert out.startswith("time,step,level") and out.count("\n") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{")))
    assert (
        "standard input: Not an experiment"
        in command("sweep", "-", "--store", "s", "--axis", "seed=[0]")[2]
    )


def test_jax_that_does_not_start_is_explained(example, command, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu9'")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu9")
    status, _, err = command("run", example)
    assert status == 2
    assert "Unable to initialize backend 'tpu9'" in err and "JAX_PLATFORMS=tpu9" in err
