"""Flows of larger squares in charts: how near to the bound the entry lies, and what that costs."""

import functools

import jax
import numpy as np
from timing import Row, best_of

import factorflow as ff
from factorflow._certify import follow_certified
from factorflow._spec import prepare
from factorflow.reference import entry_bound

LEVELS = (1e-2, 1e-4, 1e-6, 1e-8)
DIMS, DEPTHS = (3, 5, 10), (2, 3, 4)


def measure() -> list[Row]:
    """Balanced random starts to a loss of 1e-8, each with its certificate."""
    return [row for dim in DIMS for depth in DEPTHS for row in _square(dim, depth)]


def _square(dim: int, depth: int) -> list[Row]:
    fz = ff.DeepMatrix((dim, dim), depth)
    start = ff.Balanced(product_scale=1e-3, determinant="positive")
    spec = prepare(
        ff.razin_cohen_problem(dim=dim),
        fz,
        ff.GradientFlow(),
        start(fz, jax.random.key(0)),
        observe=ff.AtLosses(LEVELS),
        stop=ff.Stop(loss=LEVELS[-1], max_steps=20_000),
        measures=["entry[0,0]"],
    )
    call = functools.partial(follow_certified, [spec], 1)
    trajectory = jax.tree.map(lambda leaf: np.asarray(leaf[0]), call())
    seconds = best_of(1 if dim > 5 else 3, call)
    entry = abs(float(trajectory.measures["entry[0,0]"][-1]))
    over = entry / float(entry_bound(dim)(LEVELS[-1])) - 1
    integrator, steps = (trajectory.stats[name] for name in ("integrator", "num_steps"))
    return [
        Row(f"{dim}x{dim}, depth {depth} ({integrator}) to 1e-8: s", f"{seconds:.2f}"),
        Row("  steps", f"{int(steps)}"),
        Row("  entry over its bound, minus 1", f"{over:.0e}"),
    ]
