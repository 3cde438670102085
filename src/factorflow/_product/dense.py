"""A product given by its entries."""

import jax.numpy as jnp

from factorflow._product.base import AbstractProduct
from factorflow._product.singular import (
    log_determinant,
    log_singular_values,
    no_matrix,
    singular_values,
)
from factorflow._types import FloatArray, FloatScalar

__all__ = ["Dense"]


class Dense(AbstractProduct):
    """A product held as an array.

    **Arguments:**

    - `array`: the entries, shape `(d_1, ..., d_N)`.
    """

    array: FloatArray

    def dense(self) -> FloatArray:
        return self.array

    def at(self, indices) -> FloatArray:
        return self.array[tuple(jnp.moveaxis(indices, -1, 0))]

    def log_singular_values(self) -> FloatArray:
        return log_singular_values((self._matrix(),))

    def singular_values(self) -> FloatArray:
        return singular_values((self._matrix(),))

    def log_determinant(self) -> tuple[FloatScalar, FloatScalar]:
        return log_determinant((self._matrix(),))

    def _matrix(self) -> FloatArray:
        if self.array.ndim != 2:
            raise ValueError(no_matrix(self.array.shape))
        return self.array
