"""Descent over CP factorizations on every core; order 784; the tensor figures."""

import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from startup import _COMMAND, timed
from timing import Row, best_of

import factorflow as ff
from factorflow._follow import follow
from factorflow.experiments import Experiment, RandomLowRankTask, run
from factorflow.papers import load_paper

CORES = 2


def measure() -> list[Row]:
    """Microseconds per run and iteration, gradients of high order, whole figures."""
    rows = [_peak()]
    for order, width, steps, target in ((3, 16, 3000, "7"), (4, 2, 150, "150")):
        for dtype in ("float64", "float32"):
            seconds = _descent(order, width, steps, dtype)
            name = f"descent, 8^{order}, all components, {dtype}: us per run and iteration"
            rows.append(Row(name, f"{1e6 * seconds:.3g}", target))
            rows.append(Row("  GFLOP/s in matrix products", f"{_flops(order) / seconds / 1e9:.0f}"))
    return rows + _high_order() + _figures()


def _flops(order: int) -> float:
    """Of the product, and of the gradients of both halves of its modes."""
    return 3 * 2.0 * 8**order * 8 ** (order - 1)


def _peak() -> Row:
    size = 1024
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((size, size)))
    multiply = jax.jit(lambda a: a @ a)
    multiply(matrix).block_until_ready()
    seconds = best_of(5, lambda: multiply(matrix).block_until_ready())
    return Row("a large matrix product, float64: GFLOP/s", f"{2 * size**3 / seconds / 1e9:.0f}")


def _descent(order: int, width: int, steps: int, dtype: str) -> float:
    """Two batches at once, as a sweep runs them."""
    shape = (8,) * order
    specs = [
        Experiment(
            task=RandomLowRankTask(
                shape=shape,
                rank=1,
                n_observed=8**order // 2,
                frobenius_norm=1.0,
                normalization="mean",
            ),
            factorization=ff.CP(shape),
            initializer=ff.Gaussian(factor_scale=1e-3),
            dynamics=ff.GradientDescent(ff.Optimizer("group_rmsprop", {"learning_rate": 1e-2})),
            observe=ff.AtEnd(),
            stop=ff.Stop(max_steps=steps),
            measures=["loss"],
            seed=seed,
            dtype=dtype,
        ).build()
        for seed in range(CORES * width)
    ]
    batches = [specs[width * k : width * (k + 1)] for k in range(CORES)]
    follow(batches[0], width)
    with ThreadPoolExecutor(CORES) as pool:
        seconds = best_of(3, lambda: list(pool.map(lambda batch: follow(batch, width), batches)))
    return seconds / (steps * len(specs))


def _high_order() -> list[Row]:
    order, batch = 784, 5000
    fz = ff.CP((2,) * order, rank=15)
    draw = np.random.default_rng(0)
    factors = tuple(jnp.asarray(f) for f in 1 + 0.05 * draw.standard_normal((order, 2, 15)))
    indices = jnp.asarray(draw.integers(0, 2, (batch, order)), jnp.int32)
    gradient = jax.jit(jax.grad(lambda f: jnp.mean((fz.entries(f, indices) - 1) ** 2)))
    start = time.perf_counter()
    jax.block_until_ready(gradient(factors))
    first = time.perf_counter() - start
    seconds = best_of(3, lambda: jax.block_until_ready(gradient(factors)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        Row("order 784, rank 15, batch 5000: s per gradient", f"{seconds:.2f}", "under 1"),
        Row("  first call, compilation included, s", f"{first:.1f}"),
        Row("  peak memory of this process so far, GB", f"{peak:.2f}", "under 2"),
    ]


def _figures() -> list[Row]:
    """Whole commands in fresh processes, and the runs alone once compiled."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, target in (
            ("tensor_order_3_rank_1", "under 10, and 10 for the baselines"),
            ("tensor_order_3_rank_3", "under 12, and 10 for the baselines"),
            ("tensor_order_4_rank_1", "under 60"),
            ("tensor_order_4_rank_3", "under 240"),
        ):
            out = ("--out", str(Path(scratch) / name), "--figure", name)
            seconds, _ = timed(_COMMAND, "reproduce", "razin_cohen_2020", "--no-progress", *out)
            rows.append(Row(f"{name} at paper scale, cold, s", f"{seconds:.1f}", target))
        figure = load_paper("razin_cohen_2020").figure("tensor_order_3_rank_1")
        wanted = figure.experiments("paper")
        seconds = 0.0
        for repetition in range(2):
            start = time.perf_counter()
            store = run(wanted, Path(scratch) / f"warm{repetition}", progress=False)
            for product in np.asarray(store.dataset(wanted)["product"])[:, 0]:
                ff.cp_rank(product, mse=1e-6)
            seconds = time.perf_counter() - start
        name = "  the runs of order 3, rank 1 and their ranks, once compiled, s"
        rows.append(Row(name, f"{seconds:.1f}", "under 2"))
    return rows
