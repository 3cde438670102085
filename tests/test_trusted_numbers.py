"""Every number of a trusted row is the flow's: small inputs on which some were not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._clock import CELL_WIDTHS
from factorflow._compare import Lane, compare
from factorflow._dynamics.perturbation import moved_by_rounding
from factorflow._measure import as_measures
from factorflow._witness import EVERY_ENTRY, Witness, _sketch, on_a_set
from runs import EPS

pytestmark = pytest.mark.x64


def follow(problem, fz, dynamics, factors, losses, **options) -> ff.Trajectory:
    options = {"observe": ff.AtLosses(losses), "stop": ff.Stop(loss=losses[-1]), **options}
    return ff.simulate(problem, fz, dynamics, factors, throw=False, **options)


# --- Sets that the exact flow never leaves


def semidefinite_problem(negative: float = 1.0):
    """A target with two negative eigenvalues, -1 and -1.5 times this, which no square has."""
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    target = basis @ np.diag([1.0, -negative, -1.5 * negative]) @ basis.T
    places = [(i, j) for i in range(3) for j in range(3)]
    return ff.Completion((3, 3), places, ((target + target.T) / 2).ravel())


def test_a_run_that_rounding_takes_off_the_semidefinite_cone_is_caught_by_its_time():
    fz = ff.DeepMatrix((3, 3), depth=2)
    start = ff.Identity(product_scale=1e-3)(fz)
    # From a multiple of the identity the product stays positive semidefinite.
    lowest = (1.0**2 + 1.5**2) / 2
    run = follow(semidefinite_problem(), fz, ff.GradientFlow(), start, [1.7, 1.0, 1e-2])
    assert run.reached.all()
    assert run.levels[0] > lowest > run.levels[1]
    assert run.certificate.doubts == ["none", "chance", "chance"]
    assert run.certificate.verdict in ("step_limited", "rounding_limited")
    # Nor is it trusted where all runs have long arrived, at a time that they do not differ in; be
    # it that a thousandth of the loss was left.
    negative = 0.03
    times = ff.AtTimes([10.0 / negative, 300.0 / negative])
    options = {"observe": times, "stop": ff.Stop(max_time=300.0 / negative)}
    problem = semidefinite_problem(negative)
    late = follow(problem, fz, ff.GradientFlow(), start, [1.0], **options)
    assert late.measures["loss"][1] < lowest * negative**2 / 2
    assert late.certificate.doubts == ["none", "chance"]


def test_the_sign_of_a_determinant_that_is_zero_is_not_tossed():
    fz = ff.DeepMatrix((2, 2), 2)
    places = [(0, 1), (1, 0), (1, 1)]
    for seed in range(3):
        draw = np.random.default_rng(seed)
        problem = ff.Completion((2, 2), places, draw.normal(size=3))
        rank_one = 0.1 * np.outer(draw.normal(size=2), draw.normal(size=2))
        run = follow(
            problem,
            fz,
            ff.GradientFlow("Tsit5"),
            ff.balanced_factors(fz, jnp.asarray(rank_one)),
            [1.0],
            observe=ff.AtTimes([0.5, 8.0]),
            stop=ff.Stop(max_time=8.0),
            measures=["determinant_sign", "rank[1e-06]"],
            certify="full",
        )
        # A flow's rank does not rise; rounding's may, in the last digit, with either sign.
        signs = run.measures["determinant_sign"]
        wrong = (signs != 0) & run.certificate.trusted_measures["determinant_sign"]
        assert not wrong.any()
        assert run.certificate.trusted_measures["rank[1e-06]"].all()
        assert run.measures["rank[1e-06]"].tolist() == [1.0, 1.0]


def test_a_run_that_rounding_takes_through_zero_is_caught_where_widths_differ():
    problem, fz = ff.Completion((2, 2), [(1, 1)], [-1.0]), ff.DeepMatrix((2, 2), 3, hidden=3)
    start = ff.Identity(product_scale=1e-1)(fz)
    # The observed entry stays positive: the loss never falls to 1/2.
    run = follow(problem, fz, ff.GradientFlow(), start, [0.51, 0.25, 1e-2])
    assert run.reached.all()
    assert run.certificate.trusted.tolist() == [True, False, False]


def test_a_run_on_such_a_set_to_the_last_bit_is_trusted_and_says_so():
    # The second entry must change its sign, which from a diagonal start it cannot.
    places = [(i, j) for i in range(2) for j in range(2)]
    problem, fz = ff.Completion((2, 2), places, [1.0, 0, 0, -1.0]), ff.DeepMatrix((2, 2), 2)
    start = ff.balanced_factors(fz, jnp.diag(jnp.asarray([0.2, 0.1])))
    times = np.array([1.0, 5.0, 30.0])
    run = follow(
        problem,
        fz,
        ff.GradientFlow("radau"),
        start,
        [1.0],
        observe=ff.AtTimes(times),
        stop=ff.Stop(max_time=30.0),
        measures=["entry[0,0]", "entry[1,1]"],
    )
    # s' = 2 s (1 - s) and s' = -2 s (1 + s), both in closed form.
    growth = 0.2 * np.exp(2 * times) / (1 - 0.2 + 0.2 * np.exp(2 * times))
    decay = 0.1 * np.exp(-2 * times) / (1 + 0.1 - 0.1 * np.exp(-2 * times))
    np.testing.assert_allclose(run.measures["entry[0,0]"], growth, rtol=1e-9)
    np.testing.assert_allclose(run.measures["entry[1,1]"], decay, rtol=1e-6, atol=1e-12)
    assert run.certificate.trusted.all()
    assert run.certificate.on_invariant_set.tolist() == [False, False, True]
    assert "invariant set" in run.certificate.explanation


def test_what_is_exactly_zero_or_symmetric_as_in_the_start_lies_on_a_set():
    fz, diagonal = ff.DeepMatrix((2, 2), depth=2), jnp.diag(jnp.asarray([0.2, 0.1]))
    rows = jnp.asarray([[1, 0, 0, 2], [1, 3, 3, 2], [1, 3, 4, 2]], float)

    def found(*start) -> list[bool]:
        return [bool(on_a_set(fz, row, start)) for row in rows]

    assert found(diagonal, diagonal) == [True, True, False]
    # The start has no zeros, so that the first row's must be an accident; but it is symmetric.
    full = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert found(full, full.T) == [True, True, False]
    # Symmetric up to rounding is not symmetric: the exact flow of these factors leaves.
    assert found(full, full.T * (1 + 2.3e-16)) == [False, False, False]
    assert found(full, full) == [False, False, False]
    # Nor is what is too small to be a number a zero of the start.
    assert not on_a_set(fz, rows[0], (1e-200 * full, 1e-200 * full))


def test_balanced_factors_are_moved_without_losing_balance():
    fz = ff.DeepMatrix((3, 3), depth=3)
    factors = ff.Balanced(product_scale=1e-8)(fz, jax.random.key(0))
    moved = moved_by_rounding(factors, balanced=True, seed=1)
    before, after = (np.asarray(fz.compose(f), float) for f in (factors, moved))
    size = np.linalg.norm(before, 2)
    assert 8 * EPS * size < np.linalg.norm(after - before, 2) < 1e5 * EPS * size
    # Of the order of what it was moved by, times the factors' own squares.
    scale = max(np.linalg.norm(factor, 2) ** 2 for factor in factors)
    assert max(np.linalg.norm(gap, 2) for gap in fz.conserved(moved)) < 1e5 * EPS * scale


def test_a_mirrored_start_lies_on_the_other_side_and_half_as_far():
    factors = ff.Gaussian(factor_scale=1.0)(ff.DeepMatrix((3, 3), depth=2), jax.random.key(0))
    one, other = (moved_by_rounding(factors, False, seed=1, mirrored=way) for way in (False, True))
    for start, near, far in zip(factors, other, one, strict=True):
        away = np.asarray(far) - np.asarray(start)
        assert 8 * EPS < np.max(np.abs(away)) < 1e3 * EPS
        # Each sum has rounded.
        np.testing.assert_allclose(np.asarray(near) - np.asarray(start), -away / 2, atol=4 * EPS)


# --- Times, and other moments


@pytest.mark.parametrize("integrator", ["Stabilized", "Tsit5"])
def test_times_from_starts_far_below_the_tolerance(integrator):
    draw = np.random.default_rng(0)
    target = draw.normal(size=(5, 1)) @ draw.normal(size=(1, 4))
    mask = draw.random((5, 4)) < 0.8
    problem = ff.Completion((5, 4), np.argwhere(mask), target[mask])
    fz, whole = ff.DeepMatrix((5, 4), depth=2, hidden=5), 0.5 * np.sum(target[mask] ** 2)
    # Integrated in quadruple precision, independently.
    expected = {1e-16: [15.25955853, 19.16479009], 1e-24: [22.93753733, 26.84278747]}
    for scale, times in expected.items():
        start = ff.Gaussian(product_scale=scale)(fz, jax.random.key(1))
        losses = [0.5 * whole, 1e-2 * whole]
        run = follow(problem, fz, ff.GradientFlow(integrator), start, losses, certify="full")
        assert run.certificate.trusted.all()
        np.testing.assert_allclose(run.times, times, rtol=1e-8)


def test_an_absolute_tolerance_above_the_start_is_not_shared_by_the_companion():
    fz = ff.DeepMatrix((2, 2), 2)
    start = ff.Gaussian(product_scale=1e-20)(fz, jax.random.key(1))
    flow = ff.GradientFlow("Tsit5", atol=1e-6)
    run = follow(ff.razin_cohen_problem(), fz, flow, start, [0.1], certify="full")
    assert run.reached.all()
    assert not run.certificate.trusted.any()


def test_flows_observed_at_steps_are_compared_at_equal_times():
    fz = ff.DeepMatrix((2, 2), 3)
    start = ff.Balanced(product_scale=1e-3, determinant="positive")(fz, jax.random.key(0))
    run = follow(
        ff.razin_cohen_problem(),
        fz,
        ff.GradientFlow(),
        start,
        [1.0],
        observe=ff.AtSteps([0, 5, 20]),
        stop=ff.Stop(max_steps=20),
    )
    assert run.certificate.verdict == "flow_faithful"


def test_the_losses_of_descent_are_compared_too():
    places = [(i, j) for i in range(2) for j in range(2)]
    problem, fz = ff.Completion((2, 2), places, [2, 0.3, 0.3, 1]), ff.DeepMatrix((2, 2), 2)
    run = follow(
        problem,
        fz,
        ff.GradientDescent(3e-2),
        ff.Balanced(product_scale=1e-1, determinant="positive")(fz, jax.random.key(0)),
        [1.0],
        observe=ff.AtTimes([0.3, 8.0]),
        stop=ff.Stop(max_time=8.0),
        measures=["loss", "nuclear_norm"],
        certify="full",
    )
    # Near the solution the product is within 1% of the flow's, and its loss is another one.
    assert run.certificate.doubts[1] == "measure"
    assert run.certificate.trusted_measures["nuclear_norm"][1]
    assert not run.certificate.trusted_measures["loss"][1]


# --- Every entry, and every measure


def test_sketches_of_large_products_miss_no_error():
    draw = np.random.default_rng(0)
    count = 3 * EVERY_ENTRY + 7
    errors = [np.zeros(count) for _ in range(3)]
    errors[0][draw.integers(count)] = 1.0
    errors[1][:] = draw.normal(size=count)
    errors[2][: count // 2] = 1.0
    for error in errors:
        norms = np.linalg.norm(np.asarray(_sketch(jnp.asarray(error))).reshape(2, -1), axis=1)
        # The standard deviation of a squared norm is 1/32 of its mean.
        np.testing.assert_allclose(norms, np.linalg.norm(error), rtol=0.1)
    linear = np.asarray(_sketch(jnp.asarray(errors[0] + errors[1])))
    np.testing.assert_allclose(linear, sum(np.asarray(_sketch(jnp.asarray(e))) for e in errors[:2]))


def lane(value: float, **measures) -> Lane:
    """One row of a run that has this product, a number, and these measures."""
    rows = {
        "seen": [[value]],
        "on_a_set": [False],
        "largest": [abs(value)],
        "size": [4.0],
        "drift": [0.0],
    }
    rows |= {name: [[0.0]] for name in ("clock", "clock_spread", "clock_weight")}
    record = Witness({k: np.asarray(v) for k, v in rows.items()}, {"gap": 0.0})
    trajectory: ff.Trajectory = type("Rows", (), {})()
    trajectory.__dict__.update(
        times=np.ones(1),
        reached=np.ones(1, bool),
        measures={k: np.asarray([v]) for k, v in measures.items()},
    )
    return Lane(trajectory, record)


@pytest.mark.parametrize(
    ("name", "ours", "others", "error"),
    [
        ("loss", 1e-16, 2e-16, 0.5),
        ("entry[0,0]", 1e-3, 2e-3, 1e-3 / 2.0),
        ("log_singular_values", [0.1, -100.0], [0.2, -101.0], 0.1),
        ("balancedness_gap", 0.0, 1e-3, 1e-3 / 4),
        ("rank", 2.0, 3.0, np.inf),
        ("effective_rank", np.nan, np.nan, np.inf),
        ("effective_rank", np.inf, np.inf, np.inf),
        ("log_singular_values", [0.0, -np.inf], [0.0, -np.inf], 0.0),
    ],
)
def test_the_error_of_a_measure_is_relative_to_what_it_declares(name, ours, others, error):
    measures = as_measures([name])
    run, other = lane(2.0, **{name: ours}), lane(2.0, **{name: others})
    found = compare("companion_error", run, other, measures, (1, 1))
    assert found.measures[name][0] == pytest.approx(error)


@pytest.mark.parametrize(
    ("name", "value", "noise", "error"),
    [
        ("loss", 1e-16, 5e-17, 0.5),
        ("log_singular_values", [0.1, -100.0], [0.0, 7.0], 0.07),
        ("balancedness_gap", 1e-3, 1e-3, 1e-3 / 4),
    ],
)
def test_what_rounding_moves_in_a_companion_is_an_error_where_two_agree(name, value, noise, error):
    run, other = lane(2.0, **{name: value}), lane(2.0, **{name: value})
    other.witness.noise[name] = np.asarray([noise])
    found = compare("companion_error", run, other, as_measures([name]), (1, 1))
    assert found.measures[name][0] == pytest.approx(error)


def test_a_loss_that_rounding_decides_is_not_trusted():
    """A residual of 1e-11 beside an entry of 5: known to 1e-4, in whatever runs agree on it."""
    problem, fz = ff.Completion((1, 2), [[0, 0], [0, 1]], [5.0, 1.0]), ff.DeepMatrix((1, 2), 1)
    for seed in range(5):
        start = (5 * jax.random.normal(jax.random.key(seed), (1, 2)),)
        run = ff.simulate(
            problem, fz, ff.GradientFlow(), start, measures=["loss", "product"],
            observe=ff.AtTimes([5.0, 27.0]), stop=ff.Stop(max_time=27.0),
        )  # fmt: skip
        assert run.certificate.trusted[0]
        assert not run.certificate.trusted_measures["loss"][1]
        assert run.certificate.trusted_measures["product"].all()


@pytest.mark.parametrize("rate", [0.03, 0.033, 0.037])
def test_the_last_row_of_descent_at_times_has_companions(rate):
    """The limit of time that ends a run lies before its row, and before that of half the steps."""
    problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=2)
    start = ff.Balanced(product_scale=0.1, determinant="positive")(fz, jax.random.key(0))
    run = ff.simulate(
        problem, fz, ff.GradientDescent(rate), start, measures=["product"], certify="full",
        observe=ff.AtTimes([0.5, 1.0]), stop=ff.Stop(max_time=1.0),
    )  # fmt: skip
    assert run.reached.all()
    assert "unconfirmed" not in run.certificate.doubts
    assert np.isfinite(run.certificate.evidence["flow_error"])


@pytest.mark.parametrize("cell", [0, -1])
def test_clocks_are_compared_by_the_logarithm_of_time_whatever_the_width_of_a_cell(cell):
    """A plateau that lasts 3% longer, as the whole cell beside it sees it."""
    run, other = lane(2.0), lane(2.0)
    zeros = np.zeros((1, CELL_WIDTHS.size))
    late = zeros.copy()
    late[0, cell] = 0.03 * min(CELL_WIDTHS[cell], 1)
    for record, clock in ((run, zeros), (other, late)):
        record.witness.rows.update(
            clock=clock, clock_spread=zeros, clock_weight=CELL_WIDTHS[None] + zeros
        )
    found = compare("companion_error", run, other, (), (1, 1))
    assert found.clock[0] == pytest.approx(0.03)


def test_an_entry_that_should_be_zero_is_not_trusted_to_its_own_digits():
    """A loss of 4e-34 that is zero: rounding of the start, which every run on its set shares."""
    first = np.zeros((4, 2))
    first[0, 1], first[1, 0] = 0.63394677, 0.25579647
    last = np.zeros((2, 4))
    last[1, 0], last[0, 1] = 0.63394677, 0.25579647
    start = (jnp.asarray(first), jnp.asarray(last))
    problem = ff.Completion((2, 2), [[0, 1], [1, 0]], [0.0, 0.0])
    run = follow(
        problem, ff.DeepMatrix((2, 2), 2, (4,)), ff.GradientFlow(), start, [3e-30, 1e-30],
        measures=["loss", "product"],
    )  # fmt: skip
    wrong = run.measures["loss"] != 0
    assert not (run.certificate.trusted_measures["loss"] & wrong).any()
