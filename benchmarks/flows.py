"""Flows of 2x2 products in charts: errors against trajectories of 20 digits, and costs."""

import functools
import json
import time
from pathlib import Path

import jax
import numpy as np
from timing import Row, best_of

import factorflow as ff
from factorflow._certify import follow_certified
from factorflow._follow import follow
from factorflow._spec import prepare

ORACLE = Path(__file__).parents[1] / "tests" / "data" / "oracle.json"
LEVELS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
MEASURES = ("loss", "entry[0,0]", "log_singular_values")
# Products of no symmetry, for depths that the oracle does not have.
GENERIC = {4: ((3e-3, 1e-3), (-2e-3, 4e-3)), 5: ((0.02, -0.01), (0.03, 0.04))}
REFERENCE_TOLERANCE = 1e-13


def measure() -> list[Row]:
    """Balanced and unbalanced 2x2 flows, one at a time and as a batch."""
    cases = {f"{case['case']}{case['L']}": case for case in json.loads(ORACLE.read_text())["cases"]}
    rows = [*_singles(cases), *_unbalanced(cases["e3"])]
    for depth in (2, 3, 4):
        rows += _batch(depth)
    return rows


def _spec(problem, fz, factors, dynamics, levels=LEVELS):
    return prepare(
        problem,
        fz,
        dynamics,
        factors,
        observe=ff.AtLosses(levels),
        stop=ff.Stop(loss=levels[-1], max_steps=20_000),
        measures=MEASURES,
    )


def _oracle_spec(case: dict):
    z, z_prime, eps = (float(case[name]) for name in ("z", "zp", "eps"))
    digits = "_25digits" if case["balanced"] else ""
    written = case[f"factors_W1_to_WL_rowmajor{digits}"]
    factors = tuple(np.asarray(rows, float).reshape(2, 2) for rows in written)
    problem = ff.razin_cohen_problem(z=z, z_prime=z_prime, eps=eps)
    return _spec(problem, ff.DeepMatrix((2, 2), case["L"]), factors, ff.GradientFlow())


def _single(spec) -> tuple[ff.Trajectory, float, float]:
    """What one call of `simulate` does, with its certificate; compile and run seconds."""
    call = functools.partial(follow_certified, [spec], 1)
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    seconds = best_of(20, call)
    trajectory = jax.tree.map(lambda leaf: np.asarray(leaf[0]), call())
    return trajectory, first - seconds, seconds


def _errors(trajectory, w11, log_sigma, times) -> tuple[float, float, float]:
    """Largest relative errors over the rows."""
    measured = (
        trajectory.measures["entry[0,0]"],
        trajectory.measures["log_singular_values"][:, 1],
        trajectory.times,
    )
    pairs = zip(measured, (w11, log_sigma, times), strict=True)
    entry, sigma, time_ = (float(np.max(np.abs(got / true - 1))) for got, true in pairs)
    return entry, sigma, time_


def _truth(case: dict) -> list[np.ndarray]:
    by_loss = {float(row["loss"]): row for row in case["rows"]}
    names = ("w11", "log_sigma2", "t")
    return [np.array([float(by_loss[level][name]) for level in LEVELS]) for name in names]


def _singles(cases: dict[str, dict]) -> list[Row]:
    rows, seconds, compiled = [], [], []
    for name in ("a2", "a3", "b3", "c2", "d3"):
        jax.clear_caches()  # each pays for its compilation, though some share it
        trajectory, compilation, best = _single(_oracle_spec(cases[name]))
        errors = _errors(trajectory, *_truth(cases[name]))
        time_target = "5e-9" if name in ("c2", "d3") else "1e-9"
        rows += _accuracy(f"spectral {name}", errors, time_target)
        seconds.append(best)
        compiled.append(compilation)
    for depth, product in GENERIC.items():
        jax.clear_caches()
        problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth)
        factors = ff.balanced_factors(fz, np.asarray(product))
        trajectory, compilation, best = _single(_spec(problem, fz, factors, ff.GradientFlow()))
        finer = ff.GradientFlow(rtol=REFERENCE_TOLERANCE)
        reference, _, _ = _single(_spec(problem, fz, factors, finer))
        truth = reference.measures["entry[0,0]"], reference.measures["log_singular_values"][:, 1]
        errors = _errors(trajectory, *truth, reference.times)
        rows += _accuracy(f"spectral generic depth {depth}, against 1e-13", errors, "1e-9")
        seconds.append(best)
        compiled.append(compilation)
    milliseconds = f"{1e3 * np.median(seconds):.1f} ({1e3 * max(seconds):.1f})"
    rows.append(Row("spectral to 1e-12, one call: ms, median (most)", milliseconds, "at most 30"))
    compilation = f"{np.median(compiled):.1f} ({max(compiled):.1f})"
    rows.append(Row("  compilation: s, median (most)", compilation, "at most 5"))
    return rows


def _accuracy(name: str, errors: tuple[float, float, float], time_target: str) -> list[Row]:
    measured = " / ".join(f"{error:.0e}" for error in errors)
    label = f"{name}: error of w11 / log sigma_2 / t"
    return [Row(label, measured, f"at most 1e-11 / 1e-10 / {time_target}")]


def _unbalanced(case: dict) -> list[Row]:
    trajectory, compilation, seconds = _single(_oracle_spec(case))
    entry, _, time_ = _errors(trajectory, *_truth(case))
    chosen = trajectory.stats["integrator"]
    return [
        Row(f"unbalanced e3 ({chosen}): error of w11", f"{entry:.0e}", "at most 1e-10"),
        Row("  error of t", f"{time_:.0e}"),
        Row("  one call, ms", f"{1e3 * seconds:.1f}"),
        Row("  compilation, s", f"{compilation:.1f}"),
    ]


def _batch(depth: int) -> list[Row]:
    problem, fz, runs = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth), 256
    start = ff.Balanced(product_scale=1e-3, determinant="positive")
    keys = map(jax.random.key, range(runs))
    specs = [_spec(problem, fz, start(fz, key), ff.GradientFlow()) for key in keys]
    call = functools.partial(follow, specs, runs)
    trajectory, _ = call()
    failures = int(np.sum(~np.asarray(trajectory.reached)[:, -1]))
    milliseconds = 1e3 * best_of(3, call) / runs
    name = f"spectral batch of {runs}, depth {depth}"
    return [
        Row(f"{name}: ms per run", f"{milliseconds:.1f}", "at most 15"),
        Row("  runs that failed", f"{failures}", "0"),
    ]
