"""Deep factorizations of symmetric matrices: the second half of the factors mirrors the first."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._factorization.deep_matrix import imbalance
from factorflow._types import Factors, FloatArray

__all__ = ["MirroredMatrix"]


class MirroredMatrix(AbstractFactorization):
    r"""$W = W_1^\top W_2^\top \cdots W_2 W_1$, with a symmetric factor in the middle of odd depths.

    Its flow is that of a `DeepMatrix` whose factors mirror each other, which symmetric gradients
    keep so. There, rounding breaks the symmetry, and the difference grows like an escape from a
    saddle. Here there is none.

    Factors are $\sqrt 2\, W_1, \sqrt 2\, W_2, \ldots$ and the one in the middle. The root makes
    time run as it does for a `DeepMatrix`: each factor stands for two.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    deep: DeepMatrix = eqx.field(static=True)

    def __init__(self, deep: DeepMatrix):
        self.shape, self.deep = deep.shape, deep

    @property
    def half(self) -> int:
        """How many factors are mirrored."""
        return self.deep.depth // 2

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return self.deep.shapes()[: self.half + self.deep.depth % 2]

    def compose(self, factors: Factors) -> FloatArray:
        product = factors[0]
        for factor in factors[1 : self.half]:
            product = factor @ product
        # One root for each of the two.
        scale = np.asarray(2.0**-self.half, product.dtype)
        if self.deep.depth % 2:
            return scale * (product.T @ _symmetric(factors[-1]) @ product)
        return scale * (product.T @ product)

    def entries(self, factors: Factors, indices) -> FloatArray:
        return self.compose(factors)[indices[:, 0], indices[:, 1]]

    def conserved(self, factors: Factors) -> tuple[FloatArray, ...]:
        return imbalance(self.matrix_chain(factors))

    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]:
        root = np.asarray(math.sqrt(0.5), factors[0].dtype)
        outer = tuple(root * factor for factor in factors[: self.half])
        middle = tuple(_symmetric(factor) for factor in factors[self.half :])
        return (*outer, *middle, *(factor.T for factor in reversed(outer)))

    def balanced(self, vectors: FloatArray, values: FloatArray) -> tuple[FloatArray, ...]:
        """Balanced factors of `vectors @ diag(values) @ vectors.T`; as many as the hidden width."""
        roots = values ** (1 / self.deep.depth)
        first = math.sqrt(2) * roots[:, None] * vectors.T
        inner = [math.sqrt(2) * jnp.diag(roots)] * (self.half - 1)
        return (first, *inner, *[jnp.diag(roots)] * (self.deep.depth % 2))


def _symmetric(middle: FloatArray) -> FloatArray:
    return (middle + middle.T) / 2
