"""Rows and endings of `simulate`, against plain loops over the same steps."""

import numpy as np
import pytest

import factorflow as ff
from runs import (
    DTYPE,
    EPS,
    GENERIC,
    NEVER,
    RAZIN_COHEN,
    assert_ulps,
    compose,
    descend,
    flow,
    in_numpy,
    integrate,
    limits,
    on_device,
    steps_of,
)
from tolerances import assert_close

PROBLEM = ff.razin_cohen_problem()
FZ = ff.DeepMatrix((2, 2), depth=2)
START = in_numpy([[[0.9, 0.2], [-0.1, 0.8]], [[0.6, 0.7], [0.5, -0.2]]])
RATE = 0.05
# Near the saddle at zero: steps grow there, and shrink again when the loss falls.
PLATEAU = in_numpy(ff.balanced_factors(FZ, GENERIC.astype(DTYPE)))
PATH = steps_of(descend(RAZIN_COHEN, START, RATE), 60)
LOSSES = [RAZIN_COHEN.loss(factors) for factors in PATH]
NORMS = [RAZIN_COHEN.gradient_norm(factors) for factors in PATH]
# Per step some ten roundings, which this contracting descent does not amplify.
ULPS = 10 * len(PATH)

BOTH = {"descent": ff.GradientDescent(RATE), "flow": flow()}
both = pytest.mark.parametrize("dynamics", BOTH.values(), ids=BOTH)


def run(dynamics, observe, stop=None, factors=START, **options) -> ff.Trajectory:
    return ff.simulate(
        PROBLEM,
        FZ,
        dynamics,
        on_device(factors),
        observe=observe,
        stop=limits() if stop is None else stop,
        measures=["loss", "product"],
        **options,
    )


def descent(observe, stop=None, rate=RATE, **options) -> ff.Trajectory:
    return run(ff.GradientDescent(rate), observe, stop, **options)


def between(values, index) -> float:
    """Passed from step `index` on, and not one step before."""
    return float(values[index - 1] + values[index]) / 2


def first_at_or_below(level: float) -> int:
    return next(step for step, loss in enumerate(LOSSES) if loss <= level)


# --- Rows of descent


def test_descent_at_steps():
    steps = [0, 1, 7, 40]
    trajectory = descent(ff.AtSteps(steps), limits(max_steps=60))
    assert trajectory.reached.all()
    assert trajectory.steps.tolist() == trajectory.levels.tolist() == steps
    assert_ulps(trajectory.measures["product"], [compose(PATH[step]) for step in steps], ULPS)
    assert_ulps(trajectory.measures["loss"], [LOSSES[step] for step in steps], ULPS)
    # A sum of up to 40 equal terms.
    assert_ulps(trajectory.times, RATE * np.array(steps), 40)


def test_descent_at_losses_takes_the_first_step_at_or_below():
    levels = [LOSSES[0], between(LOSSES, 1), between(LOSSES, 9), between(LOSSES, 30)]
    trajectory = descent(ff.AtLosses(levels), limits(loss=levels[-1]))
    assert trajectory.steps.tolist() == [0, 1, 9, 30]
    assert_ulps(trajectory.measures["loss"], [LOSSES[s] for s in (0, 1, 9, 30)], ULPS)


def test_descent_at_times_takes_the_first_step_at_or_past():
    trajectory = descent(ff.AtTimes([0.0, 0.5 * RATE, 7.9 * RATE, 8.1 * RATE]))
    assert trajectory.steps.tolist() == [0, 1, 8, 9]
    assert_ulps(trajectory.times, RATE * trajectory.steps, 9)


def test_a_jump_over_several_levels_repeats_the_row():
    rate = 0.4
    before, after = (RAZIN_COHEN.loss(f) for f in steps_of(descend(RAZIN_COHEN, START, rate), 1))
    levels = np.geomspace(before, after, 6)[1:5]
    assert after < before / 3
    trajectory = descent(ff.AtLosses(levels), rate=rate)
    assert trajectory.steps.tolist() == [1, 1, 1, 1]
    for rows in (trajectory.times, *trajectory.measures.values()):
        np.testing.assert_array_equal(rows, np.broadcast_to(rows[0], rows.shape))


@both
def test_levels_above_the_initial_loss_give_the_initial_state(dynamics):
    levels = [1e3, 2 * LOSSES[0], 1.01 * LOSSES[0], 0.9 * LOSSES[0]]
    trajectory = run(dynamics, ff.AtLosses(levels))
    assert trajectory.reached.all()
    assert trajectory.steps[:3].tolist() == [0, 0, 0]
    assert trajectory.times[:3].tolist() == [0, 0, 0]
    assert_ulps(trajectory.measures["product"][:3], [compose(START)] * 3, 4)
    assert trajectory.steps[3] > 0


@both
def test_unreached_rows_are_blank(dynamics):
    levels = [0.5 * LOSSES[0], 0.1 * LOSSES[0], 2 * NEVER, NEVER]
    trajectory = run(dynamics, ff.AtLosses(levels), limits(loss=0.05 * LOSSES[0]))
    assert trajectory.result_name == "loss_reached"
    assert trajectory.reached.tolist() == [True, True, False, False]
    assert trajectory.steps[2:].tolist() == [-1, -1]
    for rows in (trajectory.times, *trajectory.measures.values()):
        assert np.isnan(rows[2:]).all()
        assert np.isfinite(rows[:2]).all()


# --- Rows of a flow


def test_flow_at_times_is_exact():
    times = np.array([0.0, 0.25, 1.0, 3.0], DTYPE)
    trajectory = run(flow(), ff.AtTimes(times), limits(max_time=3.0))
    np.testing.assert_array_equal(trajectory.times, times)
    expected = [compose(factors) for factors in integrate(RAZIN_COHEN, START, times)]
    # Local tolerances of 1e-9 and 1e-5 over some tens of contracting steps.
    assert_close(trajectory.measures["product"], expected, "integration")


def test_flow_at_losses_hits_the_level_to_rounding():
    levels = np.array([0.9, 0.5, 0.1, 0.02], DTYPE) * DTYPE.type(LOSSES[0])
    trajectory = run(flow(), ff.AtLosses(levels))
    # Time is found to 4 ulp in the logarithm of the loss, the loss itself rounds by as much.
    np.testing.assert_allclose(trajectory.measures["loss"], levels, rtol=16 * EPS)
    for time, product in zip(trajectory.times, trajectory.measures["product"], strict=True):
        assert_close(product, compose(*integrate(RAZIN_COHEN, START, time)), "integration")


def test_levels_within_one_step_of_a_flow_get_rows_of_their_own():
    # The first step goes a hundredth of the state's own time scale.
    levels = LOSSES[0] * (1 - 1e-3 * np.arange(1, 5))
    trajectory = run(flow(), ff.AtLosses(levels))
    assert trajectory.steps.tolist() == [1, 1, 1, 1]
    assert np.all(np.diff(trajectory.times) > 0)
    np.testing.assert_allclose(trajectory.measures["loss"], levels, rtol=16 * EPS)


def test_flow_at_steps():
    trajectory = run(flow(), ff.AtSteps([0, 1, 2, 5]), limits(max_steps=5))
    assert trajectory.steps.tolist() == [0, 1, 2, 5]
    assert trajectory.stats["num_steps"] == 5
    assert trajectory.times[0] == 0
    assert np.all(np.diff(trajectory.times) > 0)
    assert trajectory.times[-1] == trajectory.stats["time"]


# --- Log-spaced rows


def test_log_spaced_times_end_at_the_limit():
    trajectory = descent(ff.LogSpaced(4, first=1e-2), ff.Stop(max_time=1.5))
    assert trajectory.observed_at == "time"
    assert trajectory.reached.all()
    # 0.015, 0.07, 0.32 and 1.5, each at the first step past it.
    assert trajectory.steps.tolist() in ([1, 2, 7, 30], [1, 2, 7, 31])
    assert trajectory.times[-1] == trajectory.stats["time"] >= 1.5
    assert trajectory.result_name == "time_limit_reached"


def test_log_spaced_steps_end_at_the_limit():
    trajectory = descent(ff.LogSpaced(4), limits(max_steps=60))
    assert trajectory.observed_at == "step"
    assert trajectory.steps.tolist() == [1, 4, 15, 60]


# --- Endings


def test_observations_complete_where_no_limit_is_named():
    trajectory = descent(ff.AtSteps([1, 2, 3, 4]), ff.Stop())
    assert trajectory.result_name == "observations_complete"
    assert trajectory.stats["num_steps"] == 4


@both
def test_a_named_limit_outlasts_the_rows(dynamics):
    trajectory = run(dynamics, ff.AtSteps([1, 2, 3, 4]), limits(max_steps=6))
    assert trajectory.result_name == "step_limit_reached"
    assert trajectory.stats["num_steps"] == 6
    assert trajectory.reached.all()


@pytest.mark.parametrize(
    ("names", "ending"),
    [
        (("max_steps",), "step_limit_reached"),
        (("gradient_norm",), "gradient_norm_reached"),
        (("max_time",), "time_limit_reached"),
        (("loss",), "loss_reached"),
        (("gradient_norm", "max_steps"), "gradient_norm_reached"),
        (("max_time", "max_steps"), "time_limit_reached"),
        (("max_time", "gradient_norm"), "time_limit_reached"),
        (("loss", "max_steps"), "loss_reached"),
        (("loss", "max_time", "gradient_norm", "max_steps"), "loss_reached"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_the_ending_of_descent_and_what_comes_first(names, ending):
    step = 20
    stop = {
        "loss": between(LOSSES, step),
        "gradient_norm": between(NORMS, step),
        "max_time": (step - 0.5) * RATE,
        "max_steps": step,
    }
    trajectory = descent(ff.AtSteps([0, 19, 20, 21]), limits(**{n: stop[n] for n in names}))
    assert trajectory.result_name == ending
    assert trajectory.stats["num_steps"] == step
    assert trajectory.reached.tolist() == [True, True, True, False]
    for factor, expected in zip(trajectory.factors, PATH[step], strict=True):
        assert_ulps(factor, expected, ULPS)


def test_a_flow_ends_at_the_level_or_time_that_comes_first():
    level = 0.1 * LOSSES[0]
    levels = [0.5 * LOSSES[0], 0.2 * LOSSES[0], level, 0.5 * level]
    at_loss = run(flow(), ff.AtLosses(levels), limits(loss=level))
    assert at_loss.result_name == "loss_reached"
    assert at_loss.reached.tolist() == [True, True, True, False]
    np.testing.assert_allclose(at_loss.stats["loss"], level, rtol=16 * EPS)
    moment = float(at_loss.stats["time"])
    # Both within the step in which the level is crossed.
    for shift, ending in [(-1e-3, "time_limit_reached"), (1e-3, "loss_reached")]:
        stop = limits(loss=level, max_time=moment * (1 + shift))
        trajectory = run(flow(), ff.AtLosses(levels), stop)
        assert trajectory.result_name == ending
        assert trajectory.reached.tolist() == [True, True, shift > 0, False]
        end = min(moment, float(np.asarray(stop.max_time, DTYPE)))
        np.testing.assert_allclose(trajectory.stats["time"], end, rtol=100 * EPS)


@pytest.mark.parametrize("max_time", [0.7, 1.3])
def test_rows_of_a_flow_past_its_end_are_unreached(max_time):
    end = DTYPE.type(max_time)
    at_times = run(flow(), ff.AtTimes([0.5, max_time, max_time + 1e-3, 2]), limits(max_time=end))
    assert at_times.reached.tolist() == [True, True, False, False]
    assert at_times.stats["time"] == end
    # The step that is cut at the end is no row either.
    times = run(flow(), ff.AtSteps([1, 2, 3, 4]), limits(max_steps=4)).times
    cut = (times[1] + times[2]) / 2
    at_steps = run(flow(), ff.AtSteps([1, 2, 3, 4]), limits(max_time=float(cut)))
    assert at_steps.reached.tolist() == [True, True, False, False]
    assert at_steps.stats["time"] == cut
    assert at_steps.result_name == "time_limit_reached"


@both
def test_final_factors_have_the_final_loss(dynamics):
    for stop in (limits(loss=0.1 * LOSSES[0]), limits(max_time=0.77), limits(max_steps=7)):
        trajectory = run(dynamics, ff.AtLosses([0.9, 0.7, 0.5, 0.3]), stop)
        assert_ulps(RAZIN_COHEN.loss(in_numpy(trajectory.factors)), trajectory.stats["loss"], 32)


def stops_at(losses, norms, *, loss, gradient_norm, every, patience) -> int:
    """The step at which a plain loop would stop."""
    passed = 0
    for step, (value, norm) in enumerate(zip(losses, norms, strict=True)):
        if step % every == 0:
            passed = passed + 1 if value <= loss or norm <= gradient_norm else 0
        if passed == patience:
            return step
    raise AssertionError("never stops")


@pytest.mark.parametrize(("every", "patience"), [(1, 1), (1, 3), (3, 2)])
def test_checks_are_counted_as_by_a_plain_loop(every, patience):
    # At this rate the loss zigzags: it falls below a level and rises above it again.
    rate, level = 0.9, 0.035
    path = steps_of(descend(RAZIN_COHEN, START, rate), 60)
    losses = [RAZIN_COHEN.loss(factors) for factors in path]
    norms = [RAZIN_COHEN.gradient_norm(factors) for factors in path]
    assert losses[5] < level < losses[6]
    expected = {}
    for name, limit in [("loss", level), ("gradient_norm", between(norms, 9))]:
        only = {"loss": 0.0, "gradient_norm": 0.0, name: limit}
        expected[name] = stops_at(losses, norms, **only, every=every, patience=patience)
        stop = limits(**{name: limit}, every=every, patience=patience)
        trajectory = descent(ff.AtSteps([0, 1, 2, 3]), stop, rate=rate)
        assert trajectory.result_name == f"{name}_reached"
        assert trajectory.stats["num_steps"] == expected[name]
    assert expected["loss"] == {(1, 1): 5, (1, 3): 9, (3, 2): 12}[every, patience]


def test_rejected_steps_of_a_flow_are_not_checked_again():
    at_steps = ff.AtSteps([0, 1, 2, 3])

    def to(max_steps: int) -> ff.Trajectory:
        return run(flow(), at_steps, limits(max_steps=max_steps), factors=PLATEAU)

    runs = [to(step) for step in range(1, 80)]
    rejected = [int(trajectory.stats["num_rejected"]) for trajectory in runs]
    # The step from `runs[index]` to the next takes several attempts, and the loss falls before it.
    index = next(i for i in range(1, len(runs) - 1) if rejected[i + 1] > rejected[i])
    losses = [float(trajectory.stats["loss"]) for trajectory in runs]
    assert losses[index] < losses[index - 1]
    stop = ff.Stop(loss=between(losses, index), patience=2)
    trajectory = run(flow(), at_steps, stop, factors=PLATEAU)
    assert trajectory.result_name == "loss_reached"
    # The end of the second step, not the place of the level that was passed before.
    assert trajectory.stats == runs[index + 1].stats


# --- Failures


def test_an_unstable_rate_fails_with_a_remedy_or_keeps_the_rows_before():
    observe = ff.AtSteps([0, 1, 2, 60])
    with pytest.raises(RuntimeError, match=r"Lower the learning rate.*ended after") as error:
        descent(observe, rate=5.0)
    assert "`throw=False` returns the rows so far" in str(error.value)
    trajectory = descent(observe, rate=5.0, throw=False)
    assert trajectory.result_name == "loss_nonfinite"
    assert trajectory.reached.tolist() == [True, True, True, False]
    for rows in (trajectory.times, *trajectory.measures.values()):
        assert np.isfinite(rows[:3]).all()
        assert np.isnan(rows[3]).all()
    expected = [RAZIN_COHEN.loss(f) for f in steps_of(descend(RAZIN_COHEN, START, 5.0), 2)]
    # Each unstable step multiplies rounding by what it multiplies the state by, some hundreds.
    np.testing.assert_allclose(trajectory.measures["loss"][:3], expected, rtol=1e4 * EPS)


def test_progress_is_told():
    lines: list[str] = []
    descent(ff.AtSteps([0, 1, 2, 3]), limits(max_steps=3), progress_meter=lines.append)
    assert lines == ["following 4 rows", "ended: step_limit_reached"]
