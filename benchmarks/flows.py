"""Certified flows: accuracy against high-precision trajectories, time, and steps."""

import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import Row, best_of

import factorflow as ff
from factorflow._certify import follow_certified
from factorflow._follow import follow
from factorflow._spec import prepare

LEVELS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
ORACLE = Path(__file__).parents[1] / "tests" / "data" / "oracle.json"
MEASURES = ["loss", "product", "log_singular_values"]


def measure() -> list[Row]:
    """Everything, each part in its own rows."""
    return [*_reference(), *_batch(), *_square(), *_completion()]


def _cases() -> list[dict]:
    return json.loads(ORACLE.read_text())["cases"]


def _spec(case: dict):
    key = "factors_W1_to_WL_rowmajor" + ("_25digits" if case["balanced"] else "")
    factors = tuple(jnp.asarray([float(x) for x in w]).reshape(2, 2) for w in case[key])
    return prepare(
        ff.razin_cohen_problem(
            z=float(case["z"]), z_prime=float(case["zp"]), eps=float(case["eps"])
        ),
        ff.DeepMatrix((2, 2), case["L"]),
        ff.GradientFlow(),
        factors,
        observe=ff.AtLosses(LEVELS),
        stop=ff.Stop(loss=LEVELS[-1]),
        measures=MEASURES,
    )


def _reference() -> list[Row]:
    rows, singles = [], []
    for case in _cases():
        spec = _spec(case)
        trajectory = follow_certified([spec], 1)
        seconds = best_of(5, functools.partial(follow_certified, [spec], 1))
        singles.append(seconds)
        truth = [row for row in case["rows"] if float(row["loss"]) >= 0.9 * LEVELS[-1]]

        def error(values, name, truth=truth):
            known = np.array([float(row[name]) for row in truth])
            return np.max(np.abs(np.asarray(values) / known - 1))

        entry = error(trajectory.measures["product"][0, :, 0, 0], "w11")
        sigma = error(trajectory.measures["log_singular_values"][0, :, 1], "log_sigma2")
        moment = error(trajectory.times[0], "t")
        limit = "5e-9" if case["case"] in "cd" else "1e-9"
        target = f"1e-11, 1e-10, {limit}" if case["balanced"] else "1e-10 (entry)"
        rows.append(
            Row(
                f"case {case['case']}{case['L']} ({trajectory.integrator}), errors of entry, "
                "log sigma_2, time",
                f"{entry:.0e} {sigma:.0e} {moment:.0e}",
                target,
            )
        )
        rows.append(Row("  ms, companion and certificate included", f"{1e3 * seconds:.1f}"))
    median = f"{1e3 * np.median(singles):.1f}"
    return [*rows, Row("median ms per certified trajectory to 1e-12", median, "at most 30")]


def _random(depth: int, runs: int) -> list:
    fz, start = ff.DeepMatrix((2, 2), depth), ff.Balanced(1e-3, determinant="positive")
    return [
        prepare(
            ff.razin_cohen_problem(),
            fz,
            ff.GradientFlow(),
            start(fz, jax.random.key(seed)),
            observe=ff.AtLosses(LEVELS),
            stop=ff.Stop(loss=LEVELS[-1]),
            measures=MEASURES,
        )
        for seed in range(runs)
    ]


def _batch() -> list[Row]:
    rows = []
    for depth in (2, 3, 4, 5):
        specs = _random(depth, 256)
        start = time.perf_counter()
        follow(specs[:1])
        first = time.perf_counter() - start
        single = best_of(5, functools.partial(follow, specs[:1]))
        follow(specs)
        seconds = best_of(2, functools.partial(follow, specs))
        failed = int(np.sum(~follow(specs)[0].reached[:, -1]))
        name = f"depth {depth}, 256 random starts to 1e-12"
        rows += [
            Row(f"{name}: ms per run; failures", f"{1e3 * seconds / 256:.1f}; {failed}", "15; 0"),
            Row("  one run, ms", f"{1e3 * single:.1f}", "at most 30"),
            Row("  first call: trace, compile and run, s", f"{first:.1f}", "compile under 5"),
        ]
    return rows


def _square() -> list[Row]:
    rows = []
    for dim in (3, 5, 10):
        for depth in (2, 3, 4):
            fz = ff.DeepMatrix((dim, dim), depth)
            start = ff.Balanced(1e-3, determinant="positive")(fz, jax.random.key(0))
            spec = prepare(
                ff.razin_cohen_problem(dim),
                fz,
                ff.GradientFlow(),
                start,
                observe=ff.AtLosses(LEVELS[:4]),
                stop=ff.Stop(loss=LEVELS[3]),
                measures=MEASURES,
            )
            follow([spec])
            clock = time.perf_counter()
            trajectory, _ = follow([spec])
            seconds = time.perf_counter() - clock
            r = np.sqrt(2 * LEVELS[3])
            over = abs(float(trajectory.measures["product"][0, -1, 0, 0])) / (1 / r - r) - 1
            steps = int(trajectory.counters["num_steps"][0])
            figures = f"{seconds:.1f} s, {steps} steps, {over:.1e}"
            rows.append(Row(f"d = {dim}, depth {depth} to 1e-8; entry over bound - 1", figures))
    return rows


def _completion() -> list[Row]:
    problem = ff.random_low_rank_problem(jax.random.key(0), (100, 100), rank=5, n_observed=2000)
    fz = ff.DeepMatrix((100, 100), 3)
    start = ff.Balanced(product_scale=1e-3)(fz, jax.random.key(1))

    def spec(dynamics, loss, steps=None):
        return prepare(
            problem,
            fz,
            dynamics,
            start,
            observe=ff.AtLosses([1e2, 1.0, 1e-2, 1e-4, loss]),
            stop=ff.Stop(loss=loss, max_steps=steps),
            measures=["loss", "balancedness_gap"],
        )

    flow = spec(ff.GradientFlow("RKC2", rtol=1e-4, atol=1e-6), 1e-6)
    ended, seconds = _timed(flow)
    gradients = int(ended.counters["num_gradients"][0])
    drift = float(ended.measures["balancedness_gap"][0, -1])
    rate = _largest_rate(spec)
    # Long enough to be past the plateaus; the loss still to go is said beside it.
    steps = 40_000
    descended, slow = _timed(spec(ff.GradientDescent(rate), 1e-6, steps))
    left = float(descended.counters["loss"][0])
    name = "100x100, depth 3, 2000 observed, to 1e-6"
    return [
        Row(f"{name}: RKC2 gradients, s", f"{gradients}, {seconds:.1f}"),
        Row("  balancedness gap at the end", f"{drift:.1e}"),
        Row(
            f"  descent at rate {rate:.2e}: loss after {steps} gradients, s",
            f"{left:.1e}, {slow:.1f}",
        ),
        Row(
            "  gradients, time over RKC2, at least",
            f"{steps / gradients:.1f}x, {slow / seconds:.1f}x",
            "10x, 5x",
        ),
    ]


def _timed(spec):
    follow([spec])
    clock = time.perf_counter()
    trajectory, _ = follow([spec])
    return trajectory, time.perf_counter() - clock


def _largest_rate(spec) -> float:
    """Up to 10%, the largest learning rate at which 3000 steps lower the loss and stay finite."""
    low, high = 1e-5, 1.0
    initial = float(_timed(spec(ff.GradientDescent(low), 1e-6, 1))[0].counters["loss"][0])
    while high / low > 1.1:
        middle = float(np.sqrt(low * high))
        trajectory, _ = follow([spec(ff.GradientDescent(middle), 1e-6, 3000)])
        loss = float(trajectory.counters["loss"][0])
        stable = np.isfinite(loss) and loss < initial
        low, high = (middle, high) if stable else (low, middle)
    return low
