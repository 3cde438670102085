"""Tucker factorization: a core tensor, multiplied by a matrix along every mode."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._factorization.base import AbstractFactorization, dense_shape, tensor_shape
from factorflow._factorization.khatri_rao import picked
from factorflow._factorization.tensor_train import checked_ranks
from factorflow._memory import refuse_too_large
from factorflow._product import no_matrix
from factorflow._types import Factors, FloatArray

__all__ = ["Tucker"]

# NumPy's arrays have up to 64 dimensions, and stacks of cores one more than a core.
_LARGEST_ORDER = 63


class Tucker(AbstractFactorization):
    r"""The product $C \times_1 U_1 \times_2 U_2 \cdots \times_N U_N$ of a core and N matrices.

    Its entries are $\sum_{a_1, \dots, a_N} C_{a_1 \dots a_N} U_1[i_1, a_1] \cdots U_N[i_N, a_N]$.

    **Arguments:**

    - `shape`: `(d_1, ..., d_N)` of the product, N >= 2.
    - `ranks`: the core's shape: an integer for all modes, or a sequence of N integers; they may
        exceed the modes' sizes. `None` takes `shape`, which constrains no tensor.

    Factors are a tuple `(C, U_1, ..., U_N)`; $C$ has shape `(r_1, ..., r_N)` and $U_n$ has shape
    `(d_n, r_n)`.

    **Raises:** `ValueError` for fewer than two modes or more than 63, an empty mode, a rank below
    1, another number of ranks than N, and factors that this machine's memory cannot hold.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> fz = ff.Tucker((4, 5, 6), ranks=(2, 3, 3))
        >>> [s.shape for s in fz.shapes()]
        [(2, 3, 3), (4, 2), (5, 3), (6, 3)]

        ```

    ??? cite "Reference"

        ```bibtex
        @article{tucker1966some,
            author = {Tucker, Ledyard R.},
            title = {Some Mathematical Notes on Three-Mode Factor Analysis},
            journal = {Psychometrika},
            volume = {31}, number = {3}, pages = {279--311},
            year = {1966},
        }
        ```
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    # As given, so that a change of shape keeps its meaning; `core_shape` has one per mode.
    ranks: int | tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, shape, ranks=None):
        self.shape = tensor_shape(shape)
        order = len(self.shape)
        if order > _LARGEST_ORDER:
            raise ValueError(
                f"Tucker's core has as many dimensions as the product has modes, up to "
                f"{_LARGEST_ORDER}, got {order}: use TensorTrain or CP."
            )
        self.ranks = checked_ranks(ranks, order, f"{order} ranks, one per mode")
        refuse_too_large(
            self.paths + sum(math.prod(pair) for pair in self._matrix_shapes),
            f"Tucker(shape of order {order}, ranks={self.ranks})",
            "Give smaller ranks=.",
        )

    @property
    def core_shape(self) -> tuple[int, ...]:
        """The shape of the core: a rank per mode."""
        if isinstance(self.ranks, tuple):
            return self.ranks
        return self.shape if self.ranks is None else (self.ranks,) * len(self.shape)

    @property
    def _matrix_shapes(self) -> list[tuple[int, int]]:
        return list(zip(self.shape, self.core_shape, strict=True))

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        dtype = jnp.result_type(float)
        shapes = (self.core_shape, *self._matrix_shapes)
        return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)

    @property
    def degree(self) -> int:
        return len(self.shape) + 1

    @property
    def paths(self) -> int:
        return math.prod(self.core_shape)

    def compose(self, factors: Factors) -> FloatArray:
        dense_shape(self)
        product, *matrices = factors
        for matrix in matrices:
            # The first mode's result goes last: after a full turn the modes are in order again.
            product = jnp.tensordot(product, matrix, axes=((0,), (1,)))
        return product

    def entries(self, factors: Factors, indices) -> FloatArray:
        core, *matrices = factors
        rows = [picked(u, places) for u, places in zip(matrices, indices.T, strict=True)]
        # The core as a matrix between two groups of modes: per entry no more numbers are made than
        # that matrix has rows and columns.
        split = min(range(1, core.ndim), key=lambda n: sum(_matrix_shape(core.shape, n)))
        half = _row_products(rows[:split]) @ core.reshape(_matrix_shape(core.shape, split))
        return jnp.sum(half * _row_products(rows[split:]), axis=1)

    def conserved(self, factors: Factors) -> tuple[FloatArray, ...]:
        r"""$U_n^\top U_n - C_{(n)} C_{(n)}^\top$ for every mode, with the core's unfoldings.

        Each is symmetric, of shape `(r_n, r_n)`.
        """
        core, *matrices = factors
        unfoldings = [
            jnp.moveaxis(core, mode, 0).reshape(size, -1) for mode, size in enumerate(core.shape)
        ]
        return tuple(u.T @ u - c @ c.T for u, c in zip(matrices, unfoldings, strict=True))

    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]:
        if len(self.shape) > 2:
            raise ValueError(no_matrix(self.shape))
        core, left, right = factors
        return right.T, core, left


def _matrix_shape(shape: tuple[int, ...], split: int) -> tuple[int, int]:
    return math.prod(shape[:split]), math.prod(shape[split:])


def _row_products(rows: list[FloatArray]) -> FloatArray:
    """Kronecker products of corresponding rows, the last mode varying fastest."""
    return functools.reduce(
        lambda left, right: (left[:, :, None] * right[:, None, :]).reshape(left.shape[0], -1), rows
    )
