"""Processes that write to one store at once or are killed at any instant.

`python writers.py FOLDER RACES KILLS SEED [runs]`: so many times two writers on a store, and so
many times one that is killed. What is written comes from `FOLDER/batch`: results that were computed
before, so that a process takes milliseconds; with `runs` each process follows its experiments
itself. It prints a line of JSON per round, with the writings that were finished.
"""

import json
import os
import pickle
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import h5netcdf  # noqa: F401
import jax
import polars  # noqa: F401
import xarray  # noqa: F401

from factorflow.experiments import Experiment, Store, run

# A fork of a process whose threads have not begun: no lock is held in it.
warnings.filterwarnings("ignore", message=".*fork", category=RuntimeWarning)


def load(folder: Path):
    """The experiments, and their results as one batch."""
    texts, batch = pickle.loads((folder / "batch").read_bytes())
    return [Experiment.from_json(text) for text in texts], batch


def add(store: Store, experiments, batch, positions) -> None:
    """Write some of the runs as a file of their own."""
    part = jax.tree.map(lambda leaf: leaf[list(positions)], batch)
    store.add([experiments[i] for i in positions], part, 0.0)


def write(path: Path, experiments, batch, order: list[tuple[int, ...]], out: int) -> None:
    """Write batch after batch and say so."""
    store = Store(path)
    for positions in order:
        if batch is None:
            run([experiments[i] for i in positions], store, progress=False)
        else:
            add(store, experiments, batch, positions)
        os.write(out, (json.dumps(positions) + "\n").encode())


def main(folder: Path, races: int, kills: int, seed: int, runs: bool) -> None:
    experiments, batch = load(folder)
    batch = None if runs else batch
    chance = random.Random(seed)
    longest = 0.0
    kinds = ["race"] * races + ["undisturbed"] * bool(kills) + ["kill"] * kills
    for number, kind in enumerate(kinds):
        path = folder / f"{kind}-{number}"
        orders = [shuffled(chance, len(experiments)) for _ in range(2 if kind == "race" else 1)]
        inside, outside = os.pipe()
        started = time.monotonic()
        children = [fork(path, experiments, batch, order, outside) for order in orders]
        os.close(outside)
        if kind == "kill":
            time.sleep(chance.uniform(0, longest))
            os.kill(children[0], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if kind == "undisturbed":
            longest = time.monotonic() - started
        with os.fdopen(inside) as lines:
            finished = [json.loads(line) for line in lines]
        done = {"kind": kind, "store": str(path), "codes": codes, "finished": finished}
        print(json.dumps(done), flush=True)


def shuffled(chance: random.Random, count: int) -> list[tuple[int, ...]]:
    """The runs in batches of one to three, in any order."""
    left, order = chance.sample(range(count), count), []
    while left:
        size = chance.randint(1, 3)
        order.append(tuple(left[:size]))
        left = left[size:]
    return order


def fork(path, experiments, batch, order, out) -> int:
    child = os.fork()
    if child:
        return child
    try:
        write(path, experiments, batch, order, out)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), "runs" in sys.argv)
