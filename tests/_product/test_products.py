"""Products against the arrays they stand for, and the loss through them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._product import AbstractProduct, Spectral
from tolerances import assert_close


def factors_of(factorization: ff.DeepMatrix, seed: int, dtype) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal(struct.shape), dtype) for struct in factorization.shapes()
    )


def array_of_dense(product: ff.Dense) -> np.ndarray:
    return np.asarray(product.array, np.float64)


def array_of_factored(product: ff.Factored) -> np.ndarray:
    result = np.asarray(product.factors[0], np.float64)
    for factor in product.factors[1:]:
        result = np.asarray(factor, np.float64) @ result
    return result


def array_of_spectral(product: Spectral) -> np.ndarray:
    """From singular values and random bases: the entries that were given are not looked at."""
    values = np.exp(np.asarray(product.log_values, np.float64))
    left, right = bases(values.size)
    return (left * values) @ right


def bases(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal matrices of determinant -1 and 1."""
    rng = np.random.default_rng(dim)
    left, right = (np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(2))
    left[:, 0] *= -np.linalg.det(left)
    right[:, 0] *= np.linalg.det(right)
    return left, right


# What each product is, computed with numpy in double precision.
REFERENCES = {
    ff.Dense: array_of_dense,
    ff.Factored: array_of_factored,
    Spectral: array_of_spectral,
}


def spectral(values, dtype, array=None) -> Spectral:
    """With a negative determinant."""
    left, right = bases(len(values))
    array = (left * values) @ right if array is None else array
    logs = jnp.log(jnp.asarray(values, dtype))
    return Spectral(jnp.asarray(array, dtype), logs, jnp.asarray(-1, dtype))


def products(dtype) -> list[AbstractProduct]:
    rng = np.random.default_rng(0)
    factorizations = [
        ff.DeepMatrix((3, 3), depth=3, hidden=5),
        ff.DeepMatrix((4, 3), depth=3, hidden=(1, 4)),
    ]
    return [
        ff.Dense(jnp.asarray(rng.standard_normal((3, 3)), dtype)),
        ff.Dense(jnp.asarray(rng.standard_normal((2, 3, 4)), dtype)),
        *(ff.Factored(fz, factors_of(fz, seed, dtype)) for seed, fz in enumerate(factorizations)),
        spectral([2.0, 0.5, 0.1], dtype),
    ]


def test_every_product_is_among_the_examples(dtype):
    assert {type(product) for product in products(dtype)} == set(REFERENCES)


@pytest.mark.parametrize("index", range(5))
def test_views(index, dtype):
    product = products(dtype)[index]
    expected = REFERENCES[type(product)](product)
    is_matrix, is_square = expected.ndim == 2, len(set(expected.shape)) == 1
    every = list(np.ndindex(expected.shape))[::-1]

    @jax.jit
    def views(product):
        logs = product.log_singular_values() if is_matrix else None
        determinant = product.log_determinant() if is_square else None
        return product.dense(), product.at(jnp.asarray(every)), logs, determinant

    dense, entries, logs, determinant = views(product)
    assert dense.dtype == entries.dtype == dtype
    assert_close(dense, expected)
    assert_close(entries, [expected[i] for i in every])
    if is_matrix:
        values = np.linalg.svd(expected, compute_uv=False)
        known = values > 1e-6  # not the zeros of a narrow product
        assert_close(np.asarray(logs)[known], np.log(values[known]), "linear_algebra")
    if is_square:
        sign, log = determinant
        np_sign, np_log = np.linalg.slogdet(expected)
        assert float(sign) == np_sign
        assert_close(log, np_log, "linear_algebra")


def test_singular_values_below_the_rounding_of_the_entries_are_kept(dtype):
    product = spectral([2.0, 1e-30], dtype)
    np.testing.assert_array_equal(product.log_singular_values(), product.log_values)
    sign, log = product.log_determinant()
    assert float(sign) == -1
    assert_close(log, math.log(2e-30), scale=70.0)


def test_determinant_of_a_matrix_of_order_one(dtype):
    product = ff.Dense(jnp.asarray([[-0.5]], dtype))
    sign, log = product.log_determinant()
    assert float(sign) == -1.0
    assert_close(log, math.log(0.5))


# --- The loss is the same function of the factors whichever view computes it

FACTORIZATION = ff.DeepMatrix((3, 4), depth=3, hidden=(5, 2))
INDICES = [[0, 1], [2, 3], [1, 0], [2, 2]]
VALUES = [1.0, -2.0, 0.5, 0.0]


def gradient_by_hand(factors) -> list[np.ndarray]:
    """(W_L ... W_{j+1})^T G (W_{j-1} ... W_1)^T with G the residuals in their places."""
    factors = [np.asarray(factor, np.float64) for factor in factors]
    dense = np.linalg.multi_dot(factors[::-1])
    residuals = np.zeros_like(dense)
    for (i, j), value in zip(INDICES, VALUES, strict=True):
        residuals[i, j] = dense[i, j] - value
    gradients = []
    for j in range(len(factors)):
        after = np.eye(dense.shape[0])
        for factor in factors[:j:-1]:
            after = after @ factor
        before = np.eye(dense.shape[1])
        for factor in factors[:j]:
            before = factor @ before
        gradients.append(after.T @ residuals @ before.T)
    return gradients


@pytest.mark.parametrize("view", ["factored", "dense"])
def test_gradient_of_the_loss(view, dtype):
    problem = ff.Completion(FACTORIZATION.shape, INDICES, VALUES)

    def loss(factors):
        product = ff.Factored(FACTORIZATION, factors)
        return problem.loss(product if view == "factored" else ff.Dense(product.dense()))

    factors = factors_of(FACTORIZATION, 1, dtype)
    for actual, expected in zip(
        jax.jit(jax.grad(loss))(factors), gradient_by_hand(factors), strict=True
    ):
        assert_close(actual, expected, scale=10.0)  # residuals of a few units


def test_gradient_of_the_loss_under_vmap(dtype):
    problem = ff.Completion(FACTORIZATION.shape, INDICES, VALUES)
    lanes = [factors_of(FACTORIZATION, seed, dtype) for seed in range(3)]
    stacked = tuple(jnp.stack(layer) for layer in zip(*lanes, strict=True))
    gradient = jax.grad(lambda factors: problem.loss(ff.Factored(FACTORIZATION, factors)))
    gradients = jax.jit(jax.vmap(gradient))(stacked)
    for lane, factors in enumerate(lanes):
        for actual, expected in zip(gradients, gradient_by_hand(factors), strict=True):
            assert_close(actual[lane], expected, scale=10.0)


def test_a_product_is_a_pytree_of_its_arrays(dtype):
    product = ff.Factored(FACTORIZATION, factors_of(FACTORIZATION, 2, dtype))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, product)
    assert_close(
        jax.jit(lambda p: p.dense())(doubled), 8 * REFERENCES[ff.Factored](product), scale=10.0
    )
