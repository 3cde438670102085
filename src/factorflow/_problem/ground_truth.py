"""Random ground truths of the named problems."""

import functools
import math
import string

import jax
import jax.numpy as jnp

from factorflow._types import FloatArray, FloatScalar, RandomKey

__all__ = ["check_at_least_one", "low_rank", "rescaled"]


# Compiled whole: operation by operation, a first problem would compile a dozen of them.
@functools.partial(jax.jit, static_argnums=(1, 2))
def low_rank(key: RandomKey, shape: tuple[int, ...], rank: int) -> FloatArray:
    """A sum of `rank` outer products of standard Gaussian vectors."""
    factors = [
        jax.random.normal(jax.random.fold_in(key, mode), (dim, rank))
        for mode, dim in enumerate(shape)
    ]
    modes = string.ascii_lowercase[: len(shape)]
    equation = ",".join(f"{mode}Z" for mode in modes) + "->" + modes
    return jnp.einsum(equation, *factors)


def rescaled(target: FloatArray, frobenius_norm: float | None) -> FloatArray:
    """A ground truth of that Frobenius norm, by default with unit mean square entry."""
    if frobenius_norm is not None and not 0 < frobenius_norm < math.inf:
        raise ValueError(f"frobenius_norm must be positive and finite, got {frobenius_norm}.")
    norm = math.sqrt(target.size) if frobenius_norm is None else frobenius_norm
    return _with_norm(target, jnp.asarray(norm, target.dtype))


@jax.jit
def _with_norm(target: FloatArray, norm: FloatScalar) -> FloatArray:
    return target * (norm / jnp.linalg.norm(target.ravel()))


def check_at_least_one(**numbers: int) -> None:
    """Refuse numbers below 1, by their names."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}.")
