"""A product given by its factors."""

import dataclasses
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax

from factorflow._product.base import AbstractProduct
from factorflow._product.rounding import Rounding
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
    # Of the composed product: what its own entries hide is no better known for good factors.
    rounding: Rounding | None = None

    def dense(self) -> FloatArray:
        composed = self.factorization.compose(self.factors)
        if self.rounding is None or self._is_separate(self.rounding):
            return composed
        return self.rounding.of(composed, 1)

    def at(self, indices) -> FloatArray:
        return self.factorization.entries(self.factors, indices)

    def log_singular_values(self) -> FloatArray:
        return log_singular_values(self._chain(), self.rounding)

    def singular_values(self) -> FloatArray:
        return singular_values(self._chain(), self.rounding)

    def log_determinant(self) -> tuple[FloatScalar, FloatScalar]:
        return log_determinant(self._chain())

    def rounded(self, rounding: Rounding) -> "Factored":
        if not self._is_separate(rounding):
            moved = super().rounded(rounding)
            assert isinstance(moved, Factored)
            return dataclasses.replace(moved, rounding=rounding)
        rounded = jax.tree.map(lambda leaf: rounding.of(leaf, 1, entrywise=True), self.factors)
        # Singular values are computed from all entries together, and known beside the largest.
        return dataclasses.replace(self, factors=rounded, rounding=rounding)

    def _is_separate(self, rounding: Rounding) -> bool:
        """Whether no entry rounds another: there is one factor, and the loss keeps them apart."""
        leaves = jax.tree.leaves(self.factors)
        if not rounding.separate or len(leaves) != 1:
            return False
        chain = self._chain()
        return len(chain) == 1 and chain[0] is leaves[0]

    def _chain(self) -> tuple[FloatArray, ...]:
        return self.factorization.matrix_chain(self.factors)
