"""Input checks and dtype handling shared by the closed forms of this package.

Checks look at values, so they run only where a value exists: Python numbers,
NumPy arrays and concrete JAX arrays. A tracer is let through, and an invalid
traced value then comes out as NaN instead of an exception.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

SIZE_REMEDY = "the problem needs a square matrix of size two or more"


def is_traced(*values: ArrayLike) -> bool:
    """Whether any of the values is a JAX tracer, i.e. has no number to look at yet."""
    return any(isinstance(value, Tracer) for value in values)


def as_float(value: ArrayLike) -> Array:
    """The value as a JAX array: floating dtypes are kept, everything else gets the default."""
    if isinstance(value, np.ndarray):
        # What `jnp.asarray` does to it, without a compilation for every shape.
        value = jax.device_put(value)
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(jnp.result_type(float))


def cast_like(value: ArrayLike, reference: Array) -> Array:
    """The value in the dtype of `reference`, as strict dtype promotion requires."""
    return jnp.asarray(value).astype(reference.dtype)


def require_nonnegative(name: str, value: ArrayLike, remedy: str) -> None:
    """Raise `ValueError` when a concrete value is below zero; NaN, a missing row, passes."""
    if is_traced(value):
        return
    array = np.asarray(value)
    if np.any(array < 0):
        raise ValueError(f"{name} must be >= 0, got {array.min()}: {remedy}")


def require_positive(name: str, value: ArrayLike, remedy: str) -> None:
    """Raise `ValueError` unless every concrete value is above zero (NaN is refused)."""
    if is_traced(value):
        return
    if not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} must be > 0, got {value}: {remedy}")


def require_nonzero(name: str, value: ArrayLike, remedy: str) -> None:
    """Raise `ValueError` when a concrete value is zero or not finite."""
    if is_traced(value):
        return
    array = np.asarray(value)
    if np.any(array == 0) or not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite and nonzero, got {value}: {remedy}")


def require_at_least(name: str, value: object, minimum: int, remedy: str) -> int:
    """The value as a Python int; `ValueError` when it is below `minimum` or not an integer."""
    if not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {value!r}: {remedy}")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value}: {remedy}")
    return int(value)
