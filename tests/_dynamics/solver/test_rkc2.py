"""RKC2 against its stability polynomial, matrix exponentials, scipy and diffrax's own solvers."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

from factorflow._dynamics.solver import RKC2
from tolerances import assert_close

COLD_COST = 65  # one gradient and 32 Jacobian-vector products at two gradients each


def symmetric(eigenvalues: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A dense matrix with this spectrum, and its eigenvectors."""
    n = len(eigenvalues)
    vectors, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (vectors * eigenvalues) @ vectors.T, vectors


class Linear(eqx.Module):
    # A module and not a closure: solves with another matrix of the same shape compile once.
    matrix: jax.Array

    def __call__(self, t, y, args):
        return self.matrix @ y


def linear(matrix, dtype=None) -> dfx.ODETerm:
    """The field of a matrix, in the dtype of the matrix if none is given."""
    return dfx.ODETerm(Linear(jnp.asarray(matrix, dtype)))


class Heat(eqx.Module):
    """Heat between cold ends, in units where the spectral radius is nearly 4."""

    def __call__(self, t, y, args):
        padded = jnp.pad(y, 1)
        return padded[2:] - 2 * y + padded[:-2]


@eqx.filter_jit
def one_step(term, y, h, solver=None, state=None, made_jump=False):
    solver = RKC2() if solver is None else solver
    t0, t1 = jnp.zeros_like(h), h
    state = solver.init(term, t0, t1, y, None) if state is None else state
    return solver.step(term, t0, t1, y, None, state, made_jump)


def solve(term, y, t1, solver=None, *, steps=None, rtol=1e-5, atol=1e-8, **kwargs):
    """Fixed steps if `steps` is given, adaptive steps otherwise."""
    time = jnp.asarray(t1, jnp.result_type(*jax.tree.leaves(y)))
    if steps is None:
        controller, dt0 = dfx.PIDController(rtol=rtol, atol=atol), None
    else:
        controller, dt0 = dfx.ConstantStepSize(), time / int(steps)
    return dfx.diffeqsolve(
        term,
        RKC2() if solver is None else solver,
        jnp.zeros_like(time),
        time,
        dt0,
        y,
        stepsize_controller=controller,
        saveat=kwargs.pop("saveat", dfx.SaveAt(t1=True, solver_state=True)),
        max_steps=kwargs.pop("max_steps", 100_000),
        **kwargs,
    )


def last(solution) -> np.ndarray:
    return np.asarray(solution.ys)[-1]


def fitted_order(step_sizes, errors) -> float:
    return np.polyfit(np.log(step_sizes), np.log(errors), 1)[0]


class Counter:
    """Counts what a solve really evaluates, rejected steps included, in gradients."""

    def __init__(self):
        self.count = 0

    def __call__(self, field):
        @jax.custom_jvp
        def tick(value):
            jax.debug.callback(self._add, 1)
            return value

        @tick.defjvp
        def tick_jvp(primals, tangents):
            jax.debug.callback(self._add, 2)
            return primals[0], tangents[0]

        def counted(t, y, args):
            leaves, structure = jax.tree.flatten(field(t, y, args))
            return jax.tree.unflatten(structure, [tick(leaves[0]), *leaves[1:]])

        return counted

    def _add(self, amount):
        self.count += int(amount)

    def read(self) -> int:
        jax.effects_barrier()
        return self.count


def completion(depth: int = 3, size: int = 8, observed: int = 48):
    """Gradient flow of matrix completion by a product of square factors, as a stack."""
    rng = np.random.default_rng(1)
    target = rng.standard_normal((size, 2)) @ rng.standard_normal((2, size))
    mask = np.zeros(size * size)
    mask[rng.permutation(size * size)[:observed]] = 1
    target, mask = jnp.asarray(target), jnp.asarray(mask.reshape(size, size))

    def loss(factors):
        product = factors[0]
        for factor in factors[1:]:
            product = factor @ product
        return 0.5 * jnp.sum(mask * (product - target) ** 2)

    start = jnp.asarray(0.2 * rng.standard_normal((depth, size, size)))
    return loss, start


# ------------------------------------------------------------------ the formula


@pytest.mark.parametrize("stiffness", [1.0, 30.0, 1e3, 1e5])
def test_one_step_is_the_stability_polynomial(stiffness, dtype):
    eigenvalues = -stiffness * np.linspace(0, 1, 41)
    y, h = jnp.ones(41, dtype), jnp.ones((), dtype)
    y1, _, _, state, _ = one_step(linear(np.diag(eigenvalues), dtype), y, h)

    s = int(state.num_evaluations) - COLD_COST
    assert s == max(2, np.ceil(np.sqrt(1 + 1.54 * 1.2 * float(state.spectral_radius))))
    chebyshev = np.polynomial.Chebyshev.basis(s)
    w0 = 1 + 2 / 13 / s**2
    slope, bend = chebyshev.deriv(1)(w0), chebyshev.deriv(2)(w0)
    w1, b = slope / bend, bend / slope**2
    expected = 1 - b * chebyshev(w0) + b * chebyshev(w0 + w1 * eigenvalues)
    # The argument of T_s is known to epsilon, and T_s' is at most s^2; some roundings of each.
    np.testing.assert_allclose(y1, expected, rtol=0, atol=10 * s**2 * jnp.finfo(dtype).eps)
    # Strictly stable: 5% damping of everything that is not slow.
    assert np.all(np.abs(y1[1:]) < 1)


@pytest.mark.x64
def test_order_on_a_stiff_symmetric_system():
    # The slow modes are resolved by the steps, the stiff ones are at rest but present: h rho is
    # 31 to 500, so that an unstable mode would grow from rounding by many orders of magnitude.
    eigenvalues = -np.concatenate([[0.5, 1.0, 1.5], np.geomspace(50, 4000, 17)])
    matrix, vectors = symmetric(eigenvalues)
    y = vectors[:, :3] @ np.array([1.0, -2.0, 1.5])
    expected = scipy.linalg.expm(matrix) @ y
    counts = np.array([8, 16, 32, 64, 128])
    errors = [
        np.linalg.norm(last(solve(linear(matrix), jnp.asarray(y), 1.0, steps=n)) - expected)
        for n in counts
    ]
    # Measured 2.01. The next term of the error is O(h) smaller, and h runs from 1/8.
    assert fitted_order(1 / counts, errors) == pytest.approx(2, abs=0.1)
    # And the right constant: local error h^3 / 15 per step on the mode of 1.5, summed over 1 / h.
    assert errors[-1] < 1.5**3 * np.linalg.norm(y) / 15 / counts[-1] ** 2


@pytest.mark.x64
def test_order_when_time_enters():
    # y = cos t for every stiffness: only correct abscissae of the stages see the force in time.
    stiffness = jnp.asarray([1.0, 10.0, 2000.0])
    term = dfx.ODETerm(lambda t, y, args: -stiffness * (y - jnp.cos(t)) - jnp.sin(t))
    counts = np.array([16, 32, 64, 128])
    errors = [
        np.abs(last(solve(term, jnp.ones(3), 1.0, steps=n)) - np.cos(1.0)).max() for n in counts
    ]
    # Measured 1.95. At 6 to 16 stages the error constant is within 10% of its limit; for 2 it is
    # twice as large, which would tilt the fit.
    assert fitted_order(1 / counts, errors) == pytest.approx(2, abs=0.1)


@pytest.mark.x64
def test_error_estimate_is_of_third_order_and_size():
    matrix, vectors = symmetric(-np.array([0.7, 1.0, 300.0]))
    y = vectors[:, :2] @ np.ones(2)
    steps = np.array([0.4, 0.2, 0.1, 0.05])
    estimates, errors = [], []
    for h in steps:
        y1, error, *_ = one_step(linear(matrix), jnp.asarray(y), jnp.asarray(h))
        estimates.append(np.linalg.norm(error))
        errors.append(np.linalg.norm(y1 - scipy.linalg.expm(h * matrix) @ y))
    # The next order in h moves the slope by less than 0.1 at these h.
    assert fitted_order(steps, estimates) == pytest.approx(3, abs=0.15)
    # With a true error of e (h^3 / 15 times the third derivative for many stages) the estimate is
    # h^3 / 15 + 0.8 e, because it uses the computed y1: e is 0.56 of it, within a few per cent.
    ratios = np.array(errors) / np.array(estimates)
    assert np.all((ratios > 0.48) & (ratios < 0.65)), ratios


@pytest.mark.x64
def test_dense_output_is_as_accurate_as_the_step():
    matrix, vectors = symmetric(-np.array([0.5, 1.0, 500.0]))
    y, h = vectors[:, :2] @ np.ones(2), 0.25
    y1, _, dense_info, *_ = one_step(linear(matrix), jnp.asarray(y), jnp.asarray(h))
    inside = RKC2.interpolation_cls(t0=0.0, t1=h, **dense_info)
    # The cubic adds h^4 / 384 = 1e-5 to the h^3 / 15 = 1e-3 of the step; a straight line would be
    # wrong by h^2 / 8 = 8e-3 in the middle.
    largest = np.abs(y1 - scipy.linalg.expm(h * matrix) @ y).max()
    assert 1e-4 < largest < 2e-3
    for share in (0.25, 0.5, 0.75):
        exact = scipy.linalg.expm(share * h * matrix) @ y
        assert np.abs(inside.evaluate(share * h) - exact).max() < largest
    assert_close(inside.evaluate(jnp.asarray(h)), y1)


# ------------------------------------------------------------------ accuracy and stability


@pytest.mark.x64
def test_agrees_with_radau_on_a_deep_factorization():
    def field(t, factors, args):
        def loss(factors):
            a, b, c = factors
            product = c @ b @ a
            residual = product - jnp.array([[0.0, 1.0], [1.0, 0.0]])
            return 0.5 * jnp.sum(jnp.array([[0.0, 1.0], [1.0, 1.0]]) * residual**2)

        return jax.tree.map(jnp.negative, jax.grad(loss)(factors))

    rng = np.random.default_rng(3)
    start = jnp.asarray(0.5 * rng.standard_normal((3, 2, 2)))
    compiled = jax.jit(lambda y: jnp.ravel(field(0.0, y.reshape(3, 2, 2), None)))
    reference = scipy.integrate.solve_ivp(
        lambda t, y: np.asarray(compiled(y)),
        (0, 20),
        np.asarray(start).ravel(),
        method="Radau",
        rtol=1e-9,
        atol=1e-10,
    )
    solution = solve(dfx.ODETerm(field), start, 20.0, rtol=1e-7, atol=1e-9)
    # The global error is some ten local tolerances; Radau's is a hundred times smaller.
    np.testing.assert_allclose(last(solution).ravel(), reference.y[:, -1], rtol=0, atol=2e-6)
    # The flow has moved: agreeing with the start would not be a result.
    assert np.abs(last(solution) - np.asarray(start)).max() > 0.1


def test_heat_equation_is_stable_at_large_steps(dtype):
    # Rough data, so that every mode is present, and h rho = 4e4 in a single step.
    y = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], 300), dtype)
    y1, error, _, state, _ = one_step(dfx.ODETerm(Heat()), y, jnp.asarray(1e4, dtype))
    stages = int(state.num_evaluations) - COLD_COST
    # ceil(sqrt(1 + 1.54 * 1.2 * 1e4 * rho)) with rho between 3.6 (10% short) and 4.
    assert 259 <= stages <= 273
    assert np.all(np.isfinite(error))
    # The largest factor of a mode is that of the slowest, exp(-1e4 * (pi / 301)^2) = 0.34, and the
    # 5% damping of the stiff ones; without damping the norm could not fall.
    assert np.linalg.norm(y1) < 0.96 * np.linalg.norm(y)


@pytest.mark.x64
def test_needs_far_fewer_gradients_than_tsit5():
    loss, start = completion()

    def field(t, factors, args):
        return -jax.grad(loss)(factors)

    def run(field, solver):
        event = dfx.Event(lambda t, y, args, **kwargs: loss(y) < 1e-6)
        solution = solve(dfx.ODETerm(field), start, 1e6, solver, event=event)
        assert loss(solution.ys[-1]) < 1e-6
        return solution

    counter = Counter()
    run(counter(field), RKC2())
    # Tsit5 evaluates six new gradients in each step, rejected or not.
    ours, theirs = counter.read(), 6 * int(run(field, dfx.Tsit5()).stats["num_steps"])
    # Measured 2543 against 31668.
    assert 8 * ours < theirs, (ours, theirs)


# ------------------------------------------------------------------ the count and the radius


def test_counts_what_it_evaluates(dtype):
    # Fixed steps are never rejected, so nothing may be missing.
    counter = Counter()
    matrix = jnp.asarray(symmetric(-np.linspace(1, 400, 10))[0], dtype)
    term = dfx.ODETerm(counter(lambda t, y, args: matrix @ y))
    solution = solve(term, jnp.ones(10, dtype), 1.0, steps=30)
    assert int(solution.solver_state.num_evaluations) == counter.read()
    # sqrt(1 + 1.54 * 1.2 * 400 / 30) = 5.06, so 6 stages, and 3 products in the 21st step.
    assert counter.read() == COLD_COST + 30 * 6 + 2 * 3


@pytest.mark.parametrize("seed", range(3))
def test_spectral_radius(seed, dtype):
    matrix, _ = symmetric(-np.geomspace(1e-3, 50, 60), seed)
    *_, state, _ = one_step(linear(matrix, dtype), jnp.ones(60, dtype), jnp.asarray(0.01, dtype))
    # From below, and by no more than the safety factor of 1.2 makes up for. Neighbouring
    # eigenvalues differ by 20%: 32 iterations leave 1.2^-64 of the second one.
    assert 50 * 0.99 < float(state.spectral_radius) < 50 * 1.001


def test_spectral_radius_when_derivative_and_eigenvector_are_opposite(dtype):
    # In one dimension both are +1 or -1, and their sum vanishes if the signs are not aligned.
    for y in (3.0, -3.0):
        term = linear(-7 * np.eye(1), dtype)
        h, y = jnp.asarray(0.1, dtype), jnp.asarray([y], dtype)
        *_, state, _ = one_step(term, y, h)
        assert_close(state.spectral_radius, 7.0)
        for _ in range(2):  # the estimate turns the eigenvector around
            *_, state, _ = one_step(term, y, 0.5 * h, state=state)
            assert_close(state.spectral_radius, 7.0)
            h = 0.5 * h


@pytest.mark.x64
def test_finds_a_mode_that_becomes_the_stiffest():
    # Decoupled modes: power iteration that only remembers its old direction has exactly lost the
    # second one when that overtakes the first, and the solve then takes steps without end.
    phases = jnp.arange(20.0)

    def stiffness(t):
        base = jnp.geomspace(1.0, 300.0, 20)
        return base.at[0].set(1e4 * jnp.exp(-t)).at[1].set(10 * jnp.exp(t))

    def field(t, y, args):
        return -stiffness(t) * (y - jnp.cos(t + phases))

    solution = solve(dfx.ODETerm(field), jnp.cos(phases), 8.0, max_steps=1000)
    largest = float(jnp.max(stiffness(jnp.asarray(8.0))))
    # An estimate is up to 20 steps old, in which the stiffness grows by a third at most.
    assert 0.7 * largest < float(solution.solver_state.spectral_radius) <= 1.001 * largest


def test_a_shorter_step_asks_for_the_radius_again(dtype):
    term = linear(np.diag([-1.0, -100.0]), dtype)
    y, h = jnp.ones(2, dtype), jnp.asarray(0.1, dtype)
    *_, first, _ = one_step(term, y, h)
    # As if the stiffness had grown by ten since it was estimated.
    stale = eqx.tree_at(lambda s: s.spectral_radius, first, first.spectral_radius / 10)
    *_, same, _ = one_step(term, y, h, state=stale)
    *_, shorter, _ = one_step(term, y, 0.9 * h, state=stale)
    assert_close(same.spectral_radius, 10.0, "linear_algebra", scale=100.0)
    assert_close(shorter.spectral_radius, 100.0, "linear_algebra", scale=100.0)
    assert (int(same.age), int(shorter.age)) == (2, 1)


def test_a_jump_evaluates_the_derivative_again(dtype):
    y, h = jnp.ones(3, dtype), jnp.asarray(0.01, dtype)
    before, after = linear(-np.eye(3), dtype), linear(-5 * np.eye(3), dtype)
    *_, state, _ = one_step(before, 0 * y, h)
    fresh, *_ = one_step(after, y, h)
    for made_jump in (True, jnp.asarray(True)):
        jumped, *_ = one_step(after, y, h, state=state, made_jump=made_jump)
        assert_close(jumped, fresh)
    unaware, *_ = one_step(after, y, h, state=state, made_jump=jnp.asarray(False))
    assert np.abs(unaware - fresh).max() > 1e-4


def test_overflow_is_an_infinite_error(dtype):
    # An estimate of the radius that is too small, as after a sudden rise: the step blows up.
    term = dfx.ODETerm(lambda t, y, args: -(y**9))
    y, h = jnp.asarray([1.0, 10.0], dtype), jnp.asarray(1e30, dtype)
    state = RKC2().init(term, jnp.zeros_like(h), h, y, None)
    state = eqx.tree_at(lambda s: s.age, state, jnp.zeros((), jnp.int32))
    _, error, *_ = one_step(term, y, h, state=state)
    assert np.all(np.isposinf(error))


# ------------------------------------------------------------------ the stage cap


def test_refuses_a_step_beyond_the_cap(dtype):
    counter = Counter()
    matrix = jnp.asarray(np.diag([-1.0, -1e4]), dtype)
    term = dfx.ODETerm(counter(lambda t, y, args: matrix @ y))
    y, solver = jnp.ones(2, dtype), RKC2(max_stages=10)
    y1, error, dense, state, result = one_step(term, y, jnp.ones((), dtype), solver)
    np.testing.assert_array_equal(y1, y)
    assert np.all(np.isposinf(error))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((dense, state)))
    assert result == dfx.RESULTS.dt_min_reached
    assert counter.read() == COLD_COST  # no stage has been spent
    # The longest step within the cap: 10 >= sqrt(1 + 1.54 * 1.2 * h * rho) for h * rho < 53.5.
    for h, taken in ((0.0053, True), (0.0054, False)):
        _, error, _, _, result = one_step(term, y, jnp.asarray(h, dtype), solver)
        assert np.all(np.isfinite(error)) == taken
        assert (result == dfx.RESULTS.successful) == taken


@pytest.mark.x64
def test_adaptive_steps_get_below_the_cap():
    matrix, vectors = symmetric(-np.geomspace(1, 1e4, 10))
    y = jnp.asarray(vectors @ np.ones(10))
    solution = solve(linear(matrix), y, 0.5, RKC2(max_stages=12), max_steps=10_000)
    # Some ten local tolerances, 1e-5 of a state of size 3.
    expected = scipy.linalg.expm(0.5 * matrix) @ np.asarray(y)
    np.testing.assert_allclose(last(solution), expected, rtol=0, atol=1e-4)
    # The cap has been at work: h rho <= 77.4 means at least 65 steps.
    assert solution.stats["num_accepted_steps"] >= 65
    assert solution.stats["num_rejected_steps"] > 0
    assert solution.result == dfx.RESULTS.successful


def test_fixed_steps_beyond_the_cap_fail_loudly(dtype):
    term, y = linear(np.diag([-1.0, -1e4]), dtype), jnp.ones(2, dtype)
    solution = solve(term, y, 1.0, RKC2(max_stages=10), steps=4, throw=False)
    assert solution.result == dfx.RESULTS.dt_min_reached
    assert solution.stats["num_steps"] == 1


# ------------------------------------------------------------------ transformations and dtypes


@pytest.mark.x64
def test_vmap_is_the_same_as_one_by_one():
    # From non-stiff to stiff, so that lanes differ in stages; only the middle one asks for a new
    # derivative and a new spectral radius.
    matrices = jnp.asarray([symmetric(-np.linspace(1, top, 4))[0] for top in (2.0, 50.0, 3000.0)])
    jumps = jnp.asarray([False, True, False])
    y, h = jnp.arange(4.0), jnp.asarray(0.1)

    def run(matrix, jump):
        y1, error, _, state, _ = one_step(linear(matrix), y, h, made_jump=jump)
        return y1, error, state

    together = jax.vmap(run)(matrices, jumps)
    assert len(set(together[-1].num_evaluations.tolist())) == 3
    for i in range(3):
        # Rounding of vectorised arithmetic, amplified by up to 24 stages.
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-10, atol=1e-12),
            together,
            run(matrices[i], jumps[i]),
        )


@pytest.mark.x64
def test_vmap_of_adaptive_solves():
    term = dfx.ODETerm(lambda t, y, stiffness: -stiffness * (y**3 - jnp.cos(t)))
    stiffness, y = jnp.asarray([1.0, 50.0, 3000.0]), jnp.asarray([2.0, 0.5])
    together = jax.vmap(lambda stiffness: solve(term, y, 1.2, args=stiffness))(stiffness)
    assert len(set(together.stats["num_steps"].tolist())) == 3
    for i, value in enumerate(stiffness):
        # Within some ten local tolerances, and the error of 1000 steps of second order. No closer:
        # accepting and rejecting amplifies rounding where the error is mostly that of stiff modes.
        precise = solve(term, y, 1.2, args=value, steps=1000)
        np.testing.assert_allclose(together.ys[i], precise.ys, rtol=0, atol=1e-4)


def test_compiles_once_for_all_numbers_of_stages(dtype):
    traces = []
    term, solver = dfx.ODETerm(Heat()), RKC2()
    y = jnp.sin(jnp.linspace(0, np.pi, 50, dtype=dtype))
    state = solver.init(term, jnp.zeros((), dtype), jnp.ones((), dtype), y, None)

    @jax.jit
    def step(t1, y, state):
        traces.append(t1)
        return solver.step(term, jnp.zeros_like(t1), t1, y, None, state, jnp.asarray(False))

    costs = set()
    for h in (1.0, 10.0, 1e2, 1e3):
        *_, new, _ = step(jnp.asarray(h, dtype), y, state)
        costs.add(int(new.num_evaluations - state.num_evaluations))
        assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert len(costs) == 4
    assert len(traces) == 1


def test_single_precision():
    # In either job: float32 states must stay float32 under strict promotion.
    matrix, vectors = symmetric(-np.geomspace(1, 1e4, 12))
    y = jnp.asarray(vectors @ np.ones(12), jnp.float32)
    solution = solve(linear(matrix, jnp.float32), y, 1.0, rtol=1e-3, atol=1e-4)
    assert solution.ys.dtype == jnp.float32
    for leaf in jax.tree.leaves(solution.solver_state):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_)
    # Ten local tolerances; rounding, rho * epsilon * |y| = 4e-3 per gradient, averages out.
    expected = scipy.linalg.expm(matrix) @ np.asarray(y)
    np.testing.assert_allclose(last(solution), expected, rtol=0, atol=4e-3)


def test_tiny_gradients_have_a_direction_in_single_precision():
    # Squares of 1e-19 are 0 in float32: with a plain norm the direction of the gradient becomes
    # 0 / 0 or so large that its own square overflows, and the spectral radius 0.
    stiffness = np.linspace(1, 30, 20)
    y = jnp.asarray(1e-19 / stiffness, jnp.float32)
    *_, state, _ = one_step(linear(np.diag(-stiffness), jnp.float32), y, jnp.float32(0.1))
    # From below, within the safety factor.
    assert 29 < state.spectral_radius < 30.001


def test_any_pytree_is_one_vector(dtype):
    matrix, _ = symmetric(-np.geomspace(1, 1e3, 7))
    matrix = jnp.asarray(matrix, dtype)
    flat = jnp.asarray(np.random.default_rng(5).standard_normal(7), dtype)

    def split(vector):
        return {"a": vector[:4].reshape(2, 2), "b": (vector[4], vector[5:])}

    def field(t, tree, args):
        vector = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        return split(matrix @ vector)

    h = jnp.asarray(0.1, dtype)
    y1, error, dense, state, _ = one_step(dfx.ODETerm(field), split(flat), h)
    expected, expected_error, _, expected_state, _ = one_step(linear(matrix), flat, h)
    for actual, vector in ((y1, expected), (error, expected_error), (dense["y1"], expected)):
        assert jax.tree.structure(actual) == jax.tree.structure(split(flat))
        jax.tree.map(lambda a, b: assert_close(a, b, "linear_algebra"), actual, split(vector))
    assert int(state.num_evaluations) == int(expected_state.num_evaluations)


@pytest.mark.x64
def test_leaves_may_differ_in_precision():
    def field(t, tree, args):
        return {"wide": -2 * tree["wide"], "narrow": -100 * tree["narrow"]}

    tree = {"wide": jnp.ones(2, jnp.float64), "narrow": jnp.ones(3, jnp.float32)}
    h = jnp.asarray(0.1)
    y1, error, *_ = one_step(dfx.ODETerm(field), tree, h)
    for result in (y1, error):
        assert result["wide"].dtype == jnp.float64
        assert result["narrow"].dtype == jnp.float32
    exact, *_ = one_step(linear(np.diag([-2.0, -100.0])), jnp.ones(2), h)
    # The stages of the narrow leaf are rounded to float32, those of the wide one are not.
    np.testing.assert_allclose(y1["wide"], exact[0], rtol=1e-12)
    np.testing.assert_allclose(y1["narrow"], exact[1], rtol=1e-5)


@pytest.mark.x64
def test_backwards_in_time():
    # Backwards, this problem is the stiff decay again.
    matrix, vectors = symmetric(np.array([1.0, 2.0, 1e3]))
    y = jnp.asarray(vectors[:, :2] @ np.ones(2))
    solution = dfx.diffeqsolve(
        linear(matrix),
        RKC2(),
        1.0,
        0.0,
        None,
        y,
        stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-9),
    )
    # Some ten local tolerances.
    np.testing.assert_allclose(solution.ys[-1], scipy.linalg.expm(-matrix) @ y, atol=1e-5)
    assert solution.stats["num_steps"] < 200  # stability alone would ask for 500 of Euler's steps


@pytest.mark.x64
def test_forward_mode_derivative():
    matrix = jnp.asarray(symmetric(-np.array([1.0, 2.0, 20.0]))[0])

    def final(scale):
        return one_step(linear(scale * matrix), jnp.arange(3.0), jnp.asarray(0.2))[0]

    def shifted(change):
        return final(jnp.asarray(1 + change))

    _, slope = jax.jvp(final, (jnp.ones(()),), (jnp.ones(()),))
    # The number of stages is the same on both sides.
    assert_close(slope, (shifted(1e-5) - shifted(-1e-5)) / 2e-5, "finite_difference", scale=10.0)
    assert np.abs(slope).max() > 0.1


@pytest.mark.parametrize("max_stages", [1, 0])
def test_rejects_a_useless_cap(max_stages):
    with pytest.raises(ValueError, match=f"at least 2, got {max_stages}"):
        RKC2(max_stages=max_stages)


def test_rejects_states_that_are_not_real():
    term = dfx.ODETerm(lambda t, y, args: y)
    for y in (jnp.ones(2, jnp.complex64), jnp.ones(2, jnp.int32)):
        with pytest.raises(ValueError, match=f"real arrays, got {y.dtype}"):
            RKC2().init(term, 0.0, 1.0, y, None)
