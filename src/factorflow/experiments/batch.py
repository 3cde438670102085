"""Which runs can be followed together."""

import equinox as eqx
import jax

from factorflow._spec import RunSpec

__all__ = ["structure"]


def structure(spec: RunSpec) -> str:
    """What two runs must share to be stacked: code, static fields, shapes and dtypes."""
    arrays, static = eqx.partition(spec, eqx.is_array)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arrays)
    return f"{jax.tree.structure(spec)}|{shapes}|{static}"
