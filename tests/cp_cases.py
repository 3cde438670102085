"""CP factorizations to test, random factors, and products made independently."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorly
from tensorly.tenalg import unfolding_dot_khatri_rao

import factorflow as ff
from tolerances import assert_close


def product_by_tensorly(factors) -> np.ndarray:
    matrices = [np.asarray(factor, np.float64) for factor in factors]
    return tensorly.cp_to_tensor((np.ones(matrices[0].shape[1]), matrices))


# (factorization, number of components)
FACTORIZATIONS = [
    (ff.CP((4, 3), rank=5), 5),
    (ff.CP((2, 3, 4), rank=3), 3),
    (ff.CP((3, 1, 2)), 2),
    (ff.CP((3, 2, 4, 2), rank=1), 1),
    (ff.CP((2, 3, 1, 2, 3), rank=2), 2),
    (ff.CP((2, 1, 3, 2, 2, 2), rank=4), 4),
]
EACH = pytest.mark.parametrize(
    ("fz", "rank"), FACTORIZATIONS, ids=[f"{fz.shape} {rank}" for fz, rank in FACTORIZATIONS]
)
ORDERS = [FACTORIZATIONS[0][0], FACTORIZATIONS[1][0], FACTORIZATIONS[4][0]]
SOME_ORDERS = pytest.mark.parametrize("fz", ORDERS, ids=lambda fz: f"order {len(fz.shape)}")


def random_like(fz, dtype, seed: int = 0) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(s.shape), dtype) for s in fz.shapes())


def stacked(fz, dtype, count: int = 3):
    """Lanes of factors, and the same on one leading axis."""
    lanes = [random_like(fz, dtype, seed) for seed in range(count)]
    return lanes, jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes)


def in_double(tree):
    return tuple(np.asarray(leaf, np.float64) for leaf in tree)


def equation(order: int) -> str:
    modes = string.ascii_lowercase[:order]
    return ",".join(f"{mode}Z" for mode in modes) + "->" + modes


def by_einsum(factors, numpy=jnp):
    return numpy.einsum(equation(len(factors)), *factors)


def every_index(shape) -> np.ndarray:
    """Of all entries, last first."""
    return np.array(list(np.ndindex(shape)))[::-1]


def loss_of(problem, fz):
    return lambda factors: problem.loss(ff.Factored(fz, factors))


def mttkrp(cotangent, factors) -> list[np.ndarray]:
    cotangent, factors = np.asarray(cotangent, np.float64), list(in_double(factors))
    weights = np.ones(factors[0].shape[1])
    return [
        unfolding_dot_khatri_rao(cotangent, (weights, factors), mode)
        for mode in range(len(factors))
    ]


def assert_all_close(actual, expected, reason="rounding", scale=10.0):
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, reason, scale=scale)
