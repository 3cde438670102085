"""Descent on the 2x2 problem at depth 3: microseconds per run and iteration, measures included."""

import functools
import importlib.util

import jax
import numpy as np
from plain_loops import numpy_loop, torch_loop
from timing import Row, best_of

import factorflow as ff
from factorflow._follow import follow
from factorflow._spec import prepare

RATE = 6e-3
MEASURES = ["loss", "entry[0,0]", "nuclear_norm", "schatten_norm[0.5]", "effective_rank"]


def specs(runs: int, steps: int):
    """Runs of exactly `steps` iterations, observed at 40 loss levels on the way."""
    problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=3)
    start = ff.Balanced(product_scale=1e-5, determinant="positive")
    return [
        prepare(
            problem,
            fz,
            ff.GradientDescent(RATE),
            start(fz, jax.random.key(seed)),
            observe=ff.AtLosses(np.geomspace(1e-1, 1e-9, 40)),
            stop=ff.Stop(loss=1e-9, max_steps=steps, every=50),
            measures=MEASURES,
        )
        for seed in range(runs)
    ]


def measure() -> list[Row]:
    """One run, a batch of 256, and plain loops, in one process."""
    rows, per_iteration = [], {}
    # A curve to loss 1e-4 takes 1.8e6 iterations or more; stacking the runs must not dominate.
    for runs, steps in ((1, 500_000), (256, 200_000)):
        batch = specs(runs, steps)
        follow(batch)  # compile
        seconds = best_of(3, functools.partial(follow, batch))
        per_iteration[runs] = 1e6 * seconds / steps / runs
    rows.append(Row("one run, us per iteration", f"{per_iteration[1]:.3f}", "at most 0.3"))
    rows.append(
        Row("batch of 256, us per run and iteration", f"{per_iteration[256]:.4f}", "at most 0.04")
    )
    fz = ff.DeepMatrix((2, 2), depth=3)
    start = ff.Balanced(product_scale=1e-5, determinant="positive")(fz, jax.random.key(0))
    start = [np.asarray(factor, float) for factor in start]
    loops = {"NumPy": numpy_loop}
    if importlib.util.find_spec("torch") is not None:
        loops["PyTorch"] = torch_loop
    for name, loop in loops.items():
        steps = 5_000
        loop(start, RATE, 100)
        seconds = best_of(3, functools.partial(loop, start, RATE, steps))
        plain = 1e6 * seconds / steps
        rows.append(Row(f"plain {name} loop, us per iteration", f"{plain:.1f}"))
        rows.append(Row(f"  {name} over one run", f"{plain / per_iteration[1]:.0f}x"))
        rows.append(Row(f"  {name} over a batch of 256", f"{plain / per_iteration[256]:.0f}x"))
    return rows
