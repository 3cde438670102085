"""Gaussian and commuting measurements against NumPy, and the moments they are drawn with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._problem.sensing_catalogue import (
    commuting_sensing_problem,
    random_sensing_problem,
)
from tolerances import assert_close


def ranks(target) -> list[int]:
    """Ranks of the matricizations along each mode."""
    array = np.asarray(target, np.float64)
    tolerance = 100 * np.finfo(np.asarray(target).dtype).eps
    return [
        int(np.linalg.matrix_rank(np.moveaxis(array, k, 0).reshape(d, -1), rtol=tolerance))
        for k, d in enumerate(array.shape)
    ]


@pytest.mark.parametrize("semidefinite", [False, True])
def test_gaussian_measurements(semidefinite, dtype):
    problem = random_sensing_problem(
        jax.random.key(3), (5, 5), 2, 400, semidefinite=semidefinite, frobenius_norm=2.0
    )
    target, measurements = np.asarray(problem.target), np.asarray(problem.measurements)
    assert measurements.shape == (400, 5, 5)
    assert measurements.dtype == dtype
    assert ranks(target) == [2, 2]
    assert_close(jnp.sqrt(jnp.sum(problem.target**2)), 2.0)
    assert_close(problem.values, np.einsum("nij,ij->n", measurements, target), scale=10)
    symmetric = np.array_equal(target, target.T)
    assert symmetric == semidefinite
    assert np.array_equal(measurements, measurements.swapaxes(1, 2)) == semidefinite
    # Standard Gaussian, or their symmetric parts: off the diagonal half of the variance.
    variances = np.mean(measurements**2, axis=0)
    expected = np.where(np.eye(5, dtype=bool) | (not semidefinite), 1.0, 0.5)
    # The deviation of a variance over 400 draws is its sqrt(2 / 400) = 7%: five of them.
    np.testing.assert_allclose(variances, expected, rtol=0.36)
    if semidefinite:
        smallest = np.linalg.eigvalsh(target)[0]
        assert smallest > -100 * np.finfo(target.dtype).eps


def test_gaussian_measurements_of_a_tensor():
    problem = random_sensing_problem(jax.random.key(3), (2, 3, 4), 1, 6, normalization="mean")
    assert problem.shape == (2, 3, 4)
    assert ranks(problem.target) == [1, 1, 1]
    assert problem.normalization == "mean"
    assert float(problem.loss(ff.Dense(problem.target))) < 1e-9


@pytest.mark.parametrize("basis", ["identity", "random"])
def test_commuting_measurements(basis):
    problem = commuting_sensing_problem(jax.random.key(4), 6, 2, 3, basis=basis)
    target, measurements = np.asarray(problem.target), np.asarray(problem.measurements)
    matrices = [target, *measurements]
    for first in matrices:
        np.testing.assert_array_equal(first, first.T)
        for second in matrices:
            assert_close(first @ second, second @ first, scale=100)
    diagonal = all(np.array_equal(matrix, np.diag(np.diag(matrix))) for matrix in matrices)
    assert diagonal == (basis == "identity")
    values = np.linalg.eigvalsh(target)
    assert_close(values[:4], np.zeros(4), scale=100)
    assert values[4] > 0.01
    assert_close(np.linalg.norm(target), np.asarray(6.0, target.dtype))
    assert float(problem.loss(ff.Dense(problem.target))) < 1e-8
    # The first and the second basis describe the same problem.
    plain = commuting_sensing_problem(jax.random.key(4), 6, 2, 3)
    assert_close(np.linalg.eigvalsh(plain.target), values, "linear_algebra", scale=10)
    for turned, diagonal in zip(measurements, plain.measurements, strict=True):
        expected = np.linalg.eigvalsh(diagonal)
        assert_close(np.linalg.eigvalsh(turned), expected, "linear_algebra", scale=10)


BAD_INPUT = [
    (
        "no measurements",
        lambda: random_sensing_problem(jax.random.key(0), n_measurements=0),
        r"n_measurements must be 1 or more, got 0",
    ),
    (
        "semidefinite and not square",
        lambda: random_sensing_problem(jax.random.key(0), (3, 4), semidefinite=True),
        r"needs a square matrix, got shape \(3, 4\)",
    ),
    (
        "a rank above the dimension",
        lambda: commuting_sensing_problem(jax.random.key(0), 3, 4),
        r"rank must be at most dim=3, got 4",
    ),
    (
        "misspelt basis",
        lambda: commuting_sensing_problem(jax.random.key(0), basis="randm"),
        r"Did you mean 'random'",
    ),
    (
        "a norm of zero",
        lambda: commuting_sensing_problem(jax.random.key(0), frobenius_norm=0.0),
        r"frobenius_norm must be positive and finite, got 0.0",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
