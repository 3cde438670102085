"""The interface of a factorization."""

import abc
from typing import Any

import equinox as eqx

from factorflow._types import Factors, FloatArray

__all__ = ["AbstractFactorization"]


class AbstractFactorization(eqx.Module):
    """A static description of how factors compose; it holds no arrays.

    To add one, subclass, implement the abstract methods, and give it a row in the factorization
    tests.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def shapes(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct`, the shapes of the factors."""

    @abc.abstractmethod
    def compose(self, factors: Factors) -> FloatArray:
        """The dense product."""

    @abc.abstractmethod
    def entries(self, factors: Factors, indices) -> FloatArray:
        """Only the entries at `indices` `(n, order)`; never materializes the product."""

    @abc.abstractmethod
    def conserved(self, factors: Factors) -> tuple[FloatArray, ...]:
        """Quantities that gradient flow conserves on every problem."""

    @abc.abstractmethod
    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]:
        """Matrices whose product, last to first, is the product; raises where it is no matrix."""
