"""How well the product fits: loss, entries, errors."""

import jax.numpy as jnp

from factorflow._measure.base import Number, checks, measure
from factorflow._measure.norms import power_norm
from factorflow._measure.snapshot import Snapshot
from factorflow._types import FloatArray, FloatScalar

__all__ = ["entry", "gradient_norm", "held_out_loss", "loss", "reconstruction_error"]


def _integers(*index: Number) -> None:
    if len(index) < 2 or not all(isinstance(i, int) and i >= 0 for i in index):
        raise ValueError(
            f"entry takes two or more indices counted from 0, one per mode, got {list(index)}."
        )


@measure()
def loss(snapshot: Snapshot) -> FloatScalar:
    """Training loss, in the problem's own normalization."""
    return snapshot.loss


@measure(example=(0, 0), error="product")
@checks(_integers)
def entry(snapshot: Snapshot, *index: int) -> FloatScalar:
    """One entry of the product, by its indices counted from 0: `entry[0,0]` is the (1, 1) entry."""
    shape = snapshot.problem.shape
    if len(index) != len(shape) or any(i >= d for i, d in zip(index, shape, strict=False)):
        raise ValueError(f"entry{list(index)} is outside a product of shape {shape}.")
    return snapshot.dense[index]


@measure()
def reconstruction_error(snapshot: Snapshot) -> FloatScalar:
    r"""$\|W - W^*\|_F / \|W^*\|_F$ against the problem's target."""
    target = snapshot.problem.target
    if target is None:
        raise ValueError(
            "reconstruction_error needs a problem with a target; give `target=` to the problem."
        )
    return _size(snapshot.dense - target) / _size(target)


@measure()
def held_out_loss(snapshot: Snapshot) -> FloatScalar:
    """Loss over the entries that were not observed, against the problem's target."""
    return snapshot.problem.held_out_loss(snapshot.product)


@measure()
def gradient_norm(snapshot: Snapshot) -> FloatScalar:
    r"""$\|\nabla_W \ell\|_F$, the gradient with respect to the product."""
    return _size(snapshot.gradient)


# Not "row": that is the dimension of a trajectory's rows.
@measure(dims=("product_row", "product_column"), error="product")
def product(snapshot: Snapshot) -> FloatArray:
    """Every entry of the product; the dimensions of a tensor are named by their sizes."""
    return snapshot.dense


def _size(array: FloatArray) -> FloatScalar:
    # The Frobenius norm, where a plain sum of squares underflows to 0 or overflows.
    return power_norm(jnp.abs(array).ravel(), 2)
