"""Greedy low-rank learning against closed forms, brute force and flows from small factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._product import Factored
from factorflow.analysis._greedy_curves import interpolation_error, resampled
from factorflow.analysis._greedy_mirrored import MirroredMatrix
from factorflow.analysis.greedy import distance_from_greedy, greedy_low_rank

SHAPE = (4, 3)
PLACES = [(i, j) for i in range(SHAPE[0]) for j in range(SHAPE[1])]
# All entries observed: every phase adds one singular vector pair, whatever the others are.
VALUES = np.array([2.0, 1.0, 0.4])


def _rotations():
    rng = np.random.default_rng(3)
    return (np.linalg.qr(rng.normal(size=(size, 3)))[0] for size in SHAPE)


LEFT, RIGHT = _rotations()
TARGET = (LEFT * VALUES) @ RIGHT.T


def observed(target, places=None):
    """Some entries of a matrix, or all; in double precision in both jobs."""
    if places is None:
        places = list(np.ndindex(*np.shape(target)))
    with jax.enable_x64(True):
        return ff.Completion(np.shape(target), places, [float(target[i][j]) for i, j in places])


def truncated(rank):
    """The best approximation of this rank."""
    return (LEFT[:, :rank] * VALUES[:rank]) @ RIGHT[:, :rank].T


# One entry is missing: the curve bends.
BENT = observed(TARGET, PLACES[1:])


@pytest.fixture(scope="module", params=[2, 3])
def greedy(request):
    return greedy_low_rank(observed(TARGET), depth=request.param, rows=200)


@pytest.fixture(scope="module")
def bent():
    return greedy_low_rank(BENT, loss=1e-4)


def test_phases_pick_singular_values_in_order(greedy):
    assert [phase.rank for phase in greedy.phases] == [1, 2, 3]
    for rank, phase in enumerate(greedy.phases):
        # The gradient at the best approximation is what it lacks; W_r is known to 1e-7 of its
        # size, the gradient norm asked for.
        left = np.append(VALUES[rank:], np.zeros(rank))
        np.testing.assert_allclose(phase.values, left, atol=2e-6)
        assert phase.gap == pytest.approx(
            VALUES[rank + 1] / VALUES[rank] if rank < 2 else 0, abs=1e-5
        )
        assert not phase.tied
        assert phase.converged
    assert greedy.ending == "loss"
    assert not greedy.tied


def test_each_phase_ends_at_the_best_approximation_of_its_rank(greedy):
    for phase in greedy.phases[:2]:
        np.testing.assert_allclose(phase.products[-1], truncated(phase.rank), atol=2e-6)
        assert phase.result == "gradient_norm_reached"
        np.testing.assert_allclose(
            phase.losses[-1], np.sum(VALUES[phase.rank :] ** 2) / 2, rtol=1e-6
        )
    last = greedy.phases[-1]
    assert last.result == "loss_reached"
    np.testing.assert_allclose(last.losses[-1], 1e-8 * np.sum(VALUES**2) / 2, rtol=1e-6)


def test_rows_lie_on_the_straight_lines_between_approximations(greedy):
    """One value moves at a time, so the curve is known whatever the depth."""
    seed = 1e-6 * np.sum(VALUES**2) / VALUES[0]
    for phase in greedy.phases:
        within = LEFT.T @ phase.products @ RIGHT
        expected = np.zeros_like(within)
        for settled in range(phase.rank - 1):
            expected[:, settled, settled] = VALUES[settled]
        moving = within[:, phase.rank - 1, phase.rank - 1]
        expected[:, phase.rank - 1, phase.rank - 1] = moving
        np.testing.assert_allclose(within, expected, atol=5e-6)
        np.testing.assert_allclose(moving[0], seed, rtol=1e-4, atol=5e-7)
        steps = np.linalg.norm(np.diff(phase.products, axis=0), axis=(1, 2))
        # Evenly spaced, up to the curvature of interpolation in time within a solver's step.
        assert steps.max() < 3 * VALUES[phase.rank - 1] / len(steps)
        assert np.all(np.diff(phase.losses) < 1e-9)


def test_the_moving_value_follows_its_closed_form(greedy):
    r"""$\dot s = L s^{2-2/L} (\sigma - s)$ for balanced factors of depth $L$."""
    phase, depth = greedy.phases[0], greedy.depth
    within = LEFT[:, 0] @ phase.products @ RIGHT[:, 0]
    rates = depth * within ** (2 - 2 / depth) * (VALUES[0] - within)
    # By the trapezoidal rule over rows: their spacing squared, and interpolation.
    middle = slice(20, 180)
    passed = np.cumsum(
        np.diff(within[middle]) * (1 / rates[middle][1:] + 1 / rates[middle][:-1]) / 2
    )
    np.testing.assert_allclose(
        passed, (phase.times[middle] - phase.times[middle][0])[1:], rtol=2e-3
    )


def test_hidden_width_beyond_the_rank_changes_nothing(bent):
    narrow = greedy_low_rank(BENT, max_rank=1)
    assert narrow.ending == "max_rank"
    first, wide = narrow.phases[0], bent.phases[0]
    assert wide.rank == first.rank == 1
    # The solver's steps differ, and with them its errors and those of interpolation.
    slack = first.interpolation_error + wide.interpolation_error + 1e-6
    assert distance_from_greedy(first.products, bent).maximum < slack
    assert np.linalg.matrix_rank(wide.products[-1], tol=1e-12) == 1


def test_a_tie_is_reported():
    """At zero, both singular values of the gradient of the 2x2 problem are 1."""
    greedy = greedy_low_rank(ff.razin_cohen_problem(), max_rank=1)
    np.testing.assert_allclose(greedy.phases[0].values, [1, 1])
    assert greedy.phases[0].gap == 1
    assert greedy.phases[0].tied
    assert greedy.tied


@pytest.mark.parametrize("depth", [2, 3])
def test_symmetric_growth_stays_positive_and_symmetric(depth):
    """A negative eigenvalue is never fitted, though its size is the second largest."""
    rng = np.random.default_rng(1)
    vectors = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    target = (vectors * [2.0, 1.0, 0.0, -1.5]) @ vectors.T
    greedy = greedy_low_rank(observed(target), depth=depth, symmetric=True, rows=50)
    assert [phase.rank for phase in greedy.phases] == [1, 2]
    assert greedy.ending == "stationary"
    np.testing.assert_allclose(greedy.phases[0].values, [2, 1, 0, -1.5], atol=1e-12)
    assert greedy.phases[0].gap == pytest.approx(0.5)
    positive = (vectors[:, :2] * [2.0, 1.0]) @ vectors[:, :2].T
    np.testing.assert_allclose(greedy.products[-1], positive, atol=2e-6)
    np.testing.assert_allclose(greedy.products, np.swapaxes(greedy.products, 1, 2), atol=1e-14)
    # Interpolated rows are within 1e-5 of matrices that have no negative eigenvalue.
    assert np.linalg.eigvalsh(greedy.products).min() > -1e-5


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_mirrored_factors_move_their_product_as_deep_ones_do(depth):
    """Same product, same velocity, same time: the factors in closed form, without a flow."""
    rng = np.random.default_rng(depth)
    with jax.enable_x64(True):
        deep = ff.DeepMatrix((4, 4), depth, hidden=3)
        mirrored = MirroredMatrix(deep)
        problem = observed(sum(np.outer(row, row) for row in rng.normal(size=(2, 4))))
        factors = tuple(jnp.asarray(rng.normal(size=s.shape)) for s in mirrored.shapes())
        chain = mirrored.matrix_chain(factors)
        assert [factor.shape for factor in chain] == [s.shape for s in deep.shapes()]
        gradient = jax.grad(lambda y: problem.loss(Factored(deep, y)))(chain)
        velocity = jax.jvp(deep.compose, (chain,), (tuple(-one for one in gradient),))[1]
        own = jax.grad(lambda y: problem.loss(Factored(mirrored, y)))(factors)
        moved = jax.jvp(mirrored.compose, (factors,), (tuple(-one for one in own),))[1]
        np.testing.assert_allclose(mirrored.compose(factors), deep.compose(chain), rtol=1e-12)
        np.testing.assert_allclose(moved, velocity, rtol=1e-10, atol=1e-10)
        vectors = np.linalg.qr(rng.normal(size=(4, 3)))[0]
        values = np.array([2.0, 0.5, 0.0])
        balanced = mirrored.balanced(jnp.asarray(vectors), jnp.asarray(values))
        expected = (vectors * values) @ vectors.T
        np.testing.assert_allclose(mirrored.compose(balanced), expected, atol=1e-14)
        for gap in mirrored.conserved(balanced):
            np.testing.assert_allclose(gap, 0, atol=1e-14)


def test_symmetric_growth_sees_the_symmetric_part_of_what_is_observed():
    target = np.random.default_rng(0).normal(size=(4, 4))
    greedy = greedy_low_rank(observed(target), symmetric=True, rows=50)
    expected = np.linalg.eigvalsh((target + target.T) / 2)[::-1]
    np.testing.assert_allclose(greedy.phases[0].values, expected)


def test_what_cannot_leave_zero_has_no_phases():
    greedy = greedy_low_rank(ff.Completion((2, 2), [(0, 0)], [0.0]))
    assert greedy.phases == ()
    assert greedy.ending == "loss"
    assert greedy.products.shape == (1, 2, 2)
    negative = greedy_low_rank(ff.Completion((2, 2), [(0, 0)], [-1.0]), symmetric=True)
    assert negative.ending == "stationary"
    assert np.isnan(distance_from_greedy(np.ones((1, 2, 2)), negative).relative)


def test_a_phase_that_does_not_converge_is_the_last():
    # Rounding keeps the gradient from ever being this small.
    greedy = greedy_low_rank(observed(TARGET), gradient_norm=1e-20)
    assert len(greedy.phases) == 1
    assert greedy.phases[0].result == "step_limit_reached"
    assert not greedy.phases[0].converged
    assert greedy.ending == "unfinished"


def test_stacked_rows_belong_together(greedy):
    count = 1 + sum(len(phase.losses) for phase in greedy.phases)
    assert greedy.products.shape == (count, *SHAPE)
    assert greedy.ranks.tolist() == [0] + 200 * [1] + 200 * [2] + 200 * [3]
    residuals = greedy.products - TARGET
    np.testing.assert_allclose(
        greedy.losses, np.sum(residuals**2, axis=(1, 2)) / 2, rtol=1e-9, atol=1e-14
    )
    for phase in greedy.phases:
        assert phase.times[0] == 0
        assert 0 < phase.interpolation_error < 2e-5


def test_distances_agree_with_brute_force(greedy):
    rng = np.random.default_rng(0)
    near = greedy.products[rng.integers(0, 600, 20)] + 1e-3 * rng.normal(size=(20, *SHAPE))
    products = np.concatenate([near, rng.normal(size=(20, *SHAPE))])
    found = distance_from_greedy(products, greedy)
    parts = np.linspace(0, 1, 101)[:, None, None, None]
    dense = greedy.products[:-1] + parts * np.diff(greedy.products, axis=0)
    dense = dense.reshape(-1, *SHAPE)
    brute = np.array([np.linalg.norm(dense - p, axis=(1, 2)).min() for p in products])
    # A hundredth of a segment of length 0.01 beside the foot, at a distance of 1e-3 or more.
    assert np.all(found.distances <= brute + 1e-12)
    np.testing.assert_allclose(found.distances, brute, rtol=1e-4, atol=1e-7)
    assert found.maximum == found.distances.max() == found.distances[found.at]
    assert found.relative == pytest.approx(found.maximum / np.linalg.norm(VALUES), rel=1e-3)


def test_points_between_rows_are_on_the_curve(greedy):
    middle = (greedy.products[1:] + greedy.products[:-1]) / 2
    assert distance_from_greedy(middle, greedy).maximum < 1e-14


def test_flows_come_closer_as_their_initialization_shrinks(bent):
    """From random balanced factors, on a curve that bends."""
    fz = ff.DeepMatrix(SHAPE, depth=2)
    found = []
    with jax.enable_x64(True):
        product = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE))
        for scale in (1e-2, 1e-4, 1e-6):
            trajectory = ff.simulate(
                BENT,
                fz,
                ff.GradientFlow("Stabilized"),
                ff.balanced_factors(fz, scale * product),
                observe=ff.AtSteps(range(0, 1000, 2)),
                stop=ff.Stop(loss=1e-2, max_steps=1000),
                measures=["product"],
            )
            products = np.asarray(trajectory.measures["product"])[np.asarray(trajectory.reached)]
            found.append(distance_from_greedy(products, bent).relative)
    assert found[0] > 2 * found[1] > 4 * found[2] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 1}, "depth must be 2 or more"),
        ({"max_rank": 4}, "max_rank must lie between 1 and 3"),
        ({"max_rank": 0}, "max_rank must lie between 1 and 3"),
        ({"seed_scale": 0.0}, "seed_scale must lie in"),
        ({"gradient_norm": 1.0}, "gradient_norm must lie in"),
        ({"tie_tolerance": 0.0}, "tie_tolerance must lie in"),
        ({"rows": 1}, "rows must be 2 or more"),
        ({"max_steps": 1}, "max_steps must be 2 or more"),
        ({"loss": -1.0}, "loss must be positive"),
        ({"symmetric": True}, "grows a square matrix"),
        ({"dynamics": ff.GradientDescent(1e-2)}, "followed by a GradientFlow"),
    ],
)
def test_bad_input_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        greedy_low_rank(observed(TARGET), **options)


def test_a_curve_of_one_point_is_that_point():
    point = np.ones((1, 2, 2))
    times, points = resampled(np.zeros(1), point, point, 3)
    assert times.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(points, np.ones((3, 2, 2)))


def test_cubic_curves_are_resampled_exactly():
    """Hermite's interpolation has no error on cubics, whatever the spacing of the steps."""
    times = np.array([0.0, 0.1, 0.5, 0.6, 1.0])
    direction = np.array([[1.0, -2.0], [0.5, 3.0]])

    def curve(t):
        return (t**3 - 2 * t)[:, None, None] * direction + t[:, None, None] ** 2

    def velocity(t):
        return (3 * t**2 - 2)[:, None, None] * direction + 2 * t[:, None, None]

    moments, points = resampled(times, curve(times), velocity(times), 50)
    np.testing.assert_allclose(points, curve(moments), atol=1e-14)
    assert (moments[0], moments[-1]) == (0, 1)
    assert interpolation_error(times, curve(times), velocity(times)) < 1e-15
    # The chord of a curve that is no cubic: of t^4, off by (h/2)^4 in the middle.
    quartic = np.linspace(0, 1, 5)[:, None, None] ** 4
    slopes = 4 * np.linspace(0, 1, 5)[:, None, None] ** 3
    found = interpolation_error(np.linspace(0, 1, 5), quartic, slopes)
    assert found == pytest.approx(0.25**4 / 16)


def test_tensors_are_refused():
    problem = ff.Completion((2, 2, 2), [(0, 0, 0)], [1.0])
    with pytest.raises(ValueError, match="grows a matrix"):
        greedy_low_rank(problem)


@pytest.mark.parametrize(
    ("products", "words"),
    [
        (np.zeros((2, 3, 3)), "shape"),
        (np.zeros((0, *SHAPE)), "one row or more"),
        (np.full((1, *SHAPE), np.nan), "trajectory.reached"),
    ],
)
def test_products_that_do_not_fit_are_refused(greedy, products, words):
    with pytest.raises(ValueError, match=words):
        distance_from_greedy(products, greedy)
