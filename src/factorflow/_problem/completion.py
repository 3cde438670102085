"""Completion: some entries of a matrix or tensor are observed."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from factorflow._functions import canonical
from factorflow._memory import refuse_too_large
from factorflow._names import named
from factorflow._numbers import as_floats, refuse_masked
from factorflow._problem.base import AbstractProblem
from factorflow._problem.observations import (
    NORMALIZATIONS,
    PENALTIES,
    normalize,
    require_finite,
    sample,
)
from factorflow._product import AbstractProduct
from factorflow._settings import own_settings
from factorflow._types import FloatArray, FloatScalar, Penalty, RandomKey

__all__ = ["Completion"]

# Up to this many entries the loss is a masked sum over the dense product: on CPU a gather and its
# transpose cost tens of times more than the multiplications they save.
_DENSE_ENTRIES = 2**22


class Completion(AbstractProblem):
    r"""Fit the observed entries of a matrix or tensor.

    $$\ell(W) = \tfrac12 \sum_{i \in \Omega} \phi(W_i - b_i)$$

    for `normalization="half_sum"`, or the mean of $\phi$ over $\Omega$ for `"mean"`, with
    $\phi(e) = e^2$ (`"squared"`), $|e|$ (`"absolute"`), Huber's function ($e^2/2$ up to 1, linear
    after), or any elementwise callable.

    **Arguments:**

    - `shape`: shape of the product, `(d_1, ..., d_N)` with `N >= 2`.
    - `indices`: integers of shape `(n, N)`, one row per observation, as `np.argwhere` gives; what
        `np.where` gives, an array per mode, is refused.
    - `values`: the observed values $b$, shape `(n,)`.
    - `target`: the ground truth, shape `shape`, or `None`. Only measures use it.
    - `normalization`: `"half_sum"` or `"mean"`.
    - `loss`: `"squared"`, `"absolute"`, `"huber"` or a callable.
    - `room`: pads the observations to this number without changing the problem: a sweep over the
        number of observations then compiles once. Minibatches are not drawn from padded ones.

    **Raises:** `ValueError` for empty, out-of-range, non-finite, complex, masked or contradicting
    observations.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> problem = ff.Completion((2, 3), [[0, 1], [1, 2]], [1.0, -1.0])
        >>> float(problem.loss(ff.Dense(problem.observed_entries())))
        0.0

        ```
    """

    separate: ClassVar[bool] = True

    shape: tuple[int, ...] = eqx.field(static=True)
    indices: jax.Array
    values: FloatArray
    weights: FloatArray
    target: FloatArray | None
    normalization: str = eqx.field(static=True)
    penalty: str | Penalty = eqx.field(static=True)
    # The observations over all entries, (weights, values); None for large shapes.
    masked: tuple[FloatArray, FloatArray] | None
    # How many observations there are: an array, so that it may differ among runs of one structure.
    count: FloatArray
    room: int | None = eqx.field(static=True)

    @own_settings()
    def __init__(
        self,
        shape,
        indices,
        values,
        target=None,
        normalization="half_sum",
        loss: str | Penalty = "squared",
        room=None,
    ):
        self.shape = tuple(int(d) for d in shape)
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"shape must have two or more modes of size >= 1, got {self.shape}.")
        self.normalization = named("normalization", normalization, NORMALIZATIONS)
        self.penalty = canonical(loss) if callable(loss) else named("loss", loss, PENALTIES)
        self.indices = _checked_indices(self.shape, indices)
        self.values = as_floats("values", values)
        dtype = self.values.dtype
        if self.values.shape != (self.indices.shape[0],):
            raise ValueError(
                f"values must have shape ({self.indices.shape[0]},), one per row of indices, got "
                f"{self.values.shape}."
            )
        require_finite("values", self.values)
        repeated = _refuse_contradictions(self.indices, self.values)
        self.weights = jnp.asarray(np.ones(self.values.shape), dtype)
        self.count = jnp.asarray(self.values.shape[0], dtype)
        self.room = room
        if room is not None:
            self._pad(room)
        self.target = None if target is None else as_floats("target", target)
        if self.target is not None:
            require_finite("target", self.target)
            if self.target.shape != self.shape:
                raise ValueError(
                    f"target must have the problem's shape {self.shape}, got {self.target.shape}."
                )
        # Label noise differs between repetitions, which a sum over entries could not tell apart.
        dense = math.prod(self.shape) <= _DENSE_ENTRIES and not repeated
        self.masked = (
            _over_all_entries(self.shape, self.indices, self.values, self.weights)
            if dense
            else None
        )

    def loss(self, product: AbstractProduct) -> FloatScalar:
        if self.masked is not None:
            weights, values = self.masked
            residuals = self._dense(product) - values
            # The square of a hidden entry may overflow, and infinity times 0 is no number; a
            # penalty of one's own may have no derivative at 0.
            residuals = jnp.where(weights == 0, int(callable(self.penalty)), residuals)
            total = jnp.sum(weights * self._penalty(residuals))
        else:
            residuals = product.at(self.indices) - self.values
            total = jnp.sum(self.weights * self._penalty(residuals))
        return normalize(self.normalization, total, self.count)

    def held_out_loss(self, product: AbstractProduct) -> FloatScalar:
        """The loss over the entries that were not observed, in the same normalization."""
        if self.target is None:
            raise ValueError("held_out_loss needs a target; give `Completion(..., target=...)`.")
        # From the indices, not the weights: what a minibatch leaves out has still been observed.
        hidden = jnp.ones(self.shape, self.values.dtype).at[self._places()].set(0)
        residuals = product.dense() - self.target
        residuals = jnp.where(hidden == 0, int(callable(self.penalty)), residuals)
        total = jnp.sum(hidden * self._penalty(residuals))
        if self.normalization == "half_sum":
            return total / 2
        return total / jnp.maximum(jnp.sum(hidden), 1)

    def resample(
        self,
        key: RandomKey,
        *,
        batch_size: int | None = None,
        label_noise: FloatScalar | None = None,
    ) -> "Completion":
        if self.room is not None and batch_size is not None:
            raise ValueError(
                f"Minibatches are not drawn from observations padded to room={self.room}; leave "
                "room= out."
            )
        values, weights = sample(key, self.values, self.weights, batch_size, label_noise)
        masked = None
        if self.masked is not None:
            masked = _over_all_entries(self.shape, self.indices, values, weights)
        return eqx.tree_at(
            lambda p: (p.values, p.weights, p.masked),
            self,
            (values, weights, masked),
            is_leaf=lambda leaf: leaf is None,
        )

    @own_settings()
    def observed_entries(self) -> FloatArray:
        """The observed values in their places and zeros elsewhere: the linear baseline."""
        if self.masked is not None:
            return self.masked[1]
        return jnp.zeros(self.shape, self.values.dtype).at[self._places()].set(self.values)

    def _pad(self, room: int) -> None:
        refuse_too_large(
            room * (len(self.shape) + 2), f"room={room}", "Give as many as the most observations."
        )
        missing = room - self.values.shape[0]
        if missing < 0:
            raise ValueError(
                f"room={room} does not hold the {self.values.shape[0]} observations there are."
            )
        # The first observation again, without weight; in NumPy, which compiles nothing.
        indices, values = np.asarray(self.indices), np.asarray(self.values)
        self.indices = jnp.asarray(np.concatenate([indices, np.repeat(indices[:1], missing, 0)]))
        self.values = jnp.asarray(np.concatenate([values, np.repeat(values[:1], missing)]))
        self.weights = jnp.asarray(np.arange(room) < len(values), values.dtype)

    def _dense(self, product: AbstractProduct) -> FloatArray:
        dense = product.dense()
        if dense.shape != self.shape:
            raise ValueError(
                f"The product must have the problem's shape {self.shape}, got {dense.shape}."
            )
        return dense

    def _places(self) -> tuple[jax.Array, ...]:
        return tuple(jnp.moveaxis(self.indices, -1, 0))

    def _penalty(self, residuals: FloatArray) -> FloatArray:
        penalty = self.penalty if callable(self.penalty) else PENALTIES[self.penalty]
        return penalty(residuals)


def _over_all_entries(
    shape: tuple[int, ...], indices: jax.Array, values: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    arrays = indices, values, weights
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        places, zeros = tuple(jnp.moveaxis(indices, -1, 0)), jnp.zeros(shape, values.dtype)
        weight, total = zeros.at[places].add(weights), zeros.at[places].add(weights * values)
        return weight, total / jnp.where(weight == 0, 1, weight)
    # In NumPy: every number of observations would be a compilation.
    rows, numbers, counts = (np.asarray(array) for array in arrays)
    sums = np.zeros((2, *shape), numbers.dtype)
    np.add.at(sums[0], tuple(rows.T), counts)
    np.add.at(sums[1], tuple(rows.T), counts * numbers)
    return jax.device_put((sums[0], sums[1] / np.where(sums[0] == 0, 1, sums[0])))


def _checked_indices(shape: tuple[int, ...], indices) -> jax.Array:
    if isinstance(indices, jax.core.Tracer):
        return indices
    refuse_masked("indices", indices)
    arrays = np.ndarray | jax.Array
    if isinstance(indices, tuple) and indices and all(isinstance(i, arrays) for i in indices):
        raise ValueError(
            "indices is a tuple of arrays, as np.where gives: give one row per observation, "
            "np.argwhere(mask) or np.stack(indices, axis=-1)."
        )
    array = np.asarray(indices)
    if array.size == 0:
        raise ValueError("indices is empty: a completion problem needs one observation or more.")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"indices must be integers, got {array.dtype}.")
    if array.ndim != 2 or array.shape[1] != len(shape):
        raise ValueError(
            f"indices must have shape (n, {len(shape)}), one row per observation and one column "
            f"per mode of {shape}, got {array.shape}"
            + ("; transpose it." if array.shape[:1] == (len(shape),) else ".")
        )
    bad = np.argwhere((array < 0) | (array >= np.asarray(shape)))
    if len(bad):
        row = int(bad[0, 0])
        raise ValueError(
            f"indices[{row}] = {tuple(array[row].tolist())} is out of range for shape {shape}; "
            "indices count from 0."
        )
    return jnp.asarray(array, jnp.int32)


def _refuse_contradictions(indices: jax.Array, values: FloatArray) -> bool:
    """Whether an entry is observed more than once; `ValueError` where with different values."""
    if isinstance(values, jax.core.Tracer) or isinstance(indices, jax.core.Tracer):
        return False
    places, owner = np.unique(np.asarray(indices), axis=0, return_inverse=True)
    if len(places) == len(owner):
        return False
    numbers = np.asarray(values)
    for place in np.flatnonzero(np.bincount(owner.ravel()) > 1):
        seen = numbers[owner.ravel() == place]
        if np.any(seen != seen[0]):
            raise ValueError(
                f"Entry {tuple(places[place].tolist())} is observed more than once with different "
                f"values, {seen[0]} and {seen[seen != seen[0]][0]}. Average them or keep one."
            )
    return True
