"""Random ground truths of the named problems."""

import math
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from factorflow._memory import refuse_too_large
from factorflow._random import gaussian
from factorflow._types import FloatArray, RandomKey

__all__ = ["check_at_least_one", "eager_or_traced", "low_rank", "rescaled"]


def low_rank(key: RandomKey, shape: tuple[int, ...], rank: int) -> FloatArray:
    """A sum of `rank` outer products of standard Gaussian vectors."""
    # With the random order of entries, and the entries themselves, beside it.
    refuse_too_large(
        3 * math.prod(shape),
        f"A ground truth of shape {shape}",
        "Give a smaller shape, or a `Completion` without target.",
    )
    factors = [
        gaussian(jax.random.fold_in(key, mode), (dim, rank)) for mode, dim in enumerate(shape)
    ]
    modes = string.ascii_lowercase[: len(shape)]
    equation = ",".join(f"{mode}Z" for mode in modes) + "->" + modes
    array = eager_or_traced(*factors)
    return jax.device_put(array.einsum(equation, *factors, optimize=True))


def rescaled(target: FloatArray, frobenius_norm: float | None) -> FloatArray:
    """A ground truth of that Frobenius norm, by default with unit mean square entry."""
    if frobenius_norm is not None and not 0 < frobenius_norm < math.inf:
        raise ValueError(f"frobenius_norm must be positive and finite, got {frobenius_norm}.")
    norm = math.sqrt(target.size) if frobenius_norm is None else frobenius_norm
    array = eager_or_traced(target)
    target = array.asarray(target)
    return jax.device_put(target * (norm / array.linalg.norm(target.ravel())).astype(target.dtype))


def eager_or_traced(*values: Any) -> Any:
    """NumPy for concrete values, of which JAX would compile every operation; JAX under a trace."""
    return jnp if any(isinstance(value, Tracer) for value in values) else np


def check_at_least_one(**numbers: int) -> None:
    """Refuse numbers below 1, by their names."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, got {number}.")
