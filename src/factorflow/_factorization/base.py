"""The interface of a factorization."""

import abc
import math
from typing import Any

import equinox as eqx

from factorflow._memory import refuse_too_large
from factorflow._types import Factors, FloatArray

__all__ = ["AbstractFactorization", "dense_shape", "integer", "tensor_shape"]


class AbstractFactorization(eqx.Module):
    """A static description of how factors compose; it holds no arrays.

    To add one, subclass, implement the abstract methods, and give it a row in the factorization
    tests.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def shapes(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct`, the shapes of the factors."""

    @property
    def degree(self) -> int:
        """How many factors multiply to an entry: scaling all of them scales it to this power.

        With `paths` this is what `product_scale` of an initializer needs; nothing else does.
        """
        raise ValueError(_unscaled(self))

    @property
    def paths(self) -> int:
        """How many such products of factors' entries sum to one entry of the product."""
        raise ValueError(_unscaled(self))

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


def _unscaled(factorization: AbstractFactorization) -> str:
    kind = type(factorization).__name__
    return f"product_scale is not defined for {kind}, which names no paths; give factor_scale=."


def integer(name: str, value: Any, counted: str) -> int:
    """A whole number, or a `ValueError` that says what it counts."""
    try:
        whole = math.isfinite(value) and int(value) == value
    except (TypeError, ValueError):
        whole = False  # no number at all
    if not whole:
        raise ValueError(f"{name} counts {counted}: integers, got {value!r}.")
    return int(value)


def tensor_shape(shape: Any) -> tuple[int, ...]:
    """The shape of a product of two or more modes, none of them empty."""
    sizes = tuple(integer("shape", size, "indices per mode") for size in shape)
    if len(sizes) < 2:
        raise ValueError(
            f"shape must have two or more modes, got {sizes}: a vector has nothing to factor."
        )
    if min(sizes) < 1:
        raise ValueError(f"shape must have modes of size 1 or more, got {sizes}.")
    return sizes


def dense_shape(factorization: AbstractFactorization) -> tuple[int, ...]:
    """The product's shape, for who is about to make all of it; `ValueError` where it cannot be."""
    shape = factorization.shape
    refuse_too_large(
        math.prod(shape),
        f"The whole product of shape {shape}",
        "Ask for single entries instead, as in 'entry[0,0]' or `Completion` with few observations.",
    )
    return shape
