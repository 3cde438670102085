"""Three charts of one flow: each against the definition in NumPy, and so against each other.

A point is given by its singular values, two angles and the sign of its determinant; the
coordinates of every chart are worked out here. All points of a chart and depth are evaluated
together.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
import factorflow as ff
from factorflow._dynamics.charts import Balanced2x2, Position
from fields import end_to_end_field, field_in_bases, rotation
from runs import DTYPE, EPS, X64, assert_ulps, compose, imbalance, in_numpy
from tolerances import assert_close

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

CONFORMAL, SPECTRAL, RESIDUAL = 0, 1, 2
DEPTHS = (2, 3)
every_depth = pytest.mark.parametrize("depth", DEPTHS)


class Point(NamedTuple):
    first: float
    second: float
    left: float  # angle
    right: float
    sign: int

    @classmethod
    def of(cls, reflected, sign: int) -> "Point":
        left, (first, second), right = np.linalg.svd(reflected)
        turn = [1, np.linalg.det(left)]
        (a, _), (b, _) = (np.arctan2(m[1] * turn, m[0] * turn) for m in (left, right.T))
        return cls(first, second, a, b, sign)

    @property
    def reflected(self) -> np.ndarray:
        """The product with its second column multiplied by the sign."""
        values = np.diag([self.first, self.second])
        return rotation(self.left) @ values @ rotation(self.right).T

    @property
    def product(self) -> np.ndarray:
        return self.reflected * [1, -1 if self.sign < 0 else 1]


# Angles in every quadrant, both signs, singular values that nearly meet and that are far apart.
# Five points of every kind, so that what they share compiles once.
TOGETHER = [
    Point(0.7, 0.69, 0.4, -0.3, 1),
    Point(1e-3, 1e-3, 1.4, 2.1, -1),
    Point(2.0, 1.3, -2.0, 1.0, 1),
]
# Where the conformal chart and the spectral one both hold.
BOTH = [Point(1.0, 0.55, 0.4, -0.3, 1), Point(3.0, 1.6, 2.8, 2.5, -1)]
APART = [
    Point(0.7, 0.1, 2.8, 2.5, -1),
    Point(1e-3, 3e-4, -0.2, -0.9, 1),
    Point(5.0, 1e-3, 0.1, 3.0, 1),
]
# A large first entry, and observations nearly met.
STEEP = [
    Point.of([[8.0, 0.98], [0.97, 0.125]], 1),
    Point.of([[-8.0, 0.98], [0.97, -0.125]], 1),
    Point(8.0, 1e-4, 0.125, 0.1243, 1),
    Point(4.0, 0.02, 0.21, 0.25, 1),
    Point.of([[3.0, 0.9], [1.1, 1.4]], 1),
]
# The last entry on its way to an observation of -0.3, and as good as there.
ARRIVING = [
    Point.of([[w11, 1.2 + upper], [0.8 + lower, w22]], -1)
    for w11, upper, lower, w22 in (
        (-10.0, -0.01, -0.01, -0.1),
        (-5.0, 0.001, -0.02, -0.21),
        (-60.0, -1e-4, 1e-4, -0.0161),
        (-4.0, 1e-5, 2e-5, -0.28),
        (-2.0, -0.3, 0.1, -0.6),
    )
]
ARRIVED = Point.of([[-4.0, 1.199], [0.799, -0.29999]], -1)
CORNER = ff.razin_cohen_problem()
PERTURBED = ff.razin_cohen_problem(z=-1.2, z_prime=0.8, eps=0.3)
# Every entry observed, some of them together: none of the shortcuts of the corner problem.
SENSING = ff.Sensing(
    np.array([[[1, 2], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [0.5, -1]], [[1, 0], [0, 1]]], float),
    [0.3, -1.0, 0.2, 0.7],
)
PROBLEMS = {"corner": CORNER, "perturbed": PERTURBED, "sensing": SENSING}


def observations(problem: ff.Completion, point: Point) -> tuple[float, float, float]:
    z, z_prime, eps = (float(x) for x in problem.values)
    column = -1 if point.sign < 0 else 1
    return z * column, z_prime, eps * column


def coordinates(problem, kind: int, point: Point) -> np.ndarray:
    w = point.reflected
    if kind == CONFORMAL:
        (a, b), (c, d) = w
        return np.array([a + d, c - b, a - d, b + c]) / 2
    logs = np.log([point.first, point.second])
    if kind == SPECTRAL:
        return np.array([*logs, point.left, point.right])
    z, z_prime, _ = observations(problem, point)
    return np.array([*logs, w[0, 1] - z, w[1, 0] - z_prime])


@functools.cache
def stacked(problem_name: str, kind: int, points: tuple[Point, ...]):
    """The charts, and positions of the points with an axis in front."""
    problem = PROBLEMS[problem_name]
    charts = Balanced2x2(problem)
    fz = ff.DeepMatrix((2, 2), 2)
    positions = []
    for point in points:
        signed = np.diag([1, 0.5 * point.sign]).astype(DTYPE)
        frame = charts.start(fz, ff.balanced_factors(fz, signed)).frame
        assert float(frame.sign) == point.sign
        if kind == RESIDUAL:
            flip = jnp.asarray(np.sign(point.reflected[0, 0]), DTYPE)
            frame = eqx.tree_at(lambda f: f.flip, frame, flip)
        # Coordinates here are no multiples of the start's size.
        frame = eqx.tree_at(lambda f: f.unit, frame, jnp.ones((), DTYPE))
        y = jnp.asarray(coordinates(problem, kind, point), DTYPE)
        positions.append(Position(y, jnp.asarray(kind, jnp.int32), frame))
    return charts, jax.tree.map(lambda *leaves: jnp.stack(leaves), *positions)


@functools.cache
def evaluate(problem_name: str, kind: int, depth: int, points: tuple[Point, ...]) -> dict:
    """Everything a chart says at the points, and how fast its field moves the product."""
    problem, fz = PROBLEMS[problem_name], ff.DeepMatrix((2, 2), depth)
    charts, positions = stacked(problem_name, kind, points)
    chart = charts.charts[kind]

    def at(y, frame):
        field = chart.field(problem, fz, y, frame)

        def dense(y):
            return chart.product(problem, fz, y, frame).dense()

        product, velocity = jax.jvp(dense, (y,), (field,))
        view = chart.product(problem, fz, y, frame)
        factors = chart.factors(problem, fz, y, frame)
        gradient = jax.grad(lambda f: problem.loss(ff.Factored(fz, f)))(factors)
        return {
            "field": field,
            "product": product,
            "velocity": velocity,
            "logs": view.log_values,
            "sign": view.sign,
            "loss": chart.loss(problem, fz, y, frame),
            "dissipation": chart.dissipation(problem, fz, y, frame),
            "factors": factors,
            "squares": sum(jnp.sum(g**2) for g in gradient),
            "scale": chart.scale(problem, fz, y, frame),
        }

    return jax.tree.map(np.asarray, jax.vmap(at)(positions.y, positions.frame))


def expected_velocity(problem, depth: int, point: Point) -> np.ndarray:
    gradient = jax.grad(lambda w: problem.loss(ff.Dense(w)))(jnp.asarray(point.product, DTYPE))
    if point.first < 10 * point.second:
        return end_to_end_field(point.product, gradient, depth)
    # Powers of W W^T square its condition.
    left, right = rotation(point.left), rotation(point.right)
    right = right * np.array([[1], [-1 if point.sign < 0 else 1]])
    return field_in_bases(left, np.array([point.first, point.second]), right, gradient, depth)


# The conformal chart is left where values part, but a step may go beyond before: the second of
# these is near the end of its series.
BEYOND = [Point(2.0, 0.9, -1.0, 0.5, 1), Point(0.9, 0.305, 2.8, 2.5, -1)]
CASES = {
    ("sensing", CONFORMAL): TOGETHER + BOTH,
    ("sensing", SPECTRAL): APART + BOTH,
    ("perturbed", CONFORMAL): BEYOND + BOTH,
    ("perturbed", SPECTRAL): APART + BOTH,
    ("corner", RESIDUAL): STEEP,
    ("perturbed", RESIDUAL): ARRIVING,
}
every_chart = pytest.mark.parametrize(("name", "kind"), CASES)


@every_depth
@every_chart
def test_every_chart_moves_the_product_by_the_end_to_end_flow(name, kind, depth):
    points = CASES[name, kind]
    found = evaluate(name, kind, depth, tuple(points))
    for i, point in enumerate(points):
        expected = expected_velocity(PROBLEMS[name], depth, point)
        size = np.max(np.abs(point.product))
        np.testing.assert_allclose(found["product"][i], point.product, rtol=0, atol=32 * EPS * size)
        np.testing.assert_allclose(
            found["logs"][i], np.log([point.first, point.second]), rtol=0, atol=64 * EPS
        )
        assert found["sign"][i] == point.sign
        # The spectral chart divides by the gap of the singular values, a third of the first here;
        # the residual one by the loss' slope along them, which its points make sixty.
        allowed = 500 * EPS * np.max(np.abs(expected)) * (60 if kind == RESIDUAL else 1)
        np.testing.assert_allclose(found["velocity"][i], expected, rtol=0, atol=allowed)


@every_depth
@every_chart
def test_dissipation_is_the_squared_gradient_of_balanced_factors(name, kind, depth):
    points = CASES[name, kind]
    found = evaluate(name, kind, depth, tuple(points))
    for i, point in enumerate(points):
        factors = tuple(factor[i] for factor in found["factors"])
        size = point.first ** (2 / depth)
        product = compose(in_numpy(factors, float))
        np.testing.assert_allclose(
            product, point.product, rtol=0, atol=64 * EPS * np.max(np.abs(product))
        )
        for gap in imbalance(in_numpy(factors, float)):
            np.testing.assert_allclose(gap, 0, atol=64 * EPS * size)
        loss = float(PROBLEMS[name].loss(ff.Dense(jnp.asarray(point.product, DTYPE))))
        # Residuals of entries of this size.
        rounding = 64 * EPS * (1 + point.first / np.sqrt(loss))
        np.testing.assert_allclose(found["loss"][i], loss, rtol=rounding)
        np.testing.assert_allclose(found["dissipation"][i], found["squares"][i], rtol=8 * rounding)


@every_depth
def test_charts_agree_where_both_hold(depth):
    pairs = [
        (("perturbed", CONFORMAL, slice(2, 4)), ("perturbed", SPECTRAL, slice(3, 5)), 300),
        # The residual chart's points have slopes of up to sixty.
        (("perturbed", RESIDUAL, slice(5)), ("perturbed", SPECTRAL, ARRIVING), 2e4),
    ]
    for (name, kind, rows), (other, instead, which), ulps in pairs:
        first = evaluate(name, kind, depth, tuple(CASES[name, kind]))
        points = CASES[other, instead] if isinstance(which, slice) else which
        second = evaluate(other, instead, depth, tuple(points))
        for what in ("product", "velocity", "logs", "loss", "dissipation"):
            expected = second[what][which] if isinstance(which, slice) else second[what]
            scale = np.max(np.abs(expected))
            np.testing.assert_allclose(
                first[what][rows], expected, rtol=0, atol=ulps * EPS * scale, err_msg=what
            )


@every_depth
def test_logarithms_move_by_the_diagonal_of_the_rotated_gradient(depth):
    # The smaller value is far below the rounding of the entries, and has its own velocity still.
    tiny = [point._replace(second=1e-30) for point in (*APART, *BOTH)]
    for kind, points in ((SPECTRAL, tiny), (RESIDUAL, STEEP)):
        found = evaluate("corner", kind, depth, tuple(points))
        for i, point in enumerate(points):
            z, z_prime, eps = observations(CORNER, point)
            residuals = (point.reflected - [[0, z], [z_prime, eps]]) * [[0, 1], [1, 1]]
            g = rotation(point.left).T @ residuals @ rotation(point.right)
            sigmas = np.array([point.first, point.second])
            expected = -depth * sigmas ** (1 - 2 / depth) * np.diag(g)
            # Residuals round by EPS, and one of STEEP is 60 times smaller than an entry.
            allowed = 500 * EPS * depth * sigmas ** (1 - 2 / depth)
            assert np.all(np.abs(found["field"][i][:2] - expected) < allowed)


def test_the_conformal_chart_refuses_points_where_its_series_end():
    # u = (f / e)^2 is 1/4 where sigma_1 = 3 sigma_2.
    fz = ff.DeepMatrix((2, 2), 3)
    for point in Point(0.9, 0.299, 2.8, 2.5, -1), Point(1.0, 0.02, 0.4, -0.3, 1):
        charts, positions = stacked("sensing", CONFORMAL, (point,))
        y, frame = positions.y[0], jax.tree.map(lambda leaf: leaf[0], positions.frame)
        assert np.isnan(charts.charts[CONFORMAL].field(SENSING, fz, y, frame)).all()


# --- Changing charts

CHANGES = {
    "values meet": ("sensing", SPECTRAL, Point(1.0, 0.9, 0.4, -0.3, -1), CONFORMAL),
    "nearly": ("sensing", SPECTRAL, Point(1.0, 0.7, 0.4, -0.3, 1), SPECTRAL),
    "values part": ("sensing", CONFORMAL, Point(1.0, 0.5, 2.4, -0.3, -1), SPECTRAL),
    "not yet": ("sensing", CONFORMAL, Point(1.0, 0.7, 2.4, -0.3, 1), CONFORMAL),
    "steep": ("corner", SPECTRAL, STEEP[0], RESIDUAL),
    "steep and negative": ("corner", SPECTRAL, STEEP[1], RESIDUAL),
    "steep, another branch": ("corner", SPECTRAL, STEEP[0]._replace(sign=-1), SPECTRAL),
    "flat": ("perturbed", RESIDUAL, Point(1.0, 0.5, 0.8, 0.6, -1), SPECTRAL),
    "flat and negative": ("perturbed", RESIDUAL, Point(1.0, 0.5, 0.8 + np.pi, 0.6, -1), SPECTRAL),
}


@functools.cache
def recharted(name: str):
    charts, fz = Balanced2x2(PROBLEMS[name]), ff.DeepMatrix((2, 2), 3)

    def leave(position):
        kind, y, frame = position.kind, position.y, position.frame
        return charts.on(
            kind, lambda chart, y: charts.leave(chart, PROBLEMS[name], fz, y, frame), y
        )

    return jax.jit(leave)


@pytest.mark.parametrize(("name", "kind", "point", "to"), CHANGES.values(), ids=CHANGES)
def test_changing_the_chart_keeps_the_product(name, kind, point, to):
    problem, fz = PROBLEMS[name], ff.DeepMatrix((2, 2), 3)
    charts, positions = stacked(name, kind, (point,))
    position = jax.tree.map(lambda leaf: leaf[0], positions)
    following = recharted(name)(position)
    assert int(following.kind) == to
    before, after = (
        charts.charts[int(p.kind)].product(problem, fz, p.y, p.frame) for p in (position, following)
    )
    assert_ulps(after.dense(), before.dense(), 16)
    np.testing.assert_allclose(after.log_values, before.log_values, rtol=0, atol=32 * EPS)
    assert after.sign == before.sign == point.sign
    # Once there, it stays there.
    again = recharted(name)(following)
    assert again.kind == following.kind
    np.testing.assert_array_equal(again.y, following.y)


def test_the_residual_chart_is_left_where_the_last_entry_has_arrived():
    _, positions = stacked("perturbed", RESIDUAL, (ARRIVED,))
    following = recharted("perturbed")(jax.tree.map(lambda leaf: leaf[0], positions))
    assert int(following.kind) == SPECTRAL


# --- Starting


def start(product, depth: int = 3, problem=CORNER):
    fz = ff.DeepMatrix((2, 2), depth)
    factors = ff.balanced_factors(fz, np.asarray(product, DTYPE))
    charts = Balanced2x2(problem)
    position = charts.start(fz, factors)
    view = charts.charts[int(position.kind)].product(problem, fz, position.y, position.frame)
    return in_numpy(factors), position, view, charts, fz


@pytest.mark.parametrize("point", [*APART, *TOGETHER, *BOTH], ids=str)
def test_a_start_has_the_product_and_singular_values_of_its_factors(point):
    factors, position, view, _, _ = start(point.product)
    near = 2 * (point.first - point.second) <= (point.first + point.second) / 2
    assert int(position.kind) == (CONFORMAL if near else SPECTRAL)
    product = exact.product(factors)
    assert_ulps(view.dense(), exact.to_float(product), 16)
    logs = exact.log_singular_values_2x2(product)
    # From the entries where the values nearly meet, from the factors' determinants else.
    np.testing.assert_allclose(view.log_values, logs, rtol=0, atol=64 * EPS)
    assert float(view.sign) == np.sign(float(exact.determinant(product))) == point.sign


def test_a_multiple_of_the_identity_is_a_regular_point():
    _, position, view, charts, fz = start(0.5 * np.eye(2))
    assert int(position.kind) == CONFORMAL
    chart = charts.charts[CONFORMAL]
    np.testing.assert_allclose(view.log_values, np.log([0.5, 0.5]), rtol=0, atol=4 * EPS)

    def field(y):
        return chart.field(CORNER, fz, y, position.frame)

    # Newton's method needs the derivative too.
    slopes = np.asarray(jax.jacfwd(field)(position.y))
    for column, way in enumerate(np.eye(4, dtype=DTYPE)):
        step = DTYPE.type(1e-5 if X64 else 1e-2)
        difference = (field(position.y + step * way) - field(position.y - step * way)) / (2 * step)
        assert_close(slopes[:, column], difference, "finite_difference")


@pytest.mark.parametrize("depth", [2, 3])
def test_a_zero_determinant_stays_zero(depth):
    _, position, view, charts, fz = start([[0.6, 0.0], [0.3, 0.0]], depth)
    assert float(view.sign) == 0
    assert float(view.log_values[1]) == -np.inf
    assert view.log_determinant()[0] == 0
    chart = charts.charts[int(position.kind)]
    moved = position.y + DTYPE.type(0.1) * chart.field(CORNER, fz, position.y, position.frame)
    assert np.isfinite(moved).all()
    factors = chart.factors(CORNER, fz, moved, position.frame)
    assert exact.determinant(exact.product(in_numpy(factors))) == 0
    # However long: at depth 2 what stands for its logarithm would become a number after 1e5.
    velocity = chart.field(CORNER, fz, position.y, position.frame)
    assert float(velocity[1]) == 0


# --- The wrong branch

Z, Z_PRIME, OFF = 1.2, 0.8, 0.3
RESTING = {
    # Both observed entries met, and the last on the wrong side of zero by less than a millionth.
    "at rest": ([[-9e7, Z], [Z_PRIME, -1e-8]], OFF, True),
    "the right side": ([[9e7, Z], [Z_PRIME, 1e-8]], OFF, False),
    "not yet": ([[-9.6, Z], [Z_PRIME, -1e-1]], OFF, False),
    "another sign": ([[9e7, Z], [Z_PRIME, -1e-8]], OFF, False),
    "nothing to reach": ([[-9e7, Z], [Z_PRIME, -1e-8]], 0.0, False),
}


@pytest.mark.x64
@pytest.mark.parametrize(("product", "eps", "expected"), RESTING.values(), ids=RESTING)
def test_the_wrong_branch_is_known_from_where_the_loss_rests(product, eps, expected):
    # det W > 0 means w11 w22 > w12 w21 > 0, and so w22 cannot cross zero; with det W < 0 it can.
    problem = ff.razin_cohen_problem(z=Z, z_prime=Z_PRIME, eps=eps)
    _, position, _, charts, fz = start(product, 2, problem)
    chart = charts.charts[int(position.kind)]
    assert bool(charts.rests(chart, problem, fz, position.y, position.frame)) is expected


def test_no_other_problem_is_known_to_rest():
    _, position, _, charts, fz = start(APART[0].product, 2, SENSING)
    chart = charts.charts[int(position.kind)]
    assert not charts.rests(chart, SENSING, fz, position.y, position.frame)
