"""Singular values, their vectors, and the determinant."""

import jax.numpy as jnp

from factorflow._measure.base import measure
from factorflow._measure.norms import power_norm
from factorflow._measure.snapshot import Snapshot
from factorflow._types import FloatArray, FloatScalar

__all__ = [
    "determinant",
    "gradient_alignment",
    "log_abs_determinant",
    "log_singular_values",
    "singular_values",
]

_ARORA = """@inproceedings{arora2019implicit,
    author = {Arora, Sanjeev and Cohen, Nadav and Hu, Wei and Luo, Yuping},
    title = {Implicit Regularization in Deep Matrix Factorization},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2019},
}"""


@measure(dims=("singular_value",))
def singular_values(snapshot: Snapshot) -> FloatArray:
    r"""Singular values $\sigma_1 \ge \sigma_2 \ge \dots$ of the product."""
    return snapshot.singular_values


@measure(dims=("singular_value",), error="logarithm")
def log_singular_values(snapshot: Snapshot) -> FloatArray:
    r"""Natural logs $\ln \sigma_i$, kept where $\sigma_i$ itself would round to zero."""
    return snapshot.log_singular_values


@measure(dims=("singular_value",), citation=_ARORA, error="unit")
def gradient_alignment(snapshot: Snapshot) -> FloatArray:
    r"""$u_i^\top \nabla\ell(W) v_i / \|\nabla\ell(W)\|_F$ for singular pairs $(u_i, v_i)$ of W."""
    left, right = snapshot.singular_vectors
    gradient = snapshot.gradient
    size = power_norm(jnp.abs(gradient).ravel(), 2)
    along = jnp.sum(left * (gradient @ right), axis=0)
    return along / jnp.where(size > 0, size, 1)


@measure()
def determinant(snapshot: Snapshot) -> FloatScalar:
    r"""Determinant of a square product, from its factors; it underflows where its log does not."""
    sign, log = _log_determinant(snapshot, "determinant")
    return sign * jnp.exp(log)


@measure(error="logarithm")
def log_abs_determinant(snapshot: Snapshot) -> FloatScalar:
    r"""$\ln |\det W|$ of a square product, from its factors."""
    return _log_determinant(snapshot, "log_abs_determinant")[1]


@measure(error="exact")
def determinant_sign(snapshot: Snapshot) -> FloatScalar:
    r"""Sign of $\det W$ (-1, 0 or 1) of a square product, from its factors."""
    return _log_determinant(snapshot, "determinant_sign")[0]


def _log_determinant(snapshot: Snapshot, name: str) -> tuple[FloatScalar, FloatScalar]:
    shape = snapshot.problem.shape
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} needs a square product, this one has shape {shape}.")
    return snapshot.log_determinant
