"""The switching solver against closed forms, diffrax's own solvers, and its two methods apart."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._dynamics.flow import Integrator
from factorflow._dynamics.integrators import with_tolerances
from factorflow._dynamics.solver import RKC2, Stabilized
from factorflow._product import Factored

COLD_COST = 65  # one gradient and 32 Jacobian-vector products at two gradients each


def solve(field, y, t1, solver, rtol=1e-6, atol=1e-9, steps=None, **kwargs):
    time = jnp.asarray(t1, jnp.result_type(*jax.tree.leaves(y)))
    controller = dfx.ConstantStepSize() if steps else dfx.PIDController(rtol=rtol, atol=atol)
    return dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, args: field(t, y)),
        solver,
        jnp.zeros_like(time),
        time,
        time / steps if steps else None,
        y,
        stepsize_controller=controller,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        max_steps=100_000,
        **kwargs,
    )


def decay(rates):
    return lambda t, y: -jnp.asarray(rates, y.dtype) * y


@pytest.mark.x64
def test_fifth_order_while_accuracy_limits_the_step():
    # y' = -y + cos t, whose rate of 1 is no stiffness.
    def field(t, y):
        return -y + jnp.cos(t)

    exact = (np.sin(2.0) + np.cos(2.0) - np.exp(-2.0)) / 2  # for y(0) = 0
    counts = np.array([10, 20, 40])
    errors = []
    for steps in counts:
        solution = solve(field, jnp.zeros(1), 2.0, Stabilized(), steps=int(steps))
        errors.append(abs(float(solution.ys[-1, 0]) - exact))
        assert not solution.solver_state.stiff
        # The spectral radius is asked for again after 20 steps.
        expected = COLD_COST + 6 * steps + 6 * ((steps - 1) // 20)
        assert int(solution.solver_state.common.num_evaluations) == expected
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 4.8 < order < 5.3


@pytest.mark.x64
def test_a_step_of_tsit5_is_the_one_of_diffrax():
    def field(t, y):
        return jnp.sin(y) * (1 + t)

    y = jnp.array([0.3, -1.1, 2.0])
    ours = solve(field, y, 0.3, Stabilized(), steps=1).ys[-1]
    theirs = solve(field, y, 0.3, dfx.Tsit5(), steps=1).ys[-1]
    np.testing.assert_allclose(ours, theirs, rtol=4e-16 * 10)


@pytest.mark.x64
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_stiff_decay_is_taken_over_by_rkc2(rtol):
    rates = np.array([1.0, 30.0, 1e4])
    solver = Stabilized(rtol=rtol, atol=rtol / 1e3)
    solution = solve(decay(rates), jnp.ones(3), 3.0, solver, rtol, rtol / 1e3)
    # The slow mode adds up the errors of all steps.
    allowed = int(solution.stats["num_accepted_steps"]) * rtol
    np.testing.assert_allclose(solution.ys[-1, 0], np.exp(-3.0), rtol=allowed)
    assert solution.solver_state.stiff
    # Tsit5 alone is held to h rho < 3.3 all the way.
    assert int(solution.solver_state.common.num_evaluations) < 6 * 3.0 * 1e4 / 3.3 / 4


@pytest.mark.x64
def test_goes_back_to_tsit5_when_the_stiffness_is_over():
    # The stiff mode is switched off by the time; then only an oscillating drive is left to follow.
    def field(t, y):
        rate = jnp.where(t < 1, 1e5, 1.0)
        return -rate * (y - jnp.cos(t)) - jnp.sin(t)

    solver = Stabilized(rtol=1e-5, atol=1e-7)
    early = solve(field, jnp.array([2.0]), 0.9, solver, 1e-5, 1e-7)
    assert early.solver_state.stiff
    late = solve(field, jnp.array([2.0]), 20.0, solver, 1e-5, 1e-7)
    assert not late.solver_state.stiff
    np.testing.assert_allclose(late.ys[-1, 0], np.cos(20.0), atol=1e-4)


def completion(size: int = 12, observed: int = 70):
    problem = ff.random_low_rank_problem(
        jax.random.key(0), (size, size), rank=2, n_observed=observed
    )
    fz = ff.DeepMatrix((size, size), depth=3)
    factors = ff.Balanced(product_scale=1e-3)(fz, jax.random.key(1))
    gradient = jax.grad(lambda y: problem.loss(Factored(fz, y)))
    return fz, factors, lambda t, y: jax.tree.map(jnp.negative, gradient(y))


@pytest.mark.x64
def test_follows_growth_and_contraction_with_fewer_gradients_than_either_method():
    fz, factors, field = completion()
    truth = fz.compose(
        jax.tree.map(
            lambda leaf: leaf[-1], solve(field, factors, 30.0, dfx.Dopri8(), 1e-11, 1e-13).ys
        )
    )
    rtol, atol = 1e-6, 1e-8
    cost, error = {}, {}
    for name, solver in {"both": Stabilized(rtol, atol), "RKC2": RKC2()}.items():
        solution = solve(field, factors, 30.0, solver, rtol, atol)
        state = solution.solver_state
        cost[name] = int(getattr(state, "common", state).num_evaluations)
        product = fz.compose(jax.tree.map(lambda leaf: leaf[-1], solution.ys))
        error[name] = np.linalg.norm(product - truth) / np.linalg.norm(truth)
    tsit5 = solve(field, factors, 30.0, dfx.Tsit5(), rtol, atol)
    cost["Tsit5"] = 6 * int(tsit5.stats["num_steps"])
    # The growth of factors of 0.1 to size one multiplies errors of the first steps.
    assert error["both"] < 100 * rtol
    assert error["both"] < error["RKC2"]
    assert cost["both"] < min(cost["RKC2"], cost["Tsit5"])


@pytest.mark.x64
def test_lanes_switch_for_themselves():
    rates = jnp.array([[1.0, 2.0], [1.0, 2e3], [1e4, 3.0]])
    solver = Stabilized(rtol=1e-6, atol=1e-9)

    def run(rates):
        solution = solve(lambda t, y: -rates * y, jnp.ones(2), 2.0, solver)
        return solution.ys[-1], solution.solver_state.stiff, solution.stats["num_steps"]

    batched = eqx.filter_jit(jax.vmap(run))(rates)
    assert batched[1].tolist() == [False, True, True]
    for lane, one in enumerate(rates):
        alone = eqx.filter_jit(run)(one)
        np.testing.assert_allclose(batched[0][lane], alone[0], rtol=1e-9, atol=1e-15)
        assert batched[2][lane] == alone[2]


def step(y, h, rate, state=None, solver=None):
    solver = solver or Stabilized()
    term = dfx.ODETerm(lambda t, y, args: -rate * y)
    zero = jnp.zeros_like(h)
    state = solver.init(term, zero, h, y, None) if state is None else state
    return solver.step(term, zero, h, y, None, state, False)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.x64)])
def test_a_step_beyond_the_limit_is_refused_at_no_cost(dtype):
    y, h, rate = jnp.ones(2, dtype), jnp.asarray(1.0, dtype), jnp.asarray(100.0, dtype)
    y1, error, _, state, result = step(y, h, rate)
    np.testing.assert_array_equal(y1, y)
    assert state.common.num_evaluations == COLD_COST
    assert result == dfx.RESULTS.dt_min_reached
    # The controller takes it as a request for a step at the limit, 3.3 / (1.2 * 100).
    scale = 1e-10 + 1e-8 * np.ones(2)
    norm = np.sqrt(np.mean((np.asarray(error) / scale) ** 2))
    np.testing.assert_allclose(0.9 * norm ** (-1 / 3), 3.3 / 120, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.x64)])
def test_a_refused_first_step_leaves_what_it_has_found_out(dtype):
    y, h, rate = jnp.ones(2, dtype), jnp.asarray(1.0, dtype), jnp.asarray(100.0, dtype)
    solver, zero = Stabilized(), jnp.zeros((), dtype)
    start = solver.init(dfx.ODETerm(lambda t, y, args: -rate * y), zero, h, y, None)
    *_, attempted, _ = step(y, h, rate, start)
    kept = start.rejected(attempted)
    np.testing.assert_allclose(kept.common.spectral_radius, 100, rtol=1e-5)
    # Taken for known: a shorter step refines it by three products, and evaluates f(y) again, which
    # the refused step has left aside, and the six stages.
    y1, *_, following, _ = step(y, 0.01 * h, rate, kept)
    assert following.common.num_evaluations - COLD_COST == 2 * 3 + 1 + 6
    np.testing.assert_allclose(y1, np.exp(-1) * np.ones(2), rtol=1e-3)
    # And nothing else: it has made no step.
    assert not kept.common.begun
    assert (kept.stiff, kept.was_stiff) == (False, False)


def test_a_field_that_is_not_finite_is_never_accepted():
    y, h = jnp.ones(2), jnp.asarray(1e-3)
    _, error, _, _, _ = step(y, h, jnp.asarray(jnp.nan))
    assert np.all(np.isinf(error))


def overflowing(rate):
    # Beyond 2 the field overflows: a long step from 1 meets infinities in its later stages.
    return lambda t, y: jnp.where(y > 2, jnp.inf, rate * y)


@pytest.mark.parametrize("solver", [Stabilized(1e-3, 1e-6), RKC2()], ids=["both", "RKC2"])
def test_a_step_that_overflows_is_shortened(solver):
    one = jnp.ones(1)
    term = dfx.ODETerm(lambda t, y, args: overflowing(1.0)(t, y))
    zero, h = jnp.zeros_like(one[0]), jnp.full_like(one[0], 1.5)
    y1, error, *_ = solver.step(
        term, zero, h, one, None, solver.init(term, zero, h, one, None), False
    )
    assert np.isfinite(y1).all() and np.isinf(error).all()
    solution = solve(overflowing(1.0), one, 0.6, solver, 1e-3, 1e-6)
    np.testing.assert_allclose(solution.ys[-1, 0], np.exp(0.6), rtol=1e-2)


@pytest.mark.x64
def test_rows_within_a_step_are_taken_by_the_method_of_that_step():
    fz, factors, _ = completion()
    problem = ff.random_low_rank_problem(jax.random.key(0), (12, 12), rank=2, n_observed=70)
    levels = tuple(np.geomspace(0.5, 1e-6, 80))

    def run(name, rtol):
        return ff.simulate(
            problem,
            fz,
            ff.GradientFlow(name, rtol=rtol, atol=rtol / 100),
            factors,
            observe=ff.AtLosses(levels),
            stop=ff.Stop(loss=levels[-1]),
            measures=["loss", "product"],
        )

    # Rows between two switches, far apart in time and near in loss, so that all steps hold some.
    ours, truth = run("Stabilized", 1e-6), run("Stabilized", 1e-10)
    np.testing.assert_allclose(ours.measures["loss"], levels, rtol=1e-12)
    assert "num_gradients" in ours.stats
    size = np.linalg.norm(truth.measures["product"], axis=(1, 2))
    off = np.linalg.norm(ours.measures["product"] - truth.measures["product"], axis=(1, 2)) / size
    assert np.max(off) < 100 * 1e-6
    assert np.all(np.diff(ours.times) > 0)


def stiff_for_a_while(y):
    """Relaxation to cos t, fast until t = 1; the second entry is the time."""
    x, time = y
    rate = jnp.where(time < 1, 1e3, 1.0)
    return jnp.stack([-rate * (x - jnp.cos(time)) - jnp.sin(time), jnp.ones_like(time)])


def switches(integrator, y):
    """The states after the steps that end in a switch: first to RKC2, then back to Tsit5."""
    advance = eqx.filter_jit(lambda state: integrator.advance(state, jnp.asarray(True)))
    state, found = eqx.filter_jit(integrator.init)(y), []
    for _ in range(200):
        before, state = state, advance(state)
        if state.step > before.step and state.solver_state.stiff != state.solver_state.was_stiff:
            found.append(state)
        if len(found) == 2:
            break
    assert [bool(state.solver_state.stiff) for state in found] == [True, False]
    return found


@eqx.filter_jit
def cut_short(end, time, method):
    """The last step up to this time, by one of the two methods alone."""
    term = dfx.ODETerm(lambda t, y, args: stiff_for_a_while(y))
    t0, y0 = end.previous_time, end.previous_y
    if isinstance(method, RKC2):
        return method.retake(term, t0, time, y0, None, end.solver_state.common)
    state = method.init(term, t0, time, y0, None)
    y, *_ = method.step(term, t0, time, y0, None, state, False)
    return y


def test_the_step_before_a_switch_is_taken_again_by_the_method_that_took_it():
    control = dfx.PIDController(rtol=1e-2, atol=1e-4)
    solver = Stabilized(rtol=1e-2, atol=1e-4)
    integrator = Integrator(stiff_for_a_while, jnp.sum, solver, control, None)
    at_time = eqx.filter_jit(integrator.at_time)
    to_rkc2, to_tsit5 = switches(integrator, jnp.array([2.0, 0.0]))
    for end, taken, other in [(to_rkc2, dfx.Tsit5(), RKC2()), (to_tsit5, RKC2(), dfx.Tsit5())]:
        rounding = 16 * jnp.finfo(end.y.dtype).eps
        np.testing.assert_allclose(at_time(end, end.time).y, end.y, rtol=0, atol=rounding)
        middle = (end.previous_time + end.time) / 2
        half = at_time(end, middle).y
        np.testing.assert_allclose(half, cut_short(end, middle, taken), rtol=0, atol=rounding)
        assert np.max(np.abs(half - cut_short(end, middle, other))) > 1e-4


def test_tolerances_reach_the_solver_from_the_flow():
    solver, control = with_tolerances(Stabilized(), 1e-3, None, jnp.float32)
    assert (solver.rtol, solver.atol) == (control.rtol, control.atol)
    assert float(solver.rtol) == pytest.approx(1e-3)
    fz = ff.DeepMatrix((2, 2), depth=3)
    runs = {}
    for rtol in (1e-3, 1e-5):
        flow = ff.GradientFlow("Stabilized", rtol=rtol, atol=rtol / 100)
        runs[rtol] = ff.simulate(
            ff.razin_cohen_problem(),
            fz,
            flow,
            ff.Identity(product_scale=1e-2)(fz),
            observe=ff.AtLosses([0.1]),
            stop=ff.Stop(loss=0.1),
            measures=["loss"],
        )
    assert runs[1e-3].stats["num_steps"] < runs[1e-5].stats["num_steps"]
    assert runs[1e-3].stats["integrator"] == "Stabilized"
