"""Both charts of square products against the definition in NumPy, and against each other."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import exact
import factorflow as ff
from factorflow._dynamics.charts import BalancedSquare, Position
from fields import field_in_bases
from runs import DTYPE, EPS, X64, assert_ulps, compose, draw, imbalance, in_numpy

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

PLAIN, SPLIT = 0, 1
CHARTS = BalancedSquare()
DIM = 3
# Every entry observed, some of them together.
MEASUREMENTS, OBSERVED = draw([(7, DIM, DIM), 7], scale=0.5, seed=2)
PROBLEM = ff.Sensing(MEASUREMENTS, OBSERVED)
every_depth = pytest.mark.parametrize("depth", [2, 3])

LEFT, RIGHT = (np.linalg.qr(matrix)[0].astype(float) for matrix in draw([(DIM, DIM)] * 2, seed=1))
# A block that is not diagonal, one whose singular values coincide, and turned frames.
BLOCKS = {
    "general": np.array([[1.2, 0.3], [-0.2, 0.8]]),
    "coincident": 0.7 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]),
    "diagonal": np.diag([1.5, 0.6]),
}
TURNS = {"turned": ([0.3, -0.2], [0.1, 0.4]), "centred": ([0.0, 0.0], [0.0, 0.0])}


def turn(vector) -> np.ndarray:
    """The rotation of the last unit vector to `(vector, ...)` in the plane of both: as expm."""
    vector = np.asarray(vector, float)
    size = np.linalg.norm(vector)
    plane = np.zeros((DIM, DIM))
    plane[:-1, -1] = vector / max(size, 1e-300)
    return scipy.linalg.expm(np.arcsin(size) * (plane - plane.T))


def point(block, turns, log_sigma: float, right=RIGHT):
    """The coordinates and the frame of the split chart, and the product in NumPy."""
    a, b = (np.asarray(vector, float) for vector in turns)
    core = scipy.linalg.block_diag(block, np.exp(log_sigma))
    u, v = LEFT @ turn(a), right @ turn(b)
    y = np.block([[block, a[:, None]], [b[None], np.array([[log_sigma]])]]).ravel()
    sign = np.linalg.det(LEFT) * np.linalg.det(right)
    return y.astype(DTYPE), frame_of(sign, LEFT, right), u @ core @ v.T, (u, core, v)


@functools.cache
def some_frame():
    fz = ff.DeepMatrix((DIM, DIM), 2)
    return CHARTS.start(fz, ff.balanced_factors(fz, np.eye(DIM, dtype=DTYPE))).frame


def frame_of(sign: float, left, right):
    new = [jnp.asarray(np.asarray(part), DTYPE) for part in (np.sign(sign), left, right)]
    return eqx.tree_at(lambda f: (f.sign, f.left, f.right), some_frame(), tuple(new))


@functools.cache
def compiled(kind: int, depth: int):
    """Everything a chart says at a point, and how fast its field moves product and logarithms."""
    chart, fz = CHARTS.charts[kind], ff.DeepMatrix((DIM, DIM), depth)

    def at(y, frame):
        field = chart.field(PROBLEM, fz, y, frame)
        product, velocity = jax.jvp(lambda y: chart.dense(y, frame), (y,), (field,))
        view = chart.product(PROBLEM, fz, y, frame)
        factors = chart.factors(PROBLEM, fz, y, frame)
        gradient = jax.grad(lambda f: PROBLEM.loss(ff.Factored(fz, f)))(factors)
        return {
            "field": field,
            "product": product,
            "velocity": velocity,
            "logs": view.log_values,
            "sign": view.sign,
            "loss": chart.loss(PROBLEM, fz, y, frame),
            "dissipation": chart.dissipation(PROBLEM, fz, y, frame),
            "factors": factors,
            "squares": sum(jnp.sum(g**2) for g in gradient),
        }

    return jax.jit(at)


def gradient_at(product) -> np.ndarray:
    """Of the loss with respect to the product, by hand."""
    a, b = MEASUREMENTS.astype(float), OBSERVED.astype(float)
    return np.tensordot(np.tensordot(a, product, 2) - b, a, 1)


@every_depth
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("log_sigma", [-2.0, -40.0])
def test_the_split_chart_moves_the_product_by_the_end_to_end_flow(depth, block, turns, log_sigma):
    y, frame, product, (u, core, v) = point(block, turns, log_sigma)
    found = jax.tree.map(np.asarray, compiled(SPLIT, depth)(y, frame))
    # Sums of products of two rotations and a block of size one; the rotations' derivatives.
    np.testing.assert_allclose(found["product"], product, rtol=0, atol=32 * EPS)
    left, values, right = np.linalg.svd(core)
    values[-1] = np.exp(log_sigma)
    expected = field_in_bases(u @ left, values, v @ right.T, gradient_at(product), depth)
    np.testing.assert_allclose(found["velocity"], expected, rtol=0, atol=500 * EPS)
    # The logarithm of the value apart: -L sigma^(1 - 2 / L) u' G v, whatever its size.
    rate = -depth * values[-1] ** (1 - 2 / depth) * u[:, -1] @ gradient_at(product) @ v[:, -1]
    np.testing.assert_allclose(found["field"][-1], rate, rtol=500 * EPS)
    np.testing.assert_allclose(found["logs"], np.log(values), rtol=0, atol=64 * EPS)
    assert found["sign"] == np.sign(np.linalg.det(LEFT) * np.linalg.det(RIGHT))


@every_depth
@pytest.mark.parametrize("kind", [PLAIN, SPLIT])
def test_charts_agree_and_dissipate_the_squared_gradient_of_balanced_factors(kind, depth):
    y, frame, product, _ = point(BLOCKS["general"], TURNS["turned"], -1.5)
    if kind == PLAIN:
        y, frame = product.astype(DTYPE).ravel(), frame_of(frame.sign, np.eye(DIM), np.eye(DIM))
    found = jax.tree.map(np.asarray, compiled(kind, depth)(y, frame))
    left, values, right = np.linalg.svd(product)
    np.testing.assert_allclose(found["product"], product, rtol=0, atol=32 * EPS)
    expected = field_in_bases(left, values, right.T, gradient_at(product), depth)
    np.testing.assert_allclose(found["velocity"], expected, rtol=0, atol=500 * EPS)
    np.testing.assert_allclose(found["logs"], np.log(values), rtol=0, atol=100 * EPS)
    np.testing.assert_allclose(found["loss"], loss_at(product), rtol=200 * EPS)
    np.testing.assert_allclose(found["dissipation"], found["squares"], rtol=500 * EPS)
    factors = in_numpy(found["factors"], float)
    np.testing.assert_allclose(compose(factors), product, rtol=0, atol=64 * EPS)
    for gap in imbalance(factors):
        np.testing.assert_allclose(gap, 0, atol=64 * EPS)


def loss_at(product) -> float:
    a, b = MEASUREMENTS.astype(float), OBSERVED.astype(float)
    return float(np.sum((np.tensordot(a, product, 2) - b) ** 2) / 2)


# --- Changing charts and frames

FZ = ff.DeepMatrix((DIM, DIM), 3)


@jax.jit
def recharted(position: Position):
    kind, frame = position.kind, position.frame
    return CHARTS.on(kind, lambda chart, y: CHARTS.leave(chart, PROBLEM, FZ, y, frame), position.y)


def view(position: Position):
    chart = CHARTS.charts[int(position.kind)]
    return chart.product(PROBLEM, FZ, position.y, position.frame)


CHANGES = {
    "split: centred": (SPLIT, -3.0, SPLIT),
    "split, far below": (SPLIT, -300.0, SPLIT),
    "split: comparable": (SPLIT, np.log(0.7 * 0.6), PLAIN),
    "plain": (PLAIN, np.log(0.5 * 0.6), PLAIN),
    "plain: apart": (PLAIN, np.log(0.1 * 0.6), SPLIT),
}


@pytest.mark.parametrize(("kind", "log_sigma", "to"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("sign", [1, -1])
def test_changing_the_chart_keeps_the_product(kind, log_sigma, to, sign):
    right = RIGHT * [1, 1, sign * np.linalg.det(LEFT) * np.linalg.det(RIGHT)]
    block = np.array([[1.4, 0.2], [0.1, 0.6]])
    y, frame, product, _ = point(block, TURNS["turned"], log_sigma, right)
    if kind == PLAIN:
        y, frame = product.astype(DTYPE).ravel(), frame_of(sign, np.eye(DIM), np.eye(DIM))
    before = Position(jnp.asarray(y), jnp.asarray(kind, jnp.int32), frame)
    after = recharted(before)
    assert int(after.kind) == to
    assert_ulps(view(after).dense(), product, 32)
    np.testing.assert_allclose(view(after).log_values, view(before).log_values, atol=64 * EPS)
    assert view(after).sign == view(before).sign == sign
    if to == SPLIT:
        # No angles, and a diagonal block: what the next step starts from.
        square = np.asarray(after.y).reshape(DIM, DIM)
        assert not square[:-1, -1].any() and not square[-1, :-1].any()
        assert not (square[:-1, :-1] - np.diag(np.diagonal(square[:-1, :-1]))).any()
    # The frames stay orthogonal.
    for basis in (after.frame.left, after.frame.right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(DIM), rtol=0, atol=32 * EPS)


def test_points_are_reexpressed_in_the_next_frame():
    y, frame, product, _ = point(BLOCKS["general"], TURNS["turned"], -4.0)
    after = recharted(Position(jnp.asarray(y), jnp.asarray(SPLIT, jnp.int32), frame))
    # Not the point that the frame was made for, but one that the step passed on its way.
    y, _, product, _ = point(BLOCKS["diagonal"], ([0.2, -0.1], [0.3, 0.3]), -3.5)
    chart = CHARTS.charts[SPLIT]
    same = chart.reexpressed(FZ, jnp.asarray(y), frame, after.frame)
    assert_ulps(chart.dense(same, after.frame), product, 64)
    assert same[-1] == y[-1]


# --- Starting


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("smallest", "kind"), [(0.5, PLAIN), (1e-9, SPLIT)])
def test_a_start_has_the_product_and_singular_values_of_its_factors(smallest, kind, sign):
    values = np.array([1.3, 0.9, smallest])
    left = LEFT * np.linalg.det(LEFT) * np.linalg.det(RIGHT) * sign
    roots = np.diag(values ** (1 / 3))
    factors = tuple(jnp.asarray(w, DTYPE) for w in (roots @ RIGHT.T, roots, left @ roots))
    position = CHARTS.start(FZ, factors)
    assert int(position.kind) == kind
    assert_ulps(view(position).dense(), exact.to_float(exact.product(in_numpy(factors))), 32)
    # From the determinants of the factors, whose smallest values are a thousandth at least.
    np.testing.assert_allclose(
        view(position).log_values, np.log(values), rtol=0, atol=64 * EPS / smallest ** (1 / 3)
    )
    assert view(position).sign == sign


def test_a_multiple_of_the_identity_is_a_regular_point():
    position = CHARTS.start(FZ, ff.balanced_factors(FZ, 0.5 * np.eye(DIM, dtype=DTYPE)))
    assert int(position.kind) == PLAIN
    chart = CHARTS.charts[PLAIN]

    def field(y):
        return chart.field(PROBLEM, FZ, y, position.frame)

    slopes = np.asarray(jax.jit(jax.jacfwd(field))(position.y))
    step = DTYPE.type(1e-4 if X64 else 3e-2)
    for way in np.eye(DIM**2, dtype=DTYPE)[::4]:
        difference = (field(position.y + step * way) - field(position.y - step * way)) / (2 * step)
        # Second order in a step that is small beside 0.5, and the rounding that it divides.
        allowed = 1e-6 if X64 else 3e-2
        np.testing.assert_allclose(slopes @ way, difference, rtol=0, atol=allowed)


def test_a_zero_determinant_stays_zero():
    factors = tuple(jnp.diag(jnp.asarray([0.9, 0.7, 0.0], DTYPE)) for _ in range(3))
    position = CHARTS.start(FZ, factors)
    assert int(position.kind) == SPLIT
    chart = CHARTS.charts[SPLIT]
    velocity = chart.field(PROBLEM, FZ, position.y, position.frame)
    assert np.isfinite(velocity).all()
    moved = position.y + DTYPE.type(0.1) * velocity
    after = recharted(Position(moved, position.kind, position.frame))
    assert int(after.kind) == SPLIT
    assert view(after).log_values[-1] == -np.inf
    assert view(after).log_determinant()[0] == 0
    end = in_numpy(chart.factors(PROBLEM, FZ, after.y, after.frame))
    assert exact.determinant(exact.product(end)) == 0
