"""Derivatives of measures of the singular values: distinct, equal and zero ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._measure import as_measures

pytestmark = pytest.mark.x64

RANDOM = np.random.default_rng(0)


def rotation(dim: int) -> np.ndarray:
    return np.linalg.qr(RANDOM.normal(size=(dim, dim)))[0]


def with_values(*values: float, columns: int | None = None) -> np.ndarray:
    """A matrix in general position with these singular values."""
    dim = len(values)
    right = rotation(dim if columns is None else columns)[:dim]
    return rotation(dim) @ np.diag(values) @ right


def gradients(names, matrix) -> dict[str, np.ndarray]:
    measures = as_measures(names)
    problem = ff.Completion(matrix.shape, [[0, 0]], [1.0])

    @jax.jit
    @jax.jacrev
    def slopes(array):
        snapshot = ff.Snapshot(problem, ff.Dense(array))
        return {measure.name: measure(snapshot) for measure in measures}

    return {name: np.asarray(array) for name, array in slopes(jnp.asarray(matrix)).items()}


def entropy_rank(s):
    p = s[s > 0] / s.sum()
    return np.exp(-np.sum(p * np.log(p)))


# Symmetric functions of the singular values, differentiable wherever these values are positive.
SYMMETRIC = {
    "nuclear_norm": np.sum,
    "frobenius_norm": lambda s: np.sqrt(np.sum(s**2)),
    "schatten_norm[2]": lambda s: np.sqrt(np.sum(s**2)),
    "schatten_norm[0.5]": lambda s: np.sum(s**0.5) ** 2,
    "schatten_norm[3.5]": lambda s: np.sum(s**3.5) ** (1 / 3.5),
    "effective_rank": entropy_rank,
    "effective_rank_excess": entropy_rank,
    "distance_to_rank[0]": lambda s: np.sqrt(np.sum(s**2)),
}
POSITIVE = {
    "distinct-2x2": with_values(2.0, 0.5),
    "equal-2x2": 3 * np.eye(2),
    "equal, turned": with_values(3.0, 3.0),
    "distinct-3x3": with_values(3.0, 2.0, 0.1),
    "two of three equal": with_values(2.0, 2.0, 1.0),
    "three equal": with_values(2.0, 2.0, 2.0),
    "distinct-2x3": with_values(2.0, 0.5, columns=3),
    "equal-2x3": with_values(2.0, 2.0, columns=3),
}
STEP = 1e-6


def differences(function, matrix: np.ndarray) -> np.ndarray:
    """Central differences of a function of the singular values, which NumPy finds."""
    result = np.zeros_like(matrix)
    for place in np.ndindex(*matrix.shape):
        ends = []
        for sign in (1, -1):
            moved = matrix.copy()
            moved[place] += sign * STEP
            ends.append(function(np.linalg.svd(moved, compute_uv=False)))
        result[place] = (ends[0] - ends[1]) / (2 * STEP)
    return result


@pytest.mark.parametrize("name", POSITIVE)
def test_symmetric_functions_have_derivatives_at_equal_values(name):
    matrix = POSITIVE[name]
    for measure, slope in gradients(list(SYMMETRIC), matrix).items():
        # STEP^2 of truncation and EPS / STEP of rounding, times condition numbers below 100.
        np.testing.assert_allclose(
            slope, differences(SYMMETRIC[measure], matrix), atol=1e-7, err_msg=measure
        )


def test_stable_rank_and_tails_have_derivatives_at_equal_values_below():
    functions = {
        "stable_rank": lambda s: np.sum(s**2) / s[0] ** 2,
        "distance_to_rank[1]": lambda s: np.sqrt(np.sum(s[1:] ** 2)),
        "ky_fan_norm[3]": np.sum,
        "spectral_norm": lambda s: s[0],
        "log_singular_values": None,
        "singular_values": None,
    }
    matrix = with_values(3.0, 2.0, 2.0)
    left, values, right = np.linalg.svd(matrix)
    for measure, slope in gradients(list(functions), matrix).items():
        function = functions[measure]
        if function is not None:
            np.testing.assert_allclose(slope, differences(function, matrix), atol=1e-7)
            continue
        # Of the sum over equal values, whichever vectors were found.
        top = np.outer(left[:, 0], right[0])
        both = left[:, 1:] @ right[1:]
        scale = values if measure.startswith("log") else np.ones(3)
        np.testing.assert_allclose(slope[0], top / scale[0], atol=1e-12)
        np.testing.assert_allclose(slope[1] + slope[2], both / scale[1], atol=1e-12)


NORMS = {
    # The norm whose unit ball holds the subgradients.
    "nuclear_norm": ("nuclear_norm", np.inf),
    "spectral_norm": ("spectral_norm", 1),
    "schatten_norm[3]": ("schatten_norm[3]", 1.5),
    "schatten_norm[1]": ("schatten_norm[1]", np.inf),
    "schatten_norm[inf]": ("schatten_norm[inf]", 1),
    "ky_fan_norm[1]": ("ky_fan_norm[1]", 1),
}


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((2, 2)),
        np.zeros((3, 3)),
        np.zeros((2, 3)),
        with_values(2.0, 2.0),
        with_values(2.0, 2.0, 1.0),
        np.ones((2, 2)),
        with_values(2.0, 1.0, 0.0),
        with_values(2.0, 0.0, 0.0, columns=4),
    ],
    ids=lambda matrix: f"{matrix.shape}, rank {np.linalg.matrix_rank(matrix)}",
)
def test_norms_have_subgradients_everywhere(matrix):
    """G is a subgradient of a norm at W where <G, W> = norm(W) and the dual norm of G is 1."""
    for measure, slope in gradients(list(NORMS), matrix).items():
        values = np.linalg.svd(matrix, compute_uv=False)
        exponent = {"nuclear_norm": 1, "schatten_norm[1]": 1, "schatten_norm[3]": 3}.get(measure)
        norm = np.linalg.norm(values, np.inf if exponent is None else exponent)
        dual = np.linalg.norm(np.linalg.svd(slope, compute_uv=False), NORMS[measure][1])
        np.testing.assert_allclose(np.sum(slope * matrix), norm, rtol=1e-12, err_msg=measure)
        assert dual <= 1 + 1e-12, measure


def test_where_a_value_is_zero_infinite_slopes_are_nan_and_others_are_right():
    matrix = np.ones((2, 2))
    names = ["effective_rank", "schatten_norm[0.5]", "distance_to_rank[1]", "schatten_norm[2]"]
    # One at a time: NaN spreads to whatever is differentiated with it.
    slopes = {name: gradients([name], matrix)[name] for name in names}
    assert np.all(np.isnan(slopes["effective_rank"]))
    assert np.all(np.isnan(slopes["schatten_norm[0.5]"]))
    np.testing.assert_allclose(slopes["distance_to_rank[1]"], 0)
    np.testing.assert_allclose(slopes["schatten_norm[2]"], matrix / 2)


@pytest.mark.parametrize("widths", [(2, 4, 2), (3, 5, 3), (3, 3, 3), (2, 3, 4)], ids=str)
def test_derivatives_in_the_factors(widths):
    """Through determinants of factors, and QR decompositions where these are not square."""
    columns, hidden, rows = widths
    fz = ff.DeepMatrix((rows, columns), depth=2, hidden=hidden)
    factors = tuple(jnp.asarray(RANDOM.normal(size=s.shape)) for s in fz.shapes())
    along = tuple(jnp.asarray(RANDOM.normal(size=s.shape)) for s in fz.shapes())
    names = ["log_singular_values", "nuclear_norm", "effective_rank", "balancedness_gap"]
    measures = as_measures(names + (["log_abs_determinant"] if rows == columns else []))
    problem = ff.Completion(fz.shape, [[0, 0]], [1.0])

    @jax.jit
    def values(step):
        moved = tuple(w + step * d for w, d in zip(factors, along, strict=True))
        product = ff.Factored(fz, moved)
        snapshot = ff.Snapshot(problem, product, factorization=fz, factors=moved)
        return [measure(snapshot) for measure in measures]

    backward = jax.jit(jax.jacrev(values))(0.0)
    for slope, up, down in zip(backward, values(STEP), values(-STEP), strict=True):
        np.testing.assert_allclose(slope, (up - down) / (2 * STEP), rtol=1e-6, atol=1e-6)


def test_second_derivatives_are_right_or_refused():
    problem = ff.Completion((2, 2), [[0, 0]], [1.0])
    measure = ff.schatten_norm(3)

    def slope(matrix):
        return jax.grad(lambda w: measure(ff.Snapshot(problem, ff.Dense(w))))(matrix)

    matrix, step = jnp.asarray(with_values(2.0, 0.5)), 1e-6
    along = jnp.asarray([[0.3, -1.0], [0.5, 0.2]])
    _, second = jax.jvp(slope, (matrix,), (along,))
    expected = (slope(matrix + step * along) - slope(matrix - step * along)) / (2 * step)
    np.testing.assert_allclose(second, expected, atol=1e-7)
    problem = ff.Completion((3, 3), [[0, 0]], [1.0])
    with pytest.raises(ValueError, match="no second ones"):
        jax.jvp(slope, (jnp.eye(3),), (jnp.eye(3),))


def test_singular_vectors_are_refused():
    problem = ff.Completion((2, 2), [[0, 0]], [1.0])
    alignment = as_measures("gradient_alignment")[0]
    with pytest.raises(ValueError, match="Singular vectors are not differentiated"):
        jax.jacrev(lambda w: alignment(ff.Snapshot(problem, ff.Dense(w))))(jnp.eye(2))


@pytest.mark.parametrize("dim", [2, 3])
def test_values_at_the_ends_of_the_numbers(dim):
    """Sizes whose squares and sums overflow or underflow have the ranks of any other size."""
    problem = ff.Completion((dim, dim), [[0, 0]], [1.0])
    matrix = np.arange(1.0, 1.0 + dim * dim).reshape(dim, dim) % 5 - 1.5
    matrix /= np.abs(matrix).max()
    names = ["effective_rank", "stable_rank", "log_singular_values", "log_abs_determinant"]
    names += ["frobenius_norm"]
    expected = None
    for size in (1.0, 8e307, 1e-300):
        snapshot = ff.Snapshot(problem, ff.Dense(jnp.asarray(size * matrix)))
        ranks = [np.asarray(measure(snapshot)) for measure in as_measures(names)]
        ranks[2], ranks[3] = ranks[2] - np.log(size), ranks[3] - dim * np.log(size)
        ranks[4] = ranks[4] / size
        expected = ranks if expected is None else expected
        # Logarithms of this size, up to dim * 710, resolve to 1e-12.
        for found, truth in zip(ranks, expected, strict=True):
            np.testing.assert_allclose(found, truth, rtol=1e-11, atol=1e-11)
