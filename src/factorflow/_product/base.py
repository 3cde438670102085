"""The interface of a product."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._product.rounding import Rounding
from factorflow._types import FloatArray, FloatScalar

__all__ = ["AbstractProduct"]


class AbstractProduct(eqx.Module):
    """A lazy view of the matrix or tensor that a set of factors represents.

    Problems and measures ask only for what they need; a product that knows its singular values or
    its determinant better than its rounded entries do says so here.
    """

    # Whether every entry is known to its own last digits, not only to those of the largest.
    entrywise: ClassVar[bool] = False

    @abc.abstractmethod
    def dense(self) -> FloatArray:
        """The whole array, shape `(d_1, ..., d_N)`."""

    @abc.abstractmethod
    def at(self, indices) -> FloatArray:
        """The entries at integer `indices` of shape `(n, N)`, as an array of shape `(n,)`."""

    @abc.abstractmethod
    def log_singular_values(self) -> FloatArray:
        """Natural logarithms of the singular values of a matrix product, descending."""

    def singular_values(self) -> FloatArray:
        """The singular values of a matrix product, descending."""
        return jnp.exp(self.log_singular_values())

    @abc.abstractmethod
    def log_determinant(self) -> tuple[FloatScalar, FloatScalar]:
        """Sign and natural logarithm of the absolute determinant of a square matrix product."""

    def rounded(self, rounding: Rounding) -> "AbstractProduct":
        """As integrators round it: an entry far below the largest is not known to its last digit.

        But in coordinates made for it. Logarithms and signs are known better, and stay.
        """
        leaves, structure = jax.tree.flatten(self)
        changed, place = [], 1
        for leaf in leaves:
            if eqx.is_array(leaf) and leaf.ndim >= 2:
                leaf = rounding.of(leaf, place, self.entrywise)
                place += leaf.size
            changed.append(leaf)
        return jax.tree.unflatten(structure, changed)
