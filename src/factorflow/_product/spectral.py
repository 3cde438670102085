"""A product whose singular values are known better than its entries show."""

from typing import ClassVar

import jax.numpy as jnp

from factorflow._product.base import AbstractProduct
from factorflow._types import FloatArray, FloatScalar

__all__ = ["Spectral"]


class Spectral(AbstractProduct):
    """A square product with its entries, its log singular values and the sign of its determinant.

    **Arguments:**

    - `array`: the entries, shape `(d, d)`.
    - `log_values`: natural logarithms of the singular values, descending, shape `(d,)`.
    - `sign`: sign of the determinant: -1, 0 or 1.
    """

    array: FloatArray
    log_values: FloatArray
    sign: FloatScalar

    entrywise: ClassVar[bool] = True

    def dense(self) -> FloatArray:
        return self.array

    def at(self, indices) -> FloatArray:
        return self.array[tuple(jnp.moveaxis(indices, -1, 0))]

    def log_singular_values(self) -> FloatArray:
        return self.log_values

    def log_determinant(self) -> tuple[FloatScalar, FloatScalar]:
        return self.sign, jnp.sum(self.log_values)
