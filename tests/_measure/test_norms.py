"""Norms: against numpy, and the laws that make them norms."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from _measure.references import (
    DTYPE,
    EXTREMES,
    assert_agrees,
    every_matrix,
    observe,
    orthogonal,
    rows,
    together,
)
from tolerances import assert_close

EPS = float(np.finfo(DTYPE).eps)
POWERS = (0.1, 0.5, 0.9, 1, 2, 3.7, 10, 10**10, 10**20, "inf")

SCHATTEN = tuple(f"schatten_norm[{p}]" for p in POWERS)
# Read off the singular values, so that rotations change nothing.
KY_FAN = ("ky_fan_norm[1]", "ky_fan_norm[2]")
INVARIANT = ("frobenius_norm", "spectral_norm", "nuclear_norm", *KY_FAN, *SCHATTEN)
ENTRYWISE = ("max_norm", *(f"entrywise_norm[{p}]" for p in POWERS))
NORMS = INVARIANT + ENTRYWISE
CONVEX = tuple(name for name in NORMS if "[0." not in name)


def norms_of(matrix) -> dict[str, np.ndarray]:
    return observe(NORMS, matrix)


def assert_same(actual: dict, expected: dict, names=NORMS, *, factor: float = 1.0) -> None:
    # Singular values carry rounding of both sides; p = 0.1 raises a sum to its tenth power.
    ratios = together(actual, names) / factor / together(expected, names)
    assert_close(ratios, np.ones(len(names)), "linear_algebra")


@pytest.mark.parametrize(("case", "measure", "family", "parameters"), rows("norms"))
def test_against_numpy(case, measure, family, parameters):
    assert_agrees(case, measure, family, parameters)


@every_matrix
@pytest.mark.parametrize("factor", [-3.0, 0.25])
def test_scale_with_the_absolute_value(matrix, factor):
    assert_same(norms_of(factor * matrix), norms_of(matrix), factor=abs(factor))


@every_matrix
def test_rotations_change_only_entrywise_norms(matrix):
    rng = np.random.default_rng(0)
    left, right = (orthogonal(rng, dim) for dim in matrix.shape)
    before, after = norms_of(matrix), norms_of(left @ matrix @ right)
    assert_same(after, before, INVARIANT)
    changed = [name for name in ENTRYWISE if name != "entrywise_norm[2]"]
    assert (np.abs(together(after, changed) / together(before, changed) - 1) > 1e-3).all()


@every_matrix
def test_transposition_permutation_and_signs_change_nothing(matrix):
    signs = np.where(np.arange(matrix.shape[0]) % 2, 1, -1)
    for other in (matrix.T, matrix[::-1], matrix[:, ::-1], signs[:, None] * matrix):
        assert_same(norms_of(other), norms_of(matrix))


# XLA flushes subnormal numbers to zero, so none are drawn.
_ELEMENTS = st.floats(-100, 100, width=DTYPE.itemsize * 8, allow_subnormal=False)
matrices = arrays(DTYPE, (3, 3), elements=_ELEMENTS)


@hypothesis.given(first=matrices, second=matrices)
def test_triangle_inequality(first, second):
    total = together(norms_of(first + second), CONVEX)
    parts = together(norms_of(first), CONVEX) + together(norms_of(second), CONVEX)
    # Some hundred roundings of entries up to 100.
    assert (total <= parts * (1 + 100 * EPS) + 1e4 * EPS).all()


@pytest.mark.parametrize("kind", ["schatten_norm", "entrywise_norm"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_quasi_norm_constant(kind, p):
    """For p < 1 the triangle inequality holds up to 2^(1/p - 1), which disjoint parts attain."""
    name, constant = f"{kind}[{p}]", 2 ** (1 / p - 1)
    first, second = np.diag([1.0, 0.0, 0.0]), np.diag([0.0, 1.0, 0.0])
    parts = norms_of(first)[name] + norms_of(second)[name]
    assert_close(norms_of(first + second)[name] / (constant * parts), 1.0, "linear_algebra")
    rng = np.random.default_rng(1)
    for _ in range(5):
        first, second = rng.normal(size=(2, 3, 3))
        parts = norms_of(first)[name] + norms_of(second)[name]
        assert norms_of(first + second)[name] <= constant * parts


@every_matrix
@pytest.mark.parametrize("kind", ["schatten_norm", "entrywise_norm"])
def test_fall_with_p_down_to_the_largest(kind, matrix):
    norms = norms_of(matrix)
    values = together(norms, [f"{kind}[{p}]" for p in POWERS])
    limit = values[-1]
    assert limit == norms["spectral_norm" if kind == "schatten_norm" else "max_norm"]
    assert (np.diff(values) <= 100 * EPS * values[:-1]).all()
    count = min(matrix.shape) if kind == "schatten_norm" else matrix.size
    most = [count ** (1 / float(p)) * limit for p in POWERS]
    # The tenth power, p = 0.1, multiplies some hundred roundings by ten.
    assert (values <= np.asarray(most) * (1 + 1000 * EPS)).all()
    # At p = 1e10 the bound above leaves no room: the limit itself.
    assert_close(values[-3:], np.full(3, limit), "linear_algebra", scale=float(limit))


@every_matrix
def test_ky_fan_norms_rise_by_ever_less(matrix):
    names = [f"ky_fan_norm[{k + 1}]" for k in range(min(matrix.shape))]
    values = together(observe([*names, "nuclear_norm", "spectral_norm"], matrix))
    sums, (nuclear, spectral) = values[:-2], values[-2:]
    steps = np.diff(sums, prepend=0.0)
    assert (steps > 0).all() and (np.diff(steps) < 0).all()
    assert sums[0] == spectral
    assert_close(sums[-1], nuclear)


@every_matrix
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("schatten_norm[1]", "nuclear_norm"),
        ("schatten_norm[2]", "frobenius_norm"),
        ("schatten_norm[inf]", "spectral_norm"),
        ("ky_fan_norm[1]", "spectral_norm"),
        ("entrywise_norm[2]", "frobenius_norm"),
        ("entrywise_norm[inf]", "max_norm"),
    ],
)
def test_two_names_for_one_norm(one, other, matrix):
    norms = norms_of(matrix)
    assert_close(norms[one], norms[other], "linear_algebra")


@every_matrix
def test_order_between_norms(matrix):
    names = ("max_norm", "spectral_norm", "frobenius_norm", "nuclear_norm", "entrywise_norm[1]")
    values = together(norms_of(matrix), names)
    assert (np.diff(values) > 0).all()  # strict for a matrix that is no single entry
    root = np.sqrt(min(matrix.shape))
    assert values[3] <= root * values[2] <= root**2 * values[1]


@every_matrix
def test_zero(matrix):
    assert (together(norms_of(0 * matrix)) == 0).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1, 2, 3.7, 10])
@pytest.mark.parametrize("diagonal", [(2.0, 0.0), (2.0, 1.0, 0.0), (2.0, 0.0, 0.0)])
def test_rank_deficient(p, diagonal):
    expected = sum(value**p for value in diagonal if value) ** (1 / p)
    norms = norms_of(np.diag(diagonal))
    for kind in ("schatten_norm", "entrywise_norm"):
        assert_close(norms[f"{kind}[{p}]"] / expected, 1.0, "linear_algebra")


@pytest.mark.parametrize("size", EXTREMES)
@every_matrix
def test_neither_underflow_nor_overflow(matrix, size):
    assert_same(norms_of(matrix * size), norms_of(matrix), factor=size)
