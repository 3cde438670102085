"""Runs of equal structure, stacked and followed together."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._simulate import RunSpec, core
from factorflow._trajectory import Trajectory

__all__ = ["follow", "structure"]

# Lanes are bitwise independent of the width of a batch from two on (measured for 2 to 256): one
# lane alone compiles to other code.
_LEAST_LANES = 2


def structure(spec: RunSpec) -> str:
    """What two runs must share to be stacked: code, static fields, shapes and dtypes."""
    arrays, static = eqx.partition(spec, eqx.is_array)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arrays)
    return f"{jax.tree.structure(spec)}|{shapes}|{static}"


def follow(specs: Sequence[RunSpec]) -> Trajectory:
    """The trajectories of runs of one structure, with a leading axis; each lane stops on its own."""
    padded = [*specs, *[specs[0]] * (_LEAST_LANES - len(specs))]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *padded
    )
    batched = jax.block_until_ready(_follow(stacked))
    return jax.device_get(jax.tree.map(lambda leaf: leaf[: len(specs)], batched))


@eqx.filter_jit
def _follow(stacked: RunSpec) -> Trajectory:
    return eqx.filter_vmap(lambda spec: core(spec))(stacked)
