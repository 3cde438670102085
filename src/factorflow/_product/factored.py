"""A product given by its factors."""

from typing import Protocol, runtime_checkable

import equinox as eqx

from factorflow._product.base import AbstractProduct
from factorflow._product.singular import log_determinant, log_singular_values, singular_values
from factorflow._types import Factors, FloatArray, FloatScalar

__all__ = ["Factored"]


@runtime_checkable
class _Composes(Protocol):
    """The part of a factorization that a product needs (factorizations live a layer above)."""

    def compose(self, factors: Factors) -> FloatArray: ...
    def entries(self, factors: Factors, indices) -> FloatArray: ...
    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]: ...


class Factored(AbstractProduct):
    """The product of `factors` under `factorization`, composed only when asked for."""

    factorization: _Composes = eqx.field(static=True)
    factors: Factors

    def dense(self) -> FloatArray:
        return self.factorization.compose(self.factors)

    def at(self, indices) -> FloatArray:
        return self.factorization.entries(self.factors, indices)

    def log_singular_values(self) -> FloatArray:
        return log_singular_values(self.factorization.matrix_chain(self.factors))

    def singular_values(self) -> FloatArray:
        return singular_values(self.factorization.matrix_chain(self.factors))

    def log_determinant(self) -> tuple[FloatScalar, FloatScalar]:
        return log_determinant(self.factorization.matrix_chain(self.factors))
