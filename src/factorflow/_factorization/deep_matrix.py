"""Deep matrix factorization: a matrix as the product of several."""

import itertools
import math

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from factorflow._factorization.base import AbstractFactorization, dense_shape, integer
from factorflow._linalg import svd
from factorflow._memory import refuse_too_large
from factorflow._settings import own_settings
from factorflow._types import Factors, FloatArray, Matrix

__all__ = ["DeepMatrix", "balanced_factors", "balanced_from_spectrum", "imbalance"]

# Up to this many multiplications a matrix product is written as a broadcast sum: XLA then fuses it
# with what surrounds it instead of calling a matrix kernel per product and lane. On CPU a descent
# step takes half the time for 2x2 factors, a tenth for 5x5; at 10x10 they meet.
_FUSED_MULTIPLICATIONS = 1024


class DeepMatrix(AbstractFactorization):
    r"""The product $W = W_L \cdots W_2 W_1$ of `depth` matrices.

    **Arguments:**

    - `shape`: `(m, n)` of the product.
    - `depth`: number of factors $L \ge 1$.
    - `hidden`: the hidden widths: an integer for all of them, or a sequence of `depth - 1`
        integers, $W_1$'s rows first. `None` takes `min(m, n)`, which constrains no product.

    Factors are a tuple `(W_1, ..., W_L)`; $W_1$ has $n$ columns and $W_L$ has $m$ rows.

    **Raises:** `ValueError` for sizes below 1, hidden widths of another number than `depth - 1`,
    and factors that this machine's memory cannot hold.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((2, 3), depth=3, hidden=(5, 4))
        >>> [s.shape for s in fz.shapes()]
        [(5, 3), (4, 5), (2, 4)]

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{arora2019implicit,
            author = {Arora, Sanjeev and Cohen, Nadav and Hu, Wei and Luo, Yuping},
            title = {Implicit Regularization in Deep Matrix Factorization},
            booktitle = {Advances in Neural Information Processing Systems},
            year = {2019},
        }
        ```
    """

    shape: tuple[int, int] = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    # As given, so that a change of depth keeps its meaning; `hidden_widths` has one per layer.
    hidden: int | tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, shape, depth, hidden=None):
        rows_columns = tuple(_integer("shape", size) for size in shape)
        if len(rows_columns) != 2 or min(rows_columns) < 1:
            raise ValueError(f"shape must be two sizes of 1 or more, got {tuple(shape)}.")
        self.shape = (rows_columns[0], rows_columns[1])
        self.depth = _integer("depth", depth)
        if self.depth < 1:
            raise ValueError(f"depth counts matrices and must be 1 or more, got {depth}.")
        if hidden is not None:
            one = np.ndim(hidden) == 0
            widths = tuple(_integer("hidden", width) for width in ([hidden] if one else hidden))
            hidden = widths[0] if one else widths
        self.hidden = hidden
        refuse_too_large(
            self._count(),
            f"DeepMatrix(shape={self.shape}, depth={self.depth}, hidden={hidden})",
            "Give smaller hidden= widths, a smaller depth, or a smaller shape.",
        )
        if len(self.hidden_widths) != self.depth - 1:
            raise ValueError(f"hidden must name depth - 1 = {self.depth - 1} widths, got {hidden}.")
        if any(width < 1 for width in self.hidden_widths):
            raise ValueError(f"hidden widths must be 1 or more, got {hidden}.")

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """The `depth - 1` hidden widths, the first factor's rows first."""
        if isinstance(self.hidden, tuple):
            return self.hidden
        width = min(self.shape) if self.hidden is None else self.hidden
        return (width,) * (self.depth - 1)

    def _count(self) -> int:
        """The numbers in all factors, without a list of widths: depth may be anything yet."""
        rows, columns = self.shape
        if self.depth == 1:
            return rows * columns
        width = min(self.shape) if self.hidden is None else self.hidden
        if isinstance(width, tuple):
            widths = (columns, *width, rows)
            return sum(before * after for before, after in itertools.pairwise(widths))
        return width * (rows + columns) + (self.depth - 2) * width**2

    @property
    def widths(self) -> tuple[int, ...]:
        """`(n, hidden..., m)`: the sizes from input to output."""
        rows, columns = self.shape
        return (columns, *self.hidden_widths, rows)

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        dtype = jnp.result_type(float)
        return tuple(
            jax.ShapeDtypeStruct((rows, columns), dtype)
            for columns, rows in itertools.pairwise(self.widths)
        )

    @property
    def degree(self) -> int:
        return self.depth

    @property
    def paths(self) -> int:
        return math.prod(self.hidden_widths)

    def compose(self, factors: Factors) -> FloatArray:
        dense_shape(self)
        product = factors[0]
        for factor in factors[1:]:
            product = _matmul(factor, product)
        return product

    def entries(self, factors: Factors, indices) -> FloatArray:
        if self.depth == 1:
            return factors[0][indices[:, 0], indices[:, 1]]
        rows = factors[-1][indices[:, 0]]
        for factor in factors[-2:0:-1]:
            rows = rows @ factor
        return jnp.sum(rows * factors[0].T[indices[:, 1]], axis=-1)

    def conserved(self, factors: Factors) -> tuple[FloatArray, ...]:
        r"""The imbalances $D_j = W_{j+1}^\top W_{j+1} - W_j W_j^\top$, each symmetric."""
        return imbalance(factors)

    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]:
        return tuple(factors)


def imbalance(factors: Factors) -> tuple[FloatArray, ...]:
    r"""$D_j = W_{j+1}^\top W_{j+1} - W_j W_j^\top$ for `j = 1, ..., L - 1`."""
    return tuple(outer.T @ outer - inner @ inner.T for inner, outer in itertools.pairwise(factors))


@own_settings()
def balanced_factors(factorization: DeepMatrix, product) -> tuple[Matrix, ...]:
    r"""Exactly balanced factors of a given product.

    With $W = U S V^\top$ the factors are $W_1 = S^{1/L} V^\top$, $W_j = S^{1/L}$ and
    $W_L = U S^{1/L}$, padded with zeros to the hidden widths, so that
    $W_{j+1}^\top W_{j+1} = W_j W_j^\top$ up to rounding.

    **Arguments:**

    - `factorization`: a `DeepMatrix`; every hidden width must be at least `min(m, n)`, or at least
        the rank of the product.
    - `product`: shape `(m, n)`.

    **Raises:** `ValueError` where a hidden width is too small to hold the product.

    !!! example

        ```python
        >>> import jax.numpy as jnp
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((2, 2), depth=3)
        >>> factors = ff.balanced_factors(fz, 1e-3 * jnp.eye(2))
        >>> bool(jnp.allclose(fz.compose(factors), 1e-3 * jnp.eye(2)))
        True

        ```
    """
    product = jnp.asarray(product)
    if jnp.issubdtype(product.dtype, jnp.complexfloating):
        raise ValueError(f"product must be real, got {product.dtype}.")
    if not isinstance(product, jax.core.Tracer) and not np.all(np.isfinite(product)):
        raise ValueError("product holds NaN or infinity; balanced factors need finite numbers.")
    if not jnp.issubdtype(product.dtype, jnp.inexact):
        product = product.astype(jnp.result_type(float))
    if product.shape != factorization.shape:
        raise ValueError(
            f"product must have the factorization's shape {factorization.shape}, got "
            f"{product.shape}."
        )
    left, values, right = _decomposed(product)
    narrowest = min((*factorization.hidden_widths, values.shape[0]))
    if narrowest < values.shape[0]:
        _refuse_narrow(factorization, values, narrowest)
        # What the narrowest factor cuts off, all must: the L-th root of rounding is not small.
        values = values.at[narrowest:].set(0)
    if factorization.depth == 1:
        return (product,)
    return _balanced(factorization, left, values, right)


# Compiled whole, like what follows: operation by operation, every shape would compile a dozen.
@jax.jit
def _decomposed(product: Matrix) -> tuple[FloatArray, FloatArray, FloatArray]:
    left, values, right = svd(product)
    # A singular value within the rounding of the largest is zero: its sign would be arbitrary.
    noise = max(product.shape) * jnp.finfo(values.dtype).eps * values[0]
    count = values.shape[0]
    return left[:, :count], jnp.where(values <= noise, 0, values), right[:count]


@eqx.filter_jit
def _balanced(
    factorization: DeepMatrix, left: FloatArray, values: FloatArray, right: FloatArray
) -> tuple[FloatArray, ...]:
    return _spread(factorization, left, values ** (1 / factorization.depth), right)


def balanced_from_spectrum(
    factorization: DeepMatrix, left: FloatArray, log_values: FloatArray, right: FloatArray
) -> tuple[FloatArray, ...]:
    """Balanced factors of `left @ diag(exp(log_values)) @ right`."""
    if factorization.depth == 1:
        return ((left * jnp.exp(log_values)) @ right,)
    return _spread(factorization, left, jnp.exp(log_values / factorization.depth), right)


@eqx.filter_jit
def _spread(
    factorization: DeepMatrix, left: FloatArray, root: FloatArray, right: FloatArray
) -> tuple[FloatArray, ...]:
    last = len(factorization.widths) - 2
    factors = []
    for layer, shape in enumerate(factorization.shapes()):
        block = jnp.diag(root)
        if layer == 0:
            block = root[:, None] * right
        elif layer == last:
            block = left * root
        rows, columns = min(block.shape[0], shape.shape[0]), min(block.shape[1], shape.shape[1])
        empty = jnp.zeros(shape.shape, root.dtype)
        factors.append(empty.at[:rows, :columns].set(block[:rows, :columns]))
    return tuple(factors)


def _integer(name: str, value) -> int:
    return integer(name, value, "rows, columns or matrices")


def _refuse_narrow(factorization: DeepMatrix, values: FloatArray, narrowest: int) -> None:
    # Under a trace the rank is unknown, so only full width is accepted there.
    tolerance = math.prod(factorization.shape) * jnp.finfo(values.dtype).eps
    if isinstance(values, jax.core.Tracer) or bool(values[narrowest] > tolerance * values[0]):
        raise ValueError(
            f"hidden width {narrowest} of {factorization.hidden_widths} is too small for balanced "
            f"factors of this {factorization.shape[0]}x{factorization.shape[1]} product: give "
            f"hidden widths of {values.shape[0]} or more, or a product of rank {narrowest} or less."
        )


def _matmul(left: FloatArray, right: FloatArray) -> FloatArray:
    multiplications = left.shape[0] * left.shape[1] * right.shape[1]
    if multiplications <= _FUSED_MULTIPLICATIONS:
        return jnp.sum(left[:, :, None] * right[None, :, :], axis=1)
    return left @ right
