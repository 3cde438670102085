"""The chart of square products against the definition in NumPy, in every pattern of levels."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import exact
import factorflow as ff
from factorflow._dynamics.charts import BalancedSquare, Position, balanced_spectrum
from factorflow._dynamics.choice import is_lost
from fields import field_in_bases
from runs import DTYPE, EPS, X64, assert_ulps, compose, draw, imbalance, in_numpy

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

CHARTS = BalancedSquare()
CHART = CHARTS.charts[0]
DIM = 3
# Every entry observed, some of them together.
MEASUREMENTS, OBSERVED = draw([(7, DIM, DIM), 7], scale=0.5, seed=2)
PROBLEM = ff.Sensing(MEASUREMENTS, OBSERVED)
start = eqx.filter_jit(CHARTS.start)
spectrum_of_factors = jax.jit(balanced_spectrum)
every_depth = pytest.mark.parametrize("depth", [2, 3])

LEFT, RIGHT = (np.linalg.qr(matrix)[0].astype(float) for matrix in draw([(DIM, DIM)] * 2, seed=1))
# Blocks with N_11 = 1 on either side of a drop: general, with equal singular values, diagonal.
PAIRS = {
    "general": np.array([[1.0, 0.3], [-0.2, 0.6]]),
    "coincident": np.array([[1.0, -0.4], [0.4, 1.0]]),
    "diagonal": np.diag([1.0, 0.5]),
}
FULL = np.array([[1.0, 0.2, -0.1], [0.3, 0.8, 0.1], [0.1, -0.2, 0.5]])
# The first place of every position's level, and the block matrix N.
PATTERNS = {
    "together": ([0, 0, 0], FULL),
    "apart": ([0, 1, 2], np.eye(3)),
    **{f"{name}, one": ([0, 0, 2], scipy.linalg.block_diag(b, [[1]])) for name, b in PAIRS.items()},
    **{f"one, {name}": ([0, 1, 1], scipy.linalg.block_diag([[1]], b)) for name, b in PAIRS.items()},
}
every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
# What the logarithms of the levels fall by; entries of A and C.
FALLS = {"near": 2.0, "far": 40.0}
A = np.array([[0, 0, 0], [0.3, 0, 0], [-0.2, 0.25, 0]])
C = np.array([[0, 0, 0], [0.1, 0, 0], [0.35, -0.15, 0]])


def point(pattern, fall: float, *, turned: bool = True, right=RIGHT):
    """Coordinates and frame, and the product in NumPy with its bases and level sizes."""
    levels, blocks = (np.asarray(part) for part in pattern)
    below = (levels[:, None] > levels) * turned
    growth = 0.1 * (1 + levels)
    started = np.log(1.3) - fall * levels
    logs = started + growth
    lower, upper = np.eye(DIM) + below * A, np.eye(DIM) + below * C
    y = np.where(levels[:, None] == levels, blocks, below * A + (below * C).T)
    first = levels == np.arange(DIM)
    y[first, first] = growth[first]
    bases = []
    for frame, flag in ((LEFT, lower), (right, upper)):
        q, r = np.linalg.qr(flag)
        bases.append(frame @ (q * np.sign(np.diagonal(r))))
    sign = np.linalg.det(LEFT) * np.linalg.det(right)
    frame = frame_of(sign, LEFT, right, np.exp(started), started, levels)
    return y.astype(DTYPE).ravel(), frame, (bases[0], logs, blocks, bases[1])


def dense_of(parts) -> np.ndarray:
    u, logs, blocks, v = parts
    return u @ (np.exp(logs)[:, None] * blocks) @ v.T


def spectrum_of(parts):
    """Singular vectors and logarithms of a product, block by block."""
    u, logs, blocks, v = parts
    left, right = np.zeros((DIM, DIM)), np.zeros((DIM, DIM))
    found = np.zeros(DIM)
    for log in np.unique(logs):
        here = np.flatnonzero(logs == log)
        a, s, b = np.linalg.svd(blocks[np.ix_(here, here)])
        left[np.ix_(here, here)], right[np.ix_(here, here)] = a, b.T
        found[here] = log + np.log(s)
    return u @ left, found, v @ right


@functools.cache
def some_frame():
    fz = ff.DeepMatrix((DIM, DIM), 2)
    return start(fz, ff.balanced_factors(fz, np.eye(DIM, dtype=DTYPE))).frame


def frame_of(sign, left, right, values, logs, levels):
    numbers = [jnp.asarray(part, DTYPE) for part in (np.sign(sign), left, right, values, logs)]
    return eqx.tree_at(
        lambda f: (f.sign, f.left, f.right, f.values, f.logs, f.levels),
        some_frame(),
        (*numbers, jnp.asarray(levels, jnp.int32)),
    )


@functools.cache
def compiled(depth: int):
    """Everything the chart says at a point, and how fast its field moves the product."""
    fz = ff.DeepMatrix((DIM, DIM), depth)

    def at(y, frame):
        field = CHART.field(PROBLEM, fz, y, frame)
        product, velocity = jax.jvp(lambda y: CHART.dense(y, frame), (y,), (field,))
        view = CHART.product(PROBLEM, fz, y, frame)
        factors = CHART.factors(PROBLEM, fz, y, frame)
        gradient = jax.grad(lambda f: PROBLEM.loss(ff.Factored(fz, f)))(factors)
        return {
            "field": field,
            "product": product,
            "velocity": velocity,
            "logs": view.log_values,
            "sign": view.sign,
            "loss": CHART.loss(PROBLEM, fz, y, frame),
            "dissipation": CHART.dissipation(PROBLEM, fz, y, frame),
            "factors": factors,
            "squares": sum(jnp.sum(g**2) for g in gradient),
        }

    return jax.jit(at)


def gradient_at(product) -> np.ndarray:
    """Of the loss with respect to the product, by hand."""
    a, b = MEASUREMENTS.astype(float), OBSERVED.astype(float)
    return np.tensordot(np.tensordot(a, product, 2) - b, a, 1)


@every_depth
@every_pattern
@pytest.mark.parametrize("fall", FALLS.values(), ids=FALLS)
def test_the_field_moves_the_product_by_the_end_to_end_flow(depth, pattern, fall):
    y, frame, parts = point(pattern, fall)
    found = jax.tree.map(np.asarray, compiled(depth)(y, frame))
    product, (left, logs, right) = dense_of(parts), spectrum_of(parts)
    # Sums of products of two rotations and blocks of size one.
    np.testing.assert_allclose(found["product"], product, rtol=0, atol=32 * EPS)
    expected = field_in_bases(left, np.exp(logs), right, gradient_at(product), depth)
    np.testing.assert_allclose(found["velocity"], expected, rtol=0, atol=500 * EPS)
    np.testing.assert_allclose(found["logs"], logs, rtol=0, atol=64 * EPS * (1 + fall))
    assert found["sign"] == np.sign(np.linalg.det(LEFT) * np.linalg.det(RIGHT))
    # And every level, however small, by its own share: the logarithm of its determinant moves by
    # the sum of -L sigma^(1 - 2 / L) u' G v, which no entry of the product shows.
    slopes = np.einsum("ik,ij,jk->k", left, gradient_at(product), right)
    rates = -depth * np.exp(logs * (1 - 2 / depth)) * slopes
    levels, blocks = (np.asarray(part) for part in pattern)
    field = found["field"].reshape(DIM, DIM)
    for first in np.unique(levels):
        here = np.flatnonzero(levels == first)
        moved = field[np.ix_(here, here)].copy()
        growth, moved[0, 0] = moved[0, 0], 0
        total = len(here) * growth + np.trace(np.linalg.solve(blocks[np.ix_(here, here)], moved))
        # The block also turns with its basis, which larger levels turn: rounding of that remains.
        scale = max(1, np.abs(slopes).max())
        np.testing.assert_allclose(total, rates[here].sum(), rtol=0, atol=500 * EPS * scale)


@every_depth
@every_pattern
def test_loss_and_dissipation_are_those_of_balanced_factors(depth, pattern):
    y, frame, parts = point(pattern, 1.5)
    found = jax.tree.map(np.asarray, compiled(depth)(y, frame))
    product = dense_of(parts)
    a, b = MEASUREMENTS.astype(float), OBSERVED.astype(float)
    loss = np.sum((np.tensordot(a, product, 2) - b) ** 2) / 2
    np.testing.assert_allclose(found["loss"], loss, rtol=200 * EPS)
    np.testing.assert_allclose(found["dissipation"], found["squares"], rtol=500 * EPS)
    factors = in_numpy(found["factors"], float)
    np.testing.assert_allclose(compose(factors), product, rtol=0, atol=64 * EPS)
    for gap in imbalance(factors):
        np.testing.assert_allclose(gap, 0, atol=64 * EPS)


# --- Changing frames

FZ = ff.DeepMatrix((DIM, DIM), 3)


@jax.jit
def recentred(position: Position):
    return CHARTS.leave(CHART, PROBLEM, FZ, position.y, position.frame)


@jax.jit
def view(position: Position):
    return CHART.product(PROBLEM, FZ, position.y, position.frame)


@every_pattern
@pytest.mark.parametrize(("fall", "sign"), [(0.3, 1), (3.0, -1), (300.0, 1)])
def test_a_new_frame_keeps_the_product_and_every_singular_value(pattern, fall, sign):
    right = RIGHT * [1, 1, sign * np.linalg.det(LEFT) * np.linalg.det(RIGHT)]
    y, frame, parts = point(pattern, fall, right=right)
    before = Position(jnp.asarray(y), jnp.asarray(0, jnp.int32), frame)
    after = recentred(before)
    assert_ulps(view(after).dense(), dense_of(parts), 64)
    logs = np.sort(spectrum_of(parts)[1])[::-1]
    np.testing.assert_allclose(view(after).log_values, logs, atol=64 * EPS * (1 + fall))
    assert view(after).sign == sign
    # No angles, and diagonal blocks: what the next step starts from.
    levels, square = np.asarray(after.frame.levels), np.asarray(after.y).reshape(DIM, DIM)
    drops = np.flatnonzero(np.diff(logs) < np.log(0.2)) + 1
    np.testing.assert_array_equal(np.unique(levels), [0, *drops])
    assert int(after.kind) == sum(2 ** int(first) for first in np.unique(levels))
    ratios = np.where(levels == np.arange(DIM), 0, np.exp(logs - logs[levels]))
    np.testing.assert_allclose(square, np.diag(ratios), rtol=0, atol=64 * EPS)
    for basis in (after.frame.left, after.frame.right):
        np.testing.assert_allclose(basis.T @ basis, np.eye(DIM), rtol=0, atol=32 * EPS)


def test_bases_that_have_drifted_are_made_orthogonal_again():
    pattern = PATTERNS["apart"]
    y, frame, _ = point(pattern, 3.0)
    off = 1e-9 if X64 else 1e-3
    frame = eqx.tree_at(lambda f: f.left, frame, frame.left.at[0].multiply(1 + off))
    after = recentred(Position(jnp.asarray(y), jnp.asarray(0, jnp.int32), frame))
    basis = np.asarray(after.frame.left)
    # The step squares what is off.
    np.testing.assert_allclose(basis.T @ basis, np.eye(DIM), rtol=0, atol=4 * off**2 + 32 * EPS)


@jax.jit
def reexpressed(stages, position: Position, frame):
    return CHARTS.reexpressed(FZ, stages, position, frame)


@every_pattern
def test_points_are_reexpressed_in_the_next_frame(pattern):
    y, frame, _ = point(pattern, 4.0)
    after = recentred(Position(jnp.asarray(y), jnp.asarray(0, jnp.int32), frame))
    # Not the point that the frame was made for, but one that the step passed on its way.
    y, _, parts = point(pattern, 4.0, turned=False)
    before = Position(jnp.asarray(y), after.kind, frame)
    (same,) = reexpressed(jnp.asarray(y)[None], before, after.frame)
    same = view(Position(same, after.kind, after.frame))
    assert_ulps(same.dense(), dense_of(parts), 64)
    np.testing.assert_allclose(same.log_values, spectrum_of(parts)[1], rtol=0, atol=256 * EPS)


# --- Starting


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("hidden", [3, 5])
@pytest.mark.parametrize(
    "logs", [[0.3, -0.1, -0.7], [0.3, -20.0, -20.4], [0.0, -60.0, -200.0], [-460.0, -460.5, -462.0]]
)
def test_a_start_has_every_singular_value_of_its_factors(logs, hidden, sign):
    fz = ff.DeepMatrix((DIM, DIM), 3, hidden=hidden)
    left = LEFT * np.linalg.det(LEFT) * np.linalg.det(RIGHT) * sign
    roots = np.zeros((hidden, hidden))
    roots[:DIM, :DIM] = np.diag(np.exp(np.array(logs) / 3))
    chain = roots[:, :DIM] @ RIGHT.T, roots, left @ roots[:DIM]
    factors = tuple(jnp.asarray(w, DTYPE) for w in chain)
    position = start(fz, factors)
    assert_ulps(view(position).dense(), exact.to_float(exact.product(in_numpy(factors))), 64)
    # Known from the rows and columns of the factors, and from no product.
    np.testing.assert_allclose(view(position).log_values, logs, rtol=0, atol=64 * EPS * -logs[-1])
    assert view(position).sign == sign


def test_what_rounding_has_decided_is_told_from_what_the_factors_say():
    turn = np.linalg.qr(draw([(DIM, DIM)], seed=9)[0].astype(float))[0]

    def lost(values, turn):
        root = np.diag(np.sqrt(values))
        factors = turn @ root @ RIGHT.T, LEFT @ root @ turn.T
        chain = tuple(jnp.asarray(factor, DTYPE) for factor in factors)
        return is_lost(np.asarray(spectrum_of_factors(chain)[1]))

    # Rows and columns of their own size keep all digits, entries that are sums the large ones.
    assert lost([1.0, 1e-13, 1e-30], np.eye(DIM)) is None
    assert lost([1.0, 1e-13, 0.0], np.eye(DIM)) is None
    assert lost([1.0, 1e-9, 1e-9], turn) is None
    assert lost([1.0, 1e-3, 1e-30], turn) == 2
    assert lost([1.0, 0.0, 0.0], turn) == 1


def test_a_multiple_of_the_identity_is_a_regular_point():
    position = start(FZ, ff.balanced_factors(FZ, 0.5 * np.eye(DIM, dtype=DTYPE)))
    assert int(position.kind) == 1

    @jax.jit
    def field(y):
        return CHART.field(PROBLEM, FZ, y, position.frame)

    slopes = np.asarray(jax.jit(jax.jacfwd(field))(position.y))
    step = DTYPE.type(1e-4 if X64 else 3e-2)
    for way in np.eye(DIM**2, dtype=DTYPE)[::4]:
        difference = (field(position.y + step * way) - field(position.y - step * way)) / (2 * step)
        # Second order in a step that is small beside 0.5, and the rounding that it divides.
        allowed = 1e-6 if X64 else 3e-2
        np.testing.assert_allclose(slopes @ way, difference, rtol=0, atol=allowed)


@pytest.mark.parametrize("values", [[0.9, 0.7, 0.0], [0.9, 0.0, 0.0]])
def test_singular_values_of_zero_stay_zero(values):
    factors = tuple(jnp.diag(jnp.asarray(values, DTYPE)) for _ in range(3))
    position = start(FZ, factors)
    velocity = compiled(FZ.depth)(position.y, position.frame)["field"]
    assert np.isfinite(velocity).all()
    moved = position.y + DTYPE.type(0.1) * velocity
    after = recentred(Position(moved, position.kind, position.frame))
    zero = np.array(values) == 0
    assert (np.asarray(view(after).log_values)[zero] == -np.inf).all()
    assert np.isfinite(np.asarray(view(after).log_values)[~zero]).all()
    assert view(after).log_determinant()[0] == 0
    end = in_numpy(compiled(FZ.depth)(after.y, after.frame)["factors"])
    assert exact.determinant(exact.product(end)) == 0
