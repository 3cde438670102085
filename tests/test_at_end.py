"""One row where the run ends, whatever ends it: the moment that the run's summary is about."""

import json

import jax
import numpy as np
import pytest

import factorflow as ff
from experiments.common import base
from factorflow._follow import follow
from factorflow._spec import prepare
from factorflow.experiments import Experiment, RandomLowRankTask, Store, run
from factorflow.experiments.codec import decode, encode
from runs import (
    DTYPE,
    EPS,
    RAZIN_COHEN,
    assert_ulps,
    compose,
    descend,
    flow,
    in_numpy,
    limits,
    on_device,
    steps_of,
)

PROBLEM = ff.razin_cohen_problem()
FZ = ff.DeepMatrix((2, 2), depth=2)
START = in_numpy([[[0.9, 0.2], [-0.1, 0.8]], [[0.6, 0.7], [0.5, -0.2]]])
RATE = 0.05
PATH = steps_of(descend(RAZIN_COHEN, START, RATE), 60)
LOSSES = [RAZIN_COHEN.loss(factors) for factors in PATH]
NORMS = [RAZIN_COHEN.gradient_norm(factors) for factors in PATH]
MEASURES = ["loss", "product", "balancedness_gap"]
# Per step some ten roundings, which this contracting descent does not amplify.
ULPS = 10 * len(PATH)


def end(dynamics, stop, start=START, observe=None, **options) -> ff.Trajectory:
    return ff.simulate(
        PROBLEM,
        FZ,
        dynamics,
        on_device(start),
        observe=ff.AtEnd() if observe is None else observe,
        stop=stop,
        measures=MEASURES,
        **options,
    )


def assert_row_is_the_end(trajectory: ff.Trajectory) -> None:
    assert trajectory.observed_at == "end"
    assert trajectory.reached.tolist() == [True]
    assert np.isnan(trajectory.levels).tolist() == [True]
    assert trajectory.times.tolist() == [trajectory.stats["time"]]
    assert trajectory.steps.tolist() == [trajectory.stats["num_steps"]]
    assert trajectory.measures["loss"].tolist() == [trajectory.stats["loss"]]
    factors = in_numpy(trajectory.factors)
    assert_ulps(trajectory.measures["product"][0], compose(factors), 4)
    assert_ulps(trajectory.measures["loss"][0], RAZIN_COHEN.loss(factors), 32)
    (gap,) = (np.linalg.norm(b.T @ b - a @ a.T, 2) for a, b in [factors])
    np.testing.assert_allclose(trajectory.measures["balancedness_gap"][0], gap, rtol=1e4 * EPS)


@pytest.mark.parametrize(
    ("limit", "ending"),
    [
        ({"max_steps": 20}, "step_limit_reached"),
        ({"loss": (LOSSES[19] + LOSSES[20]) / 2}, "loss_reached"),
        ({"gradient_norm": (NORMS[19] + NORMS[20]) / 2}, "gradient_norm_reached"),
        ({"max_time": 19.5 * RATE}, "time_limit_reached"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_of_descent(limit, ending):
    trajectory = end(ff.GradientDescent(RATE), limits(**limit))
    assert trajectory.result_name == ending
    assert trajectory.stats["num_steps"] == 20
    assert_row_is_the_end(trajectory)
    for factor, expected in zip(trajectory.factors, PATH[20], strict=True):
        assert_ulps(factor, expected, ULPS)


@pytest.mark.parametrize(("every", "patience", "step"), [(1, 1, 5), (1, 3, 9), (3, 2, 12)])
def test_of_descent_that_must_hold_its_loss(every, patience, step):
    # The zigzag of `test_simulate`: below the level at 5, above it again, below it to stay.
    rate, level = 0.9, 0.035
    trajectory = end(ff.GradientDescent(rate), limits(loss=level, every=every, patience=patience))
    assert trajectory.result_name == "loss_reached"
    assert trajectory.steps.tolist() == [step]
    assert_row_is_the_end(trajectory)
    path = steps_of(descend(RAZIN_COHEN, START, rate), step)
    # Each zigzag multiplies rounding by some units.
    expected = compose(path[-1])
    np.testing.assert_allclose(trajectory.measures["product"][0], expected, atol=1e4 * EPS)


@pytest.mark.parametrize(
    ("limit", "ending", "observe"),
    [
        ({"loss": 0.1 * LOSSES[0]}, "loss_reached", ff.AtLosses([0.1 * LOSSES[0]])),
        ({"max_time": 1.25}, "time_limit_reached", ff.AtTimes([1.25])),
        ({"max_steps": 7}, "step_limit_reached", ff.AtSteps([7])),
    ],
    ids=["loss", "time", "steps"],
)
def test_of_a_flow(limit, ending, observe):
    """The row lies at the level or time itself, not at the end of the step that passed it."""
    trajectory = end(flow(), limits(**limit))
    assert trajectory.result_name == ending
    assert_row_is_the_end(trajectory)
    if "loss" in limit:
        np.testing.assert_allclose(trajectory.stats["loss"], limit["loss"], rtol=16 * EPS)
    if "max_time" in limit:
        assert trajectory.times.tolist() == [DTYPE.type(1.25)]
    # The same run, observed where it is known to end.
    known = end(flow(), limits(**limit), observe=observe)
    for name in MEASURES:
        assert_ulps(trajectory.measures[name], known.measures[name], 64)
    np.testing.assert_allclose(trajectory.times, known.times, rtol=64 * EPS)


def test_of_a_flow_with_patience_is_a_step():
    stop = ff.Stop(loss=0.3 * LOSSES[0], patience=3)
    trajectory = end(flow(), stop)
    assert trajectory.result_name == "loss_reached"
    assert_row_is_the_end(trajectory)
    assert trajectory.stats["loss"] < 0.3 * LOSSES[0]


@pytest.mark.parametrize("kind", ["descent", "flow"])
def test_of_a_start_that_has_arrived(kind):
    dynamics = ff.GradientDescent(RATE) if kind == "descent" else flow()
    trajectory = end(dynamics, limits(loss=2 * LOSSES[0]))
    assert trajectory.result_name == "loss_reached"
    assert trajectory.steps.tolist() == trajectory.times.tolist() == [0]
    assert_row_is_the_end(trajectory)


def test_of_a_failed_run_is_no_row():
    with pytest.raises(RuntimeError, match=r"Lower the learning rate.*ended after"):
        end(ff.GradientDescent(5.0), limits(max_steps=60))
    trajectory = end(ff.GradientDescent(5.0), limits(max_steps=60), throw=False)
    assert trajectory.result_name == "loss_nonfinite"
    assert trajectory.reached.tolist() == [False]
    assert trajectory.steps.tolist() == [-1]
    for values in (trajectory.times, *trajectory.measures.values()):
        assert np.isnan(values).all()


@pytest.mark.parametrize("certify", ["cheap", "full"])
def test_its_certificate_compares_the_ends_of_runs(certify):
    """The flow beside a descent is asked where descent was when it ended."""
    start = in_numpy(ff.Balanced(product_scale=0.5)(FZ, jax.random.key(0)))
    stop = ff.Stop(max_steps=200)
    trajectory = end(ff.GradientDescent(2e-3), stop, start, certify=certify)
    evidence = trajectory.certificate.evidence
    assert trajectory.certificate.contradicted.tolist() == [False]
    assert trajectory.certificate.verdict in ("unverified", "flow_faithful")
    # First order: a step of 2e-3 errs by a thousandth and less.
    assert (evidence["flow_error"] < 1e-3) == (certify == "full")
    assert (evidence["companion_error"] < 1e-2) == (certify == "full")


def test_a_flow_is_certified_at_its_end():
    start = in_numpy(ff.Balanced(product_scale=0.5)(FZ, jax.random.key(0)))
    trajectory = end(ff.GradientFlow(), ff.Stop(loss=1e-2), start)
    assert trajectory.certificate.verdict == "flow_faithful"
    np.testing.assert_allclose(trajectory.measures["loss"], [1e-2], rtol=16 * EPS)


def test_of_lanes_that_end_apart():
    def spec(index: int):
        return prepare(
            PROBLEM,
            FZ,
            ff.GradientDescent([0.05, 5.0, 0.1][index]),
            on_device(START),
            observe=ff.AtEnd(),
            stop=ff.Stop(max_steps=[10, 60, 25][index]),
            measures=MEASURES,
        )

    batch, _ = follow([spec(index) for index in range(3)])
    assert batch.reached[:, 0].tolist() == [True, False, True]
    assert batch.steps[:, 0].tolist() == [10, -1, 25]
    for lane in range(3):
        alone, _ = follow([spec(lane)])
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(batch), strict=True):
            assert np.asarray(one[0]).tobytes() == np.asarray(other[lane]).tobytes()


def test_needs_a_limit():
    with pytest.raises(ValueError, match="AtEnd observes where a limit ends the run; name one"):
        end(ff.GradientDescent(RATE), ff.Stop())


# --- In experiments


def experiment(**changes) -> Experiment:
    options = {
        "task": RandomLowRankTask(shape=(3, 3, 2), rank=1, n_observed=9),
        "factorization": ff.CP((3, 3, 2), rank=2),
        "initializer": ff.Gaussian(product_scale=0.1),
        "dynamics": ff.GradientDescent(0.02),
        "observe": ff.AtEnd(),
        "stop": ff.Stop(loss=0.5, max_steps=2000, every=10, patience=2),
        "measures": ["loss", "component_norms", "norm_differences", "multilinear_rank[0.01]"],
    }
    return base(**{**options, **changes})


def test_survives_json():
    assert decode(json.loads(json.dumps(encode(ff.AtEnd())))) == ff.AtEnd()
    assert decode(encode(ff.CP((2, 3, 4)))) == ff.CP((2, 3, 4))
    one = experiment()
    again = Experiment.from_json(one.to_json())
    assert again == one and again.key() == one.key()
    assert isinstance(again.observe, ff.AtEnd)
    assert again.factorization == ff.CP((3, 3, 2), rank=2)
    assert experiment(factorization=ff.CP((3, 3, 2))).key() != one.key()


def test_survives_a_store(tmp_path):
    runs = [experiment(), experiment(seed=1), experiment(factorization__rank=3)]
    run(runs, tmp_path / "store", progress=False)
    dataset = Store(tmp_path / "store").dataset(runs)
    assert dataset.sizes["row"] == 1
    assert dataset["reached"].values.all()
    assert dataset["component_norms"].dims == ("run", "row", "component")
    assert dataset["norm_differences"].dims == ("run", "row", "mode_pair", "component")
    assert dataset["multilinear_rank[0.01]"].dims == ("run", "row", "mode")
    # Two components, and a third where there is one.
    assert np.isnan(dataset["component_norms"].values[:, 0, 2]).tolist() == [True, True, False]
    assert set(dataset["result"].values.tolist()) == {"loss_reached"}
    assert np.all(dataset["loss"].values <= 0.5)
    for index, one in enumerate(runs):
        alone, _ = follow([one.build()])
        assert dataset["step"].values[index].tolist() == alone.steps[0].tolist()
        np.testing.assert_array_equal(dataset["loss"].values[index], alone.measures["loss"][0])
        (norms,) = alone.measures["component_norms"][0]
        stored = dataset["component_norms"].values[index, 0, : len(norms)]
        np.testing.assert_array_equal(stored, norms)
