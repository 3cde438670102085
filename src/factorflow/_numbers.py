"""Numbers that users give: real ones, as arrays, or a refusal that says what to do."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from factorflow._types import FloatArray

__all__ = ["as_floats", "is_traced", "refuse_masked", "refuse_traced"]

_NOT_TRACED = (
    "A run is compiled as a whole and cannot be part of a jit, vmap or grad: call `simulate` "
    "outside of them, follow many runs at once with `factorflow.experiments.run`, and "
    "differentiate a problem's `loss` or a measure of a `Snapshot` instead."
)


def refuse_traced(*trees: Any) -> None:
    """Refuse arrays under a JAX transformation in what makes up a run."""
    if is_traced(*trees):
        raise ValueError(_NOT_TRACED)


def is_traced(*trees: Any) -> bool:
    """Whether any array has no numbers to look at yet, under a JAX transformation."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def refuse_masked(name: str, value: Any) -> None:
    """Refuse a masked array that masks anything: what lies under a mask is no number."""
    if np.ma.is_masked(value):
        masked = int(np.sum(np.ma.getmaskarray(value)))
        raise ValueError(
            f"{name} is a masked array with {masked} masked entries. Leave them out: for a masked "
            "array `a`, indices=np.argwhere(~np.ma.getmaskarray(a)) and values=a.compressed()."
        )


def as_floats(name: str, value: Any) -> FloatArray:
    """An array of JAX's default floating dtype; complex, masked and missing numbers are refused."""
    dtype = jnp.result_type(float)
    refuse_masked(name, value)
    if not isinstance(value, jax.Array):
        value = jnp.asarray(value) if is_traced(value) else _numpy(name, value)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} must be real, got {value.dtype}: fit real and imaginary parts apart, or put "
            "them side by side as [[re, -im], [im, re]]."
        )
    if not is_traced(value):
        given = np.asarray(value, float)
        with np.errstate(over="ignore"):
            # In NumPy: under a trace even an array made of numbers is one that has none.
            kept = given.astype(dtype)
        lost = np.argwhere(np.isfinite(given) & ~np.isfinite(kept))
        if len(lost):
            raise ValueError(
                f"{name} holds {given[tuple(lost[0])]}, more than {dtype} can: rescale, or call "
                'jax.config.update("jax_enable_x64", True) first.'
            )
    with np.errstate(over="ignore"):
        return jnp.asarray(value, dtype)


def _numpy(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
        # Fractions and decimals are objects to NumPy.
        array = array.astype(float) if array.dtype == object else array
        if array.dtype.kind in "SUMmV" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"its dtype is {array.dtype}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of real numbers: {error}.") from None
    return array
