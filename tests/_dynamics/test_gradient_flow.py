"""Gradient flow of the factors, against SciPy, a closed form and what a flow conserves."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import factorflow as ff
from factorflow._dynamics.integrators import INTEGRATORS, choose_integrator
from runs import (
    DTYPE,
    EPS,
    GENERIC,
    RAZIN_COHEN,
    X64,
    Linear,
    compose,
    draw,
    flow,
    imbalance,
    in_numpy,
    integrate,
    on_device,
    random_factors,
)

# Times at which the loss has left its plateau, and come down.
TIMES = np.array([0.0, 0.5, 2.0, 8.0], DTYPE)
RTOL = 1e-10 if X64 else 1e-6
# Below RTOL and some roundings per step, of which a contracting flow remembers the last few.
ALLOWED = 10 * (RTOL + 2 * EPS)


def sensing() -> tuple[ff.Sensing, Linear]:
    measurements, values = draw([(6, 3, 4), 6], scale=0.5, seed=4)
    return ff.Sensing(measurements, values), Linear(measurements, values)


CASES = {
    "depth 2": (2, (2, 2)),
    "depth 3": (3, (3, 4)),
    "depth 4": (4, (2, 2)),
}


def follow_case(name: str, rtol: float = RTOL):
    depth, shape = CASES[name]
    made = sensing() if shape == (3, 4) else (ff.razin_cohen_problem(), RAZIN_COHEN)
    fz = ff.DeepMatrix(shape, depth)
    start = random_factors(fz)
    trajectory = ff.simulate(
        made[0],
        fz,
        flow("Tsit5", rtol),
        on_device(start),
        observe=ff.AtTimes(TIMES),
        stop=ff.Stop(),
        measures=["loss", "product"],
    )
    return trajectory, made[1], start


@pytest.mark.parametrize("name", CASES)
def test_flow_agrees_with_scipy(name):
    trajectory, reference, start = follow_case(name)
    expected = integrate(reference, start, TIMES)
    np.testing.assert_allclose(
        trajectory.measures["product"],
        [compose(factors) for factors in expected],
        rtol=0,
        atol=ALLOWED,
    )
    # The last factors are those of the end of the last step, past the last row.
    end = integrate(reference, start, trajectory.stats["time"])[0]
    for factor, right in zip(trajectory.factors, end, strict=True):
        np.testing.assert_allclose(factor, right, rtol=0, atol=ALLOWED)


@pytest.mark.parametrize("name", CASES)
def test_imbalance_is_conserved(name):
    trajectory, _, start = follow_case(name)
    for before, after in zip(
        imbalance(start), imbalance(in_numpy(trajectory.factors)), strict=True
    ):
        assert np.linalg.norm(before) > 0.1
        # Twice the error of a factor times its size, which is below 3 here.
        np.testing.assert_allclose(after, before, rtol=0, atol=6 * ALLOWED)


def test_the_error_follows_the_tolerance():
    rtols = [1e-3, 1e-5, 1e-7, 1e-9] if X64 else [1e-2, 1e-3, 1e-4]
    errors = []
    for rtol in rtols:
        trajectory, reference, start = follow_case("depth 3", rtol)
        expected = [compose(factors) for factors in integrate(reference, start, TIMES)]
        errors.append(np.max(np.abs(trajectory.measures["product"] - expected)))
    for rtol, error in zip(rtols, errors, strict=True):
        assert error < 10 * (rtol + 2 * EPS)
    # An order of magnitude or more for two of tolerance: the method's error per unit step.
    assert np.all(np.array(errors[1:]) < np.array(errors[:-1]) / (10 if X64 else 1.5))


def test_depth_1_is_a_linear_equation():
    (measurements, values), start = draw([(4, 2, 3), 4], seed=5), draw([(2, 3)], seed=6)
    trajectory = ff.simulate(
        ff.Sensing(measurements, values),
        ff.DeepMatrix((2, 3), depth=1),
        flow("Dopri5", RTOL),
        on_device(start),
        observe=ff.AtTimes(TIMES),
        stop=ff.Stop(),
        measures=["product"],
    )
    # x' = A^T (b - A x), augmented by a constant one so that a single exponential solves it.
    a = measurements.astype(float).reshape(4, 6)
    field = np.zeros((7, 7))
    field[:6, :6], field[:6, 6] = -a.T @ a, a.T @ values.astype(float)
    state = np.append(start[0].astype(float).ravel(), 1)
    expected = [(scipy.linalg.expm(time * field) @ state)[:6].reshape(2, 3) for time in TIMES]
    np.testing.assert_allclose(trajectory.measures["product"], expected, rtol=0, atol=ALLOWED)


def test_the_loss_falls_by_the_integral_of_the_squared_gradient():
    def squared_gradient(snapshot: ff.Snapshot):
        def loss(factors):
            return snapshot.problem.loss(ff.Factored(fz, factors))

        gradient = jax.grad(loss)(snapshot.factors)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    fz, end = ff.DeepMatrix((2, 2), depth=2), 4.0
    # Gauss-Legendre: 24 nodes integrate a decay like exp(-4 t) over 4 to 1e-12.
    nodes, weights = np.polynomial.legendre.leggauss(24)
    times = np.concatenate([[0.0], end * (1 + nodes) / 2, [end]]).astype(DTYPE)
    trajectory = ff.simulate(
        ff.razin_cohen_problem(),
        fz,
        flow("Tsit5", RTOL),
        on_device(random_factors(fz)),
        observe=ff.AtTimes(times),
        stop=ff.Stop(),
        measures=["loss", squared_gradient],
    )
    losses = trajectory.measures["loss"].astype(float)
    squares = trajectory.measures["squared_gradient"][1:-1].astype(float)
    fallen, integral = losses[0] - losses[-1], np.sum(weights * squares) * end / 2
    assert fallen > 0.5 * losses[0]
    np.testing.assert_allclose(integral, fallen, rtol=0, atol=10 * ALLOWED)


# --- Integrators

MOMENT = 6.0
FZ = ff.DeepMatrix((2, 2), depth=2)
# Names that the tests above and below do not use, and solver objects of diffrax, whose settings
# must stay Python numbers.
ELSEWHERE = {"Tsit5", "Dopri5", "RKC2"}
SOLVERS = {
    **{name: name for name in INTEGRATORS if name not in ELSEWHERE},
    "Kvaerno4()": diffrax.Kvaerno4(),
    "HalfSolver(Euler())": diffrax.HalfSolver(diffrax.Euler()),
}


@pytest.mark.parametrize("integrator", SOLVERS.values(), ids=SOLVERS)
def test_every_integrator_follows_the_flow_to_its_tolerance(integrator):
    # Loose, so that methods of low order take hundreds of steps and not tens of thousands.
    rtol = 1e-5 if X64 else 1e-4
    start = random_factors(FZ)
    trajectory = ff.simulate(
        ff.razin_cohen_problem(),
        FZ,
        flow(integrator, rtol),
        on_device(start),
        observe=ff.AtSteps([0]),
        stop=ff.Stop(max_time=MOMENT),
        measures=["loss"],
    )
    assert trajectory.stats["time"] == MOMENT
    (expected,) = integrate(RAZIN_COHEN, start, MOMENT)
    # Below the tolerance per step, of which a contracting flow remembers the last tenth.
    remembered = max(1, int(trajectory.stats["num_steps"]) / 10)
    for factor, right in zip(trajectory.factors, expected, strict=True):
        np.testing.assert_allclose(factor, right, rtol=0, atol=remembered * rtol)


def test_without_a_name_flows_without_charts_get_the_stabilized_integrator():
    assert type(choose_integrator(None)) is INTEGRATORS["Stabilized"]


def test_default_tolerances_suit_the_dtype():
    fz = ff.DeepMatrix((2, 2), depth=3)
    start = in_numpy(ff.balanced_factors(fz, GENERIC.astype(DTYPE)))
    trajectory = ff.simulate(
        ff.razin_cohen_problem(),
        fz,
        ff.GradientFlow("RKC2"),
        on_device(start),
        observe=ff.AtLosses([0.1]),
        stop=ff.Stop(loss=0.1),
        measures=["loss", "product"],
    )
    # RKC2 changes its number of stages with the length of a step, so the loss within a step is
    # continuous only up to the tolerance.
    np.testing.assert_allclose(trajectory.measures["loss"], 0.1, rtol=1e-8 if X64 else 1e-4)
    (expected,) = integrate(RAZIN_COHEN, start, trajectory.times[0])
    # The plateau at the start multiplies the error of a second-order method by the growth of the
    # factors, thirty times for this small start.
    assert "num_gradients" in trajectory.stats
    (product,) = trajectory.measures["product"]
    allowed = 1e-5 if X64 else 3e-3
    np.testing.assert_allclose(product, compose(expected), rtol=0, atol=allowed)


def test_a_flow_that_blows_up_says_so():
    def unbounded(residual):
        return -(residual**4)

    options = {
        "observe": ff.AtSteps([1]),
        "stop": ff.Stop(max_time=10.0),
        "measures": ["product"],
    }
    fz = ff.DeepMatrix((1, 2), depth=1)
    problem = ff.Completion((1, 2), [[0, 0], [0, 1]], [0.0, 0.0], loss=unbounded)
    run = (problem, fz, flow("Tsit5"), (jnp.ones((1, 2)),))
    with pytest.raises(RuntimeError, match=r"loss became infinite.*no lower bound.*ended after"):
        ff.simulate(*run, **options)
    trajectory = ff.simulate(*run, **options, throw=False)
    assert trajectory.result_name == "loss_nonfinite"
    # y' = 2 y^3 from 1 blows up at time 1/4.
    np.testing.assert_allclose(trajectory.stats["time"], 0.25, rtol=1e-6 if X64 else 1e-3)
    assert trajectory.reached.all()
    assert np.isfinite(trajectory.measures["product"]).all()


BAD_INPUT = [
    (
        "a name",
        lambda: ff.GradientFlow("Tsit6"),
        "Unknown integrator 'Tsit6'. Did you mean 'Tsit5'",
    ),
    ("a far name", lambda: ff.GradientFlow("lsoda"), "Known: Dopri5, Dopri8, Kvaerno3"),
    ("no solver", lambda: ff.GradientFlow(5), "must be a diffrax solver, a name or None, got 5"),
    (
        "no error estimate",
        lambda: ff.GradientFlow(diffrax.Euler()),
        r"Euler does not estimate its error.*HalfSolver\(Euler\(\)\)",
    ),
    ("rtol of 0", lambda: ff.GradientFlow(rtol=0.0), r"rtol must lie in \(0, 1\), got 0"),
    ("rtol of 1", lambda: ff.GradientFlow(rtol=1.0), "got 1.0"),
    ("negative atol", lambda: ff.GradientFlow(atol=-1e-8), "atol must lie"),
    ("NaN atol", lambda: ff.GradientFlow(atol=float("nan")), "got nan"),
    ("end to end", lambda: ff.EndToEndFlow("RKC", rtol=0.1), "Did you mean 'RKC2'"),
    ("end to end, rtol", lambda: ff.EndToEndFlow(rtol=2.0), r"rtol must lie in \(0, 1\), got 2"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["Tsit5", "Dopri8", "Stabilized"])
def test_rows_at_losses_lie_there_where_times_are_coarser_than_steps(name):
    """One number of depth 3: s' = 3 s^(4/3) (1 - s), which leaves zero after 1 / s_0^(1/3)."""
    fz, scale = ff.DeepMatrix((1, 1), depth=3), 1e-42 if X64 else 1e-21
    levels = [0.4, 0.1, 1e-2]
    trajectory = ff.simulate(
        ff.Completion((1, 1), [[0, 0]], [1.0]),
        fz,
        ff.GradientFlow(name),
        ff.Identity(product_scale=scale)(fz),
        observe=ff.AtLosses(levels),
        stop=ff.Stop(loss=levels[-1], max_steps=20_000),
        measures=["product"],
    )
    assert trajectory.reached.all()
    late = float(trajectory.times[0])
    assert late == pytest.approx(scale ** (-1 / 3), rel=1e-6 if X64 else 1e-2)
    assert np.spacing(trajectory.times[0]) > (1e-3 if X64 else 0.1)
    # Half of (1 - s)^2 is the level, where the loss is to its last digits or nearly.
    expected = 1 - np.sqrt(2 * np.array(levels))
    found = trajectory.measures["product"][:, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-12 if X64 else 1e-5)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["Tsit5", "Stabilized"])
def test_rows_at_small_losses_lie_there_where_entries_are_small(name):
    """Entries of 1e-8: a loss of 1e-20 is a residual with eight digits, not rounding."""
    fz, size = ff.DeepMatrix((1, 1), depth=1), 1e-8
    levels = [1e-18, 3e-20, 1e-21]
    trajectory = ff.simulate(
        ff.Completion((1, 1), [[0, 0]], [size]),
        fz,
        ff.GradientFlow(name),
        (jnp.full((1, 1), 1e-10),),
        observe=ff.AtLosses(levels),
        stop=ff.Stop(loss=levels[-1]),
        measures=["loss"],
    )
    # Rounding of an entry beside its residual, twice over in the loss.
    rounding = 4 * EPS * size / np.sqrt(2 * np.array(levels))
    off = np.abs(trajectory.measures["loss"] / levels - 1)
    assert np.all(off <= 10 * rounding + 10 * EPS)


@pytest.mark.parametrize("name", [None, "Tsit5", "Stabilized"])
def test_a_single_factor_may_start_at_zero(name):
    """Its flow is linear: b (1 - exp(-t)) where b is observed, and zero where nothing is."""
    trajectory = ff.simulate(
        ff.Completion((1, 2), [[0, 0]], [2.0]),
        ff.DeepMatrix((1, 2), depth=1),
        ff.GradientFlow(name),
        (jnp.zeros((1, 2)),),
        observe=ff.AtTimes([1.0, 3.0]),
        stop=ff.Stop(max_time=3.0),
        measures=["product"],
    )
    expected = 2 * (1 - np.exp(-np.array([1.0, 3.0])))
    found = trajectory.measures["product"][:, 0]
    # A dozen steps of 1e-9 each, or of 1e-4 in single precision.
    np.testing.assert_allclose(found[:, 0], expected, rtol=3e-7 if X64 else 3e-3)
    assert np.all(found[:, 1] == 0)


def test_coordinates_that_have_no_size_at_zero_say_so():
    with pytest.raises(ValueError, match="these are all zero"):
        ff.simulate(
            ff.Completion((1, 2), [[0, 0]], [2.0]),
            ff.DeepMatrix((1, 2), depth=1),
            ff.GradientFlow("radau"),
            (jnp.zeros((1, 2)),),
            observe=ff.AtTimes([1.0]),
            stop=ff.Stop(max_time=1.0),
        )
