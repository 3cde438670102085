"""Starts of any scale that a dtype holds, and flows that would never end."""

import signal
import subprocess
import sys
import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import factorflow as ff
from runs import DTYPE, RAZIN_COHEN, X64, in_numpy

# The smallest lie a decade above the smallest normal number of the dtype.
SCALES = (1e-100, 1e-155, 1e-200, 1e-300) if X64 else (1e-10, 1e-20, 1e-30, 1e-37)
LEVEL = 0.5


def starts(fz: ff.DeepMatrix) -> list:
    return [
        ff.Balanced(product_scale=scale, determinant="positive")(fz, jax.random.key(0))
        for scale in SCALES
    ]


def followed(fz: ff.DeepMatrix, factors) -> ff.Trajectory:
    return ff.simulate(
        ff.razin_cohen_problem(),
        fz,
        ff.GradientFlow("spectral"),
        factors,
        observe=ff.AtLosses([LEVEL]),
        stop=ff.Stop(loss=LEVEL, max_steps=5000),
        measures=["entry[0,0]"],
    )


def reference(start) -> tuple[float, float]:
    """Time and corner entry at the level, from the factors themselves, which do not underflow."""
    first = in_numpy(start, np.dtype("float64"))
    shapes = [factor.shape for factor in first]

    def split(y):
        return tuple(
            part.reshape(shape) for part, shape in zip(np.split(y, 2), shapes, strict=True)
        )

    def velocity(_, y):
        return -np.concatenate([g.ravel() for g in RAZIN_COHEN.gradient(split(y))])

    def event(_, y):
        return RAZIN_COHEN.loss(split(y)) - LEVEL

    event.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    y = np.concatenate([factor.ravel() for factor in first])
    size = float(np.max(np.abs(y)))
    run = solve_ivp(velocity, (0, 1e4), y, "DOP853", events=event, rtol=1e-11, atol=1e-11 * size)
    outer, inner = split(run.y_events[0][0])[::-1]
    return float(run.t_events[0][0]), float((outer @ inner)[0, 0])


def test_balanced_flows_start_at_any_scale_that_the_dtype_holds():
    fz = ff.DeepMatrix((2, 2), depth=2)
    # A step's tolerance, times the steps; entries grow by 1e300 on the way.
    tolerance = 1e-7 if X64 else 1e-3
    for start in starts(fz):
        trajectory = followed(fz, start)
        time_reached, corner = reference(start)
        np.testing.assert_allclose(trajectory.times, [time_reached], rtol=tolerance)
        np.testing.assert_allclose(trajectory.measures["entry[0,0]"], [corner], rtol=tolerance)


@pytest.mark.skipif(not X64, reason="times of 1e100 are for double precision")
def test_deep_flows_leave_plateaus_that_dwarf_what_follows():
    r"""At depth 3 the field is homogeneous of degree 4/3 near zero: times go with `scale^(-1/3)`.

    In the end a step is 1e-100 of the time that has passed, and is taken all the same.
    """
    fz = ff.DeepMatrix((2, 2), depth=3)
    runs = [followed(fz, start) for start in starts(fz)]
    times = np.array([float(run.times[0]) for run in runs])
    law = np.array(SCALES) ** (-1 / 3)
    np.testing.assert_allclose(times / times[0], law / law[0], rtol=1e-7)
    corners = [float(run.measures["entry[0,0]"][0]) for run in runs]
    np.testing.assert_allclose(corners, corners[0], rtol=1e-7)


def test_what_the_dtype_does_not_hold_is_refused():
    fz = ff.DeepMatrix((2, 2), depth=2)
    tiny = float(jnp.finfo(DTYPE).tiny)
    start = ff.Balanced(product_scale=1e-3 * tiny)(fz, jax.random.key(0))
    with pytest.raises(ValueError, match="underflows"):
        followed(fz, start)


class Refused(diffrax.Tsit5):
    """Its error is never small enough."""

    def step(self, *args, **kwargs) -> Any:
        y, error, *rest = super().step(*args, **kwargs)
        return y, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), error), *rest


def observed(dynamics, **stop) -> ff.Trajectory:
    """A product of rank one, which a diagonal of 2 and 1 is never nearer to than a loss of 1/2."""
    problem = ff.Completion((2, 2), [(0, 0), (0, 1), (1, 0), (1, 1)], [2.0, 0.0, 0.0, 1.0])
    fz = ff.DeepMatrix((2, 2), depth=2, hidden=1)
    start = (jnp.asarray([[0.3, 0.1]]), jnp.asarray([[0.2], [0.1]]))
    limits = ff.Stop(loss=1e-2, **stop)
    return ff.simulate(
        problem, fz, dynamics, start, observe=ff.AtEnd(), stop=limits, measures=[], throw=False
    )


def test_steps_that_are_always_refused_end_the_run():
    trajectory = observed(ff.GradientFlow(Refused()), max_steps=10)
    # In single precision the size of a step that is refused so often underflows before.
    expected = "every_step_rejected" if X64 else "step_size_underflow"
    assert trajectory.result_name == expected
    assert int(trajectory.stats["num_steps"]) == 0


ENDLESS = """
import jax.numpy as jnp, os, factorflow as ff
problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=1)
for steps in 10, 2**31 - 1:
    print(steps, flush=True)
    try:
        ff.simulate(problem, fz, ff.GradientDescent(1e-12), (jnp.eye(2),), observe=ff.AtEnd(),
            stop=ff.Stop(max_steps=steps), measures=[])
    except KeyboardInterrupt:
        os._exit(130)  # the interpreter's own end, with what it has loaded, takes a while
"""


def test_a_long_compiled_run_is_interrupted():
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        # The second run is compiled already.
        assert [process.stdout.readline() for _ in range(2)] == ["10\n", f"{2**31 - 1}\n"]
        time.sleep(1)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert time.monotonic() - start < 2
    assert process.returncode == 130
