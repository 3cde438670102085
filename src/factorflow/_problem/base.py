"""The interface of a problem, and what all problems share."""

import abc
from typing import ClassVar

import equinox as eqx

from factorflow._product import AbstractProduct
from factorflow._types import FloatArray, FloatScalar, RandomKey

__all__ = ["AbstractProblem"]


class AbstractProblem(eqx.Module):
    """A loss over products of a given shape.

    A problem knows nothing of factors: the same problem is fitted by a matrix, a deep matrix
    factorization or a tensor factorization. To add one, subclass, implement `loss` and `resample`,
    and give it a row in the problem tests.
    """

    # Whether the loss is a sum over entries, each of which it moves by that entry alone.
    separate: ClassVar[bool] = False

    shape: eqx.AbstractVar[tuple[int, ...]]
    target: eqx.AbstractVar[FloatArray | None]

    @abc.abstractmethod
    def loss(self, product: AbstractProduct) -> FloatScalar:
        """The training loss of a product."""

    @abc.abstractmethod
    def held_out_loss(self, product: AbstractProduct) -> FloatScalar:
        """The loss on what was not observed; needs a target."""

    @abc.abstractmethod
    def resample(
        self,
        key: RandomKey,
        *,
        batch_size: int | None = None,
        label_noise: FloatScalar | None = None,
    ) -> "AbstractProblem":
        """The problem on a random minibatch and with noisy labels: same shapes, unbiased loss."""
