"""Two processes on one store, and processes that are killed: every run once, bit by bit.

The figures of `docs/stores.md` are of a hundred rounds of each; here are a few of them.
"""

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import writers
from experiments.common import base
from factorflow._certify import follow_certified
from factorflow.experiments import Store, run, sweep

pytestmark = pytest.mark.x64

SCRIPT = Path(writers.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("writers"))


def prepare(folder):
    """Results of seven runs for the writers to write, and a store of them to compare with."""
    runs = sweep(base(), seed=range(7))
    batch = follow_certified([run.build() for run in runs], 8, "cheap")
    batch = jax.tree.map(np.asarray, batch)
    (folder / "batch").write_bytes(pickle.dumps(([run.to_json() for run in runs], batch)))
    Store(folder / "reference").add(runs, batch, 0.0)
    return folder


def rounds(folder, races, kills, *options):
    """What the writers did, a dictionary per round."""
    command = [sys.executable, SCRIPT, folder, str(races), str(kills), "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3000)
    assert not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def verify(folder, done):
    """Every finished batch is kept, each run is there once, and what is missing is run."""
    runs, batch = writers.load(folder)
    reference = Store(folder / "reference").dataset(runs)
    finished = {runs[i].key() for positions in done["finished"] for i in positions}
    with warnings.catch_warnings(action="error"):
        store = Store(done["store"])
        keys = store.index["key"].to_list()
        assert len(keys) == len(set(keys)) == len(store)
        assert finished <= store.holds(run.key() for run in runs) == set(keys)
        writers.add(store, runs, batch, range(len(runs)))
        run(runs, store, progress=False)  # runs nothing, and removes what is left of the dead
        for view in store, Store(done["store"]):
            assert len(view) == len(runs)
            assert view.dataset().sizes["run"] == len(runs)
            assert view.dataset(runs).identical(reference)
        assert not list(Path(done["store"]).rglob("*.tmp"))


def test_two_writers_and_killed_writers_lose_nothing_and_write_nothing_twice(folder):
    for done in rounds(folder, races=2, kills=3):
        if done["kind"] != "kill":
            assert set(done["codes"]) == {0}
        verify(folder, done)
