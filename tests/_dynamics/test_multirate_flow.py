"""The flow with several clocks, against the full flow from the same start."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
import factorflow._problem.completion as completion_module
from factorflow._certificate import VERDICTS
from factorflow._dynamics.multirate_phases import FULL, SLOW, Phases
from factorflow._follow import follow
from factorflow._spec import prepare
from factorflow.experiments import Experiment, RandomLowRankTask
from factorflow.experiments.codec import decode, encode
from runs import X64, on_device

MEASURES = ["loss", "product", "component_norms", "norm_differences"]
# One component has escaped on the plateau of order 3 at 1.65e-3, and of order 4 at 1.3e-3.
CASES = {
    3: {
        "shape": (5, 5, 5),
        "rank": 10,
        "n_observed": 100,
        "data": 1,
        "levels": (7e-3, 4e-3, 2e-3, 1.652e-3, 1.64e-3, 1e-3, 1e-4, 1e-6, 1e-8),
    },
    4: {
        "shape": (4, 4, 4, 4),
        "rank": 20,
        "n_observed": 200,
        "data": 2,
        "levels": (3.9e-3, 3e-3, 2e-3, 1.2e-3, 1e-3, 1e-4, 1e-6, 1e-8),
    },
}
SCALE = 3e-3
# For what does not depend on the tolerances: the default ones take twice as long.
COARSE = ff.MultirateFlow(1e-2, 1e-4)


@functools.cache
def problem(order: int) -> ff.Completion:
    case = CASES[order]
    return ff.random_low_rank_problem(
        jax.random.key(case["data"]),
        case["shape"],
        rank=2,
        n_observed=case["n_observed"],
        frobenius_norm=1.0,
        normalization="mean",
    )


def run(order: int, dynamics, scale: float = SCALE, **changes) -> dict:
    """What a run is made of: all of an order have one structure, whatever their numbers."""
    case = CASES[order]
    fz = ff.CP(case["shape"], rank=case["rank"])
    limits = {"loss": 1e-8, "max_steps": 50_000, "max_time": 1e12, **changes.pop("stop", {})}
    return {
        "problem": problem(order),
        "factorization": fz,
        "dynamics": dynamics,
        "factors": ff.Gaussian(factor_scale=scale)(fz, jax.random.key(1)),
        "observe": ff.AtLosses(case["levels"]),
        "stop": ff.Stop(**limits),
        "measures": MEASURES,
        **changes,
    }


@functools.cache
def full(order: int, scale: float = SCALE) -> ff.Trajectory:
    flow = ff.GradientFlow("Dopri8", rtol=1e-9, atol=1e-13)
    return ff.simulate(**run(order, flow, scale))


@functools.cache
def multirate(
    order: int, tolerance: float = 1e-2, rtol: float = 1e-4, scale: float = SCALE
) -> ff.Trajectory:
    return ff.simulate(**run(order, ff.MultirateFlow(tolerance, rtol), scale))


def product_errors(actual: ff.Trajectory, expected: ff.Trajectory) -> np.ndarray:
    one, other = (t.measures["product"].reshape(len(t.times), -1) for t in (actual, expected))
    return np.linalg.norm(one - other, axis=1) / np.linalg.norm(other, axis=1)


def time_errors(actual: ff.Trajectory, expected: ff.Trajectory) -> np.ndarray:
    return np.abs(actual.times / expected.times - 1)


def escaped(trajectory: ff.Trajectory) -> list[list[int]]:
    """The components that have escaped at every row: some percent of the ground truth's norm."""
    return [np.flatnonzero(row > 0.05).tolist() for row in trajectory.measures["component_norms"]]


every_order = pytest.mark.parametrize("order", CASES)


@pytest.mark.x64
def test_agrees_with_the_full_flow_within_the_tolerance():
    order = 3  # of order 4 the figures of a paper are made
    actual, expected = multirate(order), full(order)
    assert actual.integrator == "multirate"
    assert actual.reached.all()
    assert product_errors(actual, expected).max() < 1e-2
    assert time_errors(actual, expected).max() < 1e-2
    assert escaped(actual) == escaped(expected)
    # One component at the beginning, more at the end: the plateau between them was crossed.
    assert len(escaped(actual)[2]) == 1 < len(escaped(actual)[-1])


@every_order
@pytest.mark.x64
def test_agrees_the_better_the_smaller_the_tolerances(order):
    expected = full(order)
    errors, late = [], []
    for finer in (1, 10, 100):
        actual = multirate(order, 1e-2 / finer, 1e-4 / finer)
        errors.append(product_errors(actual, expected).max())
        late.append(time_errors(actual, expected).max())
        # A fast phase that ends early must not cost small components the time that it took.
        assert late[-1] < 1e-2 / finer, late
    assert errors[0] > 3 * errors[1] > 9 * errors[2], errors
    assert errors[2] < 1e-4


@every_order
@pytest.mark.x64
def test_every_phase_is_entered(order):
    stats = multirate(order).stats
    assert stats["num_slow_steps"] > 0
    assert stats["num_fast_steps"] > 0
    assert stats["num_slow_steps"] + stats["num_fast_steps"] < stats["num_steps"]
    assert 0 < stats["num_small_gradients"] < stats["num_gradients"]


@pytest.mark.x64
def test_phases_save_gradients():
    # So small a tolerance leaves nothing but the full phase; 4.1 times as many, measured.
    every = multirate(4, 1e-12).stats
    assert every["num_slow_steps"] == every["num_fast_steps"] == every["neglected"] == 0
    assert multirate(4).stats["num_gradients"] < every["num_gradients"] / 2
    assert product_errors(multirate(4, 1e-12), full(4)).max() < 1e-2


@pytest.mark.x64
@pytest.mark.parametrize("scale", [0.1, 0.3])
def test_agrees_from_large_initialization(scale):
    actual, expected = multirate(3, scale=scale), full(3, scale)
    np.testing.assert_array_equal(actual.reached, expected.reached)
    assert product_errors(actual, expected).max() < 1e-2
    # Times are of order one hundred there, and zero for levels above the start.
    np.testing.assert_allclose(actual.times, expected.times, rtol=1e-2)


@pytest.mark.x64
def test_components_that_shrink_or_turn_are_not_left_out():
    """From large factors with three planted components; errors were 4.5e-2, and 0 "neglected"."""
    data = ff.random_low_rank_problem(
        jax.random.key(102),
        CASES[3]["shape"],
        rank=3,
        n_observed=CASES[3]["n_observed"],
        frobenius_norm=1.0,
        normalization="mean",
    )
    fz = run(3, None)["factorization"]
    initial = 0.5 * float(np.mean(np.asarray(data.values) ** 2))
    changes = {
        "problem": data,
        "factors": ff.Gaussian(factor_scale=0.1)(fz, jax.random.key(2)),
        "observe": ff.AtLosses(
            [initial * x for x in (0.7, 0.3, 0.1, 3e-2, 1e-2, 1e-3, 1e-4, 1e-5)]
        ),
        "stop": {"loss": initial * 1e-5},
    }
    flow = ff.GradientFlow("Dopri8", rtol=1e-9, atol=1e-13)
    expected = ff.simulate(**run(3, flow, **changes))
    # Of each tolerance some ten times, for what the flow amplifies.
    for dynamics, most, late in ((COARSE, 5e-3, 5e-3), (ff.MultirateFlow(), 5e-5, 1e-3)):
        actual = ff.simulate(**run(3, dynamics, **changes))
        assert actual.reached.all()
        assert product_errors(actual, expected).max() < most
        assert time_errors(actual, expected).max() < late


@every_order
@pytest.mark.x64
def test_rows_lie_at_their_levels_and_in_order(order):
    trajectory = multirate(order)
    np.testing.assert_allclose(trajectory.measures["loss"], trajectory.levels, rtol=1e-9)
    assert np.all(np.diff(trajectory.times) >= 0)
    assert np.all(np.diff(trajectory.steps) >= 0)
    assert trajectory.result_name == "loss_reached"
    np.testing.assert_allclose(trajectory.stats["loss"], 1e-8, rtol=1e-9)


@every_order
@pytest.mark.x64
def test_conserved_differences_of_norms_hardly_drift(order):
    differences = multirate(order).measures["norm_differences"]
    start = run(order, None)
    conserved = np.stack(start["factorization"].conserved(start["factors"]))
    # Squared norms grow to order one, steps err by 1e-4 each.
    assert np.max(np.abs(differences - conserved)) < 1e-3


@pytest.mark.x64
def test_ends_at_a_time_on_a_plateau():
    expected = full(3)
    time = float(expected.times[3] + expected.times[4]) / 2
    trajectory = ff.simulate(**run(3, COARSE, stop={"max_time": time}))
    assert trajectory.result_name == "time_limit_reached"
    assert trajectory.stats["time"] == time
    assert trajectory.reached.tolist() == [True] * 4 + [False] * 5
    flow = ff.GradientFlow("Dopri8", rtol=1e-9, atol=1e-13)
    other = ff.simulate(**run(3, flow, stop={"max_time": time}))
    fz = run(3, None)["factorization"]
    products = [np.asarray(fz.compose(on_device(t.factors))) for t in (trajectory, other)]
    # Large components rest within the tolerance of where they go: 5e-3 off, of norm one.
    np.testing.assert_allclose(*products, atol=1e-2)
    assert 1.64e-3 < trajectory.stats["loss"] < 1.652e-3


@pytest.mark.x64
def test_rows_at_times_lie_at_their_times():
    expected = full(3)
    # The start, the first plateau, and where the full flow is at its levels of loss.
    times = [0.0, 0.5 * float(expected.times[0]), *expected.times[2:]]
    flow = ff.MultirateFlow(1e-3, 1e-5)
    trajectory = ff.simulate(**run(3, flow, observe=ff.AtTimes(times), measures=MEASURES[:2]))
    np.testing.assert_array_equal(trajectory.times, times)
    # Nothing but small components on the first plateau.
    np.testing.assert_allclose(trajectory.measures["product"][:2], 0, atol=1e-4)
    losses = trajectory.measures["loss"]
    assert np.all(np.diff(losses) < 0)
    np.testing.assert_allclose(losses[3:5], expected.measures["loss"][3:5], rtol=1e-2)
    products = [t.measures["product"][place] for t, place in ((trajectory, 3), (expected, 3))]
    np.testing.assert_allclose(*products, atol=1e-3)


@pytest.mark.x64
def test_what_is_neglected_grows_with_the_tolerance():
    amounts = [multirate(3, 1e-2 / k, 1e-4 / k).stats["neglected"] for k in (1, 10, 100)]
    assert 0 < amounts[2] < amounts[1] < amounts[0] < 0.1, amounts
    # At order 4 fast phases are too short, beside the plateaus, to neglect what they may.
    assert 0 < multirate(4).stats["neglected"] < 1e-2


@pytest.mark.x64
def test_runs_of_a_batch_are_those_followed_alone():
    runs = [
        run(3, ff.MultirateFlow(1e-2, 1e-4)),
        run(3, ff.MultirateFlow(1e-3, 1e-5), 1e-2),
        run(3, COARSE, stop={"max_steps": 30}),
    ]
    specs = [prepare(**options) for options in runs]
    batch, _ = follow(specs, 3)
    for lane, spec in enumerate(specs):
        alone, _ = follow([spec])
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(batch), strict=True):
            assert np.asarray(one[0]).tobytes() == np.asarray(other[lane]).tobytes()


@pytest.mark.x64
@pytest.mark.parametrize("throw", [True, False])
def test_a_limit_of_steps_is_no_error(throw):
    trajectory = ff.simulate(**run(3, COARSE, stop={"max_steps": 12}), throw=throw)
    assert trajectory.result_name == "step_limit_reached"
    assert trajectory.stats["num_steps"] == 12
    assert np.isfinite(trajectory.stats["loss"])
    assert not trajectory.reached[-1]


@pytest.mark.x64
def test_a_full_certificate_compares_with_the_refined_flow():
    trajectory = ff.simulate(**run(3, COARSE), certify="full")
    evidence = trajectory.certificate.evidence
    # Of everything that is compared, rows on the plateau included: 1.2e-2, measured.
    assert 0 < evidence["companion_error"] < 3e-2
    assert trajectory.certificate.verdict in VERDICTS
    # Without a companion there is nothing to compare with.
    assert np.isnan(multirate(3).certificate.evidence["companion_error"])


def test_a_refined_flow_has_a_tenth_of_every_tolerance():
    options = run(3, ff.MultirateFlow())
    resolved = ff.MultirateFlow().resolve(
        *(options[name] for name in ("problem", "factorization", "factors"))
    )
    size = np.sqrt(np.mean(np.concatenate([f.ravel() for f in options["factors"]]) ** 2))
    np.testing.assert_allclose(resolved.atol, resolved.rtol * size, rtol=1e-5)
    refined = resolved.refined()
    for name in ("tolerance", "rtol", "atol"):
        np.testing.assert_allclose(getattr(refined, name), getattr(resolved, name) / 10)


@pytest.mark.skipif(X64, reason="in double precision, runs are compared with the full flow")
def test_reaches_its_loss_in_single_precision(dtype):
    options = run(3, ff.MultirateFlow(), observe=ff.AtEnd(), stop={"loss": 1e-6})
    trajectory = ff.simulate(**options | {"measures": ["loss", "reconstruction_error"]})
    assert trajectory.result_name == "loss_reached"
    assert trajectory.factors[0].dtype == dtype
    assert trajectory.measures["reconstruction_error"][0] < 0.1
    assert trajectory.stats["num_slow_steps"] > 0


def test_the_defaults_are_those_of_the_dtype(dtype):
    options = run(3, None)
    names = ("problem", "factorization", "factors")
    flow = ff.MultirateFlow().resolve(*(options[name] for name in names))
    expected = {"float64": (1e-5, 1e-6), "float32": (1e-2, 1e-3)}
    assert (flow.tolerance, flow.rtol) == expected[np.dtype(dtype).name]


def test_survives_json_in_an_experiment():
    flow = ff.MultirateFlow(tolerance=1e-3, rtol=1e-5, atol=1e-8, capacity=4)
    assert decode(json.loads(json.dumps(encode(flow)))) == flow
    experiment = Experiment(
        task=RandomLowRankTask(shape=(3, 3, 3), rank=1, n_observed=20),
        factorization=ff.CP((3, 3, 3)),
        initializer=ff.Gaussian(factor_scale=1e-2),
        dynamics=flow,
        observe=ff.AtEnd(),
        stop=ff.Stop(loss=1e-6),
        measures=["loss"],
    )
    again = Experiment.from_json(experiment.to_json())
    assert again == experiment
    assert again.key() == experiment.key()
    assert again.key() != experiment.replace(dynamics__tolerance=1e-2).key()


# --- Bad input


def resolve(fz, given=None):
    def call():
        data = ff.Completion(fz.shape, [[0] * len(fz.shape)], [1.0]) if given is None else given()
        factors = tuple(jnp.ones(struct.shape) for struct in jax.tree.leaves(fz.shapes()))
        return ff.MultirateFlow().resolve(data, fz, factors)

    return call


CUBE = ff.CP((2, 2, 2), rank=3)
BAD_INPUT = [
    ("matrices", resolve(ff.DeepMatrix((2, 2), depth=3)), "order 3 or more, got DeepMatrix"),
    ("order 2", resolve(ff.CP((2, 3), rank=2)), r"order 3 or more, got CP of shape \(2, 3\)"),
    ("a tensor train", resolve(ff.TensorTrain((2, 2, 2), ranks=2)), "got TensorTrain"),
    (
        "repeated observations",
        resolve(CUBE, lambda: ff.Completion((2, 2, 2), [[0, 0, 0]] * 2, [1.0, 1.0])),
        "observed more than once; use GradientFlow",
    ),
    ("a tolerance of 0", lambda: ff.MultirateFlow(0.0), r"tolerance must lie in \(0, 1\), got 0.0"),
    ("a tolerance of 1", lambda: ff.MultirateFlow(1.0), r"must lie in \(0, 1\), got 1.0"),
    ("a tolerance of NaN", lambda: ff.MultirateFlow(float("nan")), "got nan"),
    ("no capacity", lambda: ff.MultirateFlow(capacity=0), "capacity must be 1 or more, got 0"),
    ("atol of 0", lambda: ff.MultirateFlow(atol=0.0), "atol must be positive, got 0.0"),
    ("a negative atol", lambda: ff.MultirateFlow(atol=-1e-9), "atol must be positive"),
    ("rtol of 0", lambda: ff.MultirateFlow(rtol=0.0), "rtol"),
    ("rtol of 1", lambda: ff.MultirateFlow(rtol=1.0), "rtol"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_product_too_large_to_be_made_is_refused(monkeypatch):
    monkeypatch.setattr(completion_module, "_DENSE_ENTRIES", 7)
    with pytest.raises(ValueError, match=r"too large at \(2, 2, 2\)"):
        resolve(CUBE)()


@pytest.mark.parametrize(("share", "following"), [(0.5, SLOW), (2.0, FULL)])
def test_what_escapes_is_judged_by_the_residual_before_it_did(share, following):
    """On the loss of the moment it would hide: an escape from a small residual raises the loss."""
    fz = ff.CP((2, 2, 2), rank=1)
    small = on_device([np.full((2, 1), 1e-1)] * 3)
    made = ff.Completion((2, 2, 2), [(0, 0, 0), (1, 1, 1)], [1.0, 1.0], normalization="mean")
    flow = ff.MultirateFlow(tolerance=1e-2).resolve(made, fz, small)
    state = flow.init(made, fz, small, jax.random.key(0))
    norm = float(fz.component_norms(small)[0])
    # The mean of two squares of r / sqrt(2) has a gradient of size r, so 2 loss / size is r.
    residual = norm / (1e-2 * share)
    force = np.zeros((2, 2, 2))
    force[0, 0, 0] = residual
    on_plateau = eqx.tree_at(
        lambda s: (s.phase, s.count, s.apart, s.clock.growth_loss, s.loss),
        state,
        jax.tree.map(
            lambda value, like: jnp.asarray(value, like.dtype),
            (SLOW, 0, force, residual**2 / 2, 1e6 * residual**2),
            (state.phase, state.count, state.apart, state.loss, state.loss),
        ),
    )
    judged = Phases(flow, made, fz).survey_small(on_plateau)
    assert int(judged.following) == following
