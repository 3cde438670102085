"""Gaussian numbers of which every small shape shares one compilation."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from factorflow._memory import refuse_too_large
from factorflow._types import FloatArray, RandomKey

__all__ = ["check_key", "gaussian"]

# Up to as many numbers are drawn together; a draw of all takes some microseconds.
_TOGETHER = 4096


def check_key(key: Any) -> None:
    """Refuse what is no key of `jax.random.key`, such as a seed."""
    if jnp.issubdtype(getattr(key, "dtype", None) or np.dtype(object), jax.dtypes.prng_key):
        if key.shape == ():
            return
        raise ValueError(f"key must be a single random key, got {key.shape}: take one of them.")
    seed = key if isinstance(key, int | np.integer) else 0
    raise ValueError(f"key must come from jax.random.key, as jax.random.key({seed}), got {key!r}.")


def gaussian(key: RandomKey, shape: tuple[int, ...], dtype=None) -> FloatArray:
    """Standard Gaussian numbers, those of `jax.random.normal(key, shape, dtype)`, wherever JAX
    puts new arrays.

    JAX's default generator numbers its draws, so that those of a small array are the first of a
    large one's: small shapes take theirs from a draw of one size, which compiles once.
    """
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    size = math.prod(shape)
    refuse_too_large(size, f"To draw random numbers of shape {shape}", "Give a smaller shape.")
    if isinstance(key, Tracer) or size > _TOGETHER or not _numbers(key):
        return jax.random.normal(key, shape, dtype)
    # Cut in NumPy, or every shape would compile a slice.
    return jax.device_put(jax.device_get(_many(key, dtype))[:size].reshape(shape))


def _numbers(key: RandomKey) -> bool:
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    return threefry and jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]


@functools.partial(jax.jit, static_argnums=1)
def _many(key: RandomKey, dtype) -> FloatArray:
    return jax.random.normal(key, (_TOGETHER,), dtype)
