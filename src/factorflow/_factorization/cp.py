"""CP factorization: a tensor as a sum of outer products."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._factorization.base import (
    AbstractFactorization,
    dense_shape,
    integer,
    tensor_shape,
)
from factorflow._factorization.khatri_rao import dense, entries, pullback
from factorflow._memory import refuse_too_large
from factorflow._product import no_matrix
from factorflow._types import Factors, FloatArray

__all__ = ["CP"]


class CP(AbstractFactorization):
    r"""The product $\sum_{r=1}^R a_r^1 \otimes a_r^2 \otimes \dots \otimes a_r^N$ of order N.

    **Arguments:**

    - `shape`: `(d_1, ..., d_N)` of the product, N >= 2.
    - `rank`: number of components $R \ge 1$. `None` takes `prod(shape) / max(shape)`, with which
        every tensor of this shape can be written.

    Factors are a tuple `(A_1, ..., A_N)`; $A_k$ has shape `(d_k, rank)` and its columns are the
    vectors $a_r^k$. Gradients are written out with Khatri-Rao products and matrix
    multiplications; `entries` never makes the product, so that orders in the hundreds work.

    **Raises:** `ValueError` for fewer than two modes, an empty mode, a rank below 1, and factors
    that this machine's memory cannot hold.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> fz = ff.CP((8, 8, 8))
        >>> [s.shape for s in fz.shapes()]
        [(8, 64), (8, 64), (8, 64)]

        ```

    ??? cite "Reference"

        ```bibtex
        @article{kolda2009tensor,
            author = {Kolda, Tamara G. and Bader, Brett W.},
            title = {Tensor Decompositions and Applications},
            journal = {SIAM Review},
            volume = {51}, number = {3}, pages = {455--500},
            year = {2009},
        }
        ```
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    # As given, so that a change of shape keeps its meaning; `num_components` is the number.
    rank: int | None = eqx.field(static=True)

    def __init__(self, shape, rank=None):
        self.shape = tensor_shape(shape)
        self.rank = None if rank is None else integer("rank", rank, "components")
        if self.num_components < 1:
            raise ValueError(f"rank counts components and must be 1 or more, got {rank}.")
        refuse_too_large(
            self.num_components * sum(self.shape),
            f"CP(shape of order {len(self.shape)}, rank={rank})",
            "Give a smaller rank=; the default is enough for every tensor of the shape.",
        )

    @property
    def num_components(self) -> int:
        """The number of components $R$."""
        if self.rank is None:
            return math.prod(self.shape) // max(self.shape)
        return self.rank

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        dtype = jnp.result_type(float)
        return tuple(
            jax.ShapeDtypeStruct((size, self.num_components), dtype) for size in self.shape
        )

    @property
    def degree(self) -> int:
        return len(self.shape)

    @property
    def paths(self) -> int:
        return self.num_components

    def compose(self, factors: Factors) -> FloatArray:
        dense_shape(self)
        return dense(tuple(factors))

    def pullback(self, factors: Factors, gradient: FloatArray) -> tuple[FloatArray, ...]:
        """Gradients with respect to the factors, from that with respect to the dense product."""
        return pullback(tuple(factors), gradient)

    def entries(self, factors: Factors, indices) -> FloatArray:
        return entries(tuple(factors), indices)

    def component_norms(self, factors: Factors) -> FloatArray:
        r"""$\prod_k \|a_r^k\|$, the Frobenius norm of every component."""
        sizes = [jnp.sqrt(jnp.sum(factor**2, axis=0)) for factor in factors]
        return jnp.prod(jnp.stack(sizes), axis=0)

    def conserved(self, factors: Factors) -> tuple[FloatArray, ...]:
        r"""$\|a_r^{k+1}\|^2 - \|a_r^k\|^2$ for every component: N - 1 vectors of length R."""
        squares = [jnp.sum(factor**2, axis=0) for factor in factors]
        return tuple(after - before for before, after in itertools.pairwise(squares))

    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]:
        if len(self.shape) > 2:
            raise ValueError(no_matrix(self.shape))
        left, right = factors
        return right.T, left
