"""Completion of a 100x100 matrix at depth 3: a stabilized flow against descent, in gradients."""

import functools
import math

import jax
import numpy as np
from timing import Row, best_of

import factorflow as ff
from factorflow._follow import follow
from factorflow._spec import prepare

LEVELS = (1e2, 1.0, 1e-2, 1e-4, 1e-6)
# Levels that a method limited by stability reaches in reasonable time.
EARLY = LEVELS[:3]
TOLERANCES = (1e-4, 1e-6, 1e-8)
MEASURES = ("loss", "product")
# Descent: steps of a trial of a rate, halvings of the bracket, and the most steps of the run.
TRIAL_STEPS, HALVINGS, MOST_STEPS = 2_000, 5, 100_000
UNSTABLE_RATE = 0.1


def measure() -> list[Row]:
    """Gradients and seconds to a loss of 1e-6, drift of the balance, agreement with Dopri8."""
    problem = ff.random_low_rank_problem(jax.random.key(0), (100, 100), rank=5, n_observed=2000)
    fz = ff.DeepMatrix((100, 100), depth=3)
    factors = ff.Balanced(product_scale=1e-3)(fz, jax.random.key(1))
    start = functools.partial(_spec, problem, fz, factors)

    truth, _ = _run(start(ff.GradientFlow("Dopri8", rtol=1e-10, atol=1e-12), EARLY))
    rate = _largest_stable_rate(start)
    descent, descent_seconds = _run(start(ff.GradientDescent(rate), LEVELS, MOST_STEPS))
    gradients, loss = (float(descent.stats[name]) for name in ("num_gradients", "loss"))
    rows = [
        Row("descent: largest stable rate", f"{rate:.4f}"),
        Row(f"  gradients to loss {loss:.0e}", f"{gradients:.0f}"),
        Row("  s", f"{descent_seconds:.1f}"),
    ]
    reached = bool(descent.reached[-1])
    for name, rtol in (*(("Stabilized", rtol) for rtol in TOLERANCES), ("RKC2", 1e-6)):
        flow = ff.GradientFlow(name, rtol=rtol, atol=rtol / 100)
        trajectory, seconds = _run(start(flow, LEVELS))
        _, unobserved = _run(start(flow, LEVELS[-1:]))
        count = float(trajectory.stats["num_gradients"])
        default = " (default)" if (name, rtol) == ("Stabilized", TOLERANCES[-1]) else ""
        # A descent that did not get there cost at least this much.
        more = "" if reached else "at least "
        rows += [
            Row(f"{name}, rtol {rtol:.0e}{default}: gradients to loss 1e-6", f"{count:.0f}"),
            Row("  s (with one row instead of five)", f"{seconds:.1f} ({unobserved:.1f})"),
            Row("  descent over it, gradients", f"{more}{gradients / count:.1f}x", "at least 10"),
            Row("  descent over it, s", f"{more}{descent_seconds / seconds:.1f}x", "at least 5"),
            Row("  drift of the balance, relative", f"{_drift(fz, factors, trajectory):.0e}"),
            Row(
                f"  distance to Dopri8, loss >= {EARLY[-1]:.0e}",
                f"{_distance(trajectory, truth):.0e}",
            ),
        ]
    return rows


def _spec(problem, fz, factors, dynamics, levels, most_steps=200_000):
    return prepare(
        problem,
        fz,
        dynamics,
        factors,
        observe=ff.AtLosses(levels),
        stop=ff.Stop(loss=levels[-1], max_steps=most_steps),
        measures=MEASURES,
    )


def _run(spec) -> tuple[ff.Trajectory, float]:
    """The trajectory and the seconds of one call; both methods pay for the same two lanes."""
    call = functools.partial(follow, [spec])
    trajectory, _ = call()
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), trajectory), best_of(2, call)


def _largest_stable_rate(start) -> float:
    """Bisection, in the logarithm, between a stable and an unstable rate."""
    stable, unstable = UNSTABLE_RATE, UNSTABLE_RATE
    while not _is_stable(start, stable):
        unstable, stable = stable, stable / 2
    for _ in range(HALVINGS):
        middle = math.sqrt(stable * unstable)
        if _is_stable(start, middle):
            stable = middle
        else:
            unstable = middle
    return stable


def _is_stable(start, rate: float) -> bool:
    spec = start(ff.GradientDescent(rate), EARLY, TRIAL_STEPS)
    trajectory, _ = follow([spec])
    return bool(np.asarray(trajectory.reached)[0, -1])


def _drift(fz, factors, trajectory) -> float:
    """The largest change of what the flow conserves, over the largest squared factor."""
    before, after = (fz.conserved(f) for f in (factors, trajectory.factors))
    moved = max(float(np.max(np.abs(b - a))) for a, b in zip(before, after, strict=True))
    return moved / max(float(np.linalg.norm(f, 2)) ** 2 for f in trajectory.factors)


def _distance(trajectory, truth) -> float:
    """Largest relative Frobenius distance of the products at the early levels."""
    ours, theirs = (t.measures["product"][: len(EARLY)] for t in (trajectory, truth))
    sizes = np.linalg.norm(theirs, axis=(1, 2))
    return float(np.max(np.linalg.norm(ours - theirs, axis=(1, 2)) / sizes))
