"""Tensor train factorization: every entry a product of small matrices, one per mode."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from factorflow._factorization.base import (
    AbstractFactorization,
    dense_shape,
    integer,
    tensor_shape,
)
from factorflow._memory import refuse_too_large
from factorflow._product import no_matrix
from factorflow._types import Factors, FloatArray

__all__ = ["TensorTrain", "checked_ranks"]

# Up to this order entries multiply core after core; beyond, a scan over cores padded to one shape
# keeps the time of compilation from growing with the order.
_UNROLLED = 16
# Up to this size of a mode, slices are picked by multiplication with a one-hot matrix: on CPU the
# scatter that a gather's gradient needs costs more.
_ONE_HOT = 32


class TensorTrain(AbstractFactorization):
    r"""The product $W_{i_1 \dots i_N} = G_1[:, i_1, :] \, G_2[:, i_2, :] \cdots G_N[:, i_N, :]$.

    **Arguments:**

    - `shape`: `(d_1, ..., d_N)` of the product, N >= 2.
    - `ranks`: the inner ranks $r_1, \dots, r_{N-1}$: an integer for all of them, or a sequence of
        N - 1 integers. `None` takes `min(d_1 ... d_k, d_{k+1} ... d_N)`, which constrains no
        tensor.

    Factors are a tuple of cores `(G_1, ..., G_N)`; $G_k$ has shape `(r_{k-1}, d_k, r_k)` with
    $r_0 = r_N = 1$. `entries` multiplies one matrix per mode and never makes the product, so that
    orders in the hundreds work.

    **Raises:** `ValueError` for fewer than two modes, an empty mode, a rank below 1, another number
    of ranks than N - 1, and cores that this machine's memory cannot hold.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> fz = ff.TensorTrain((4, 5, 6), ranks=(2, 3))
        >>> [s.shape for s in fz.shapes()]
        [(1, 4, 2), (2, 5, 3), (3, 6, 1)]
        >>> ff.TensorTrain((4, 5, 6)).inner_ranks
        (4, 6)

        ```

    ??? cite "Reference"

        ```bibtex
        @article{oseledets2011tensor,
            author = {Oseledets, Ivan V.},
            title = {Tensor-Train Decomposition},
            journal = {SIAM Journal on Scientific Computing},
            volume = {33}, number = {5}, pages = {2295--2317},
            year = {2011},
        }
        ```
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    # As given, so that a change of shape keeps its meaning; `inner_ranks` has one per inner index.
    ranks: int | tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, shape, ranks=None):
        self.shape = tensor_shape(shape)
        inner = len(self.shape) - 1
        self.ranks = checked_ranks(ranks, inner, f"order - 1 = {inner} ranks")
        # Hundreds of ranks would bury the message.
        named = f" up to {max(self.ranks)}" if isinstance(self.ranks, tuple) else f"={self.ranks}"
        refuse_too_large(
            sum(math.prod(core) for core in self._core_shapes),
            f"TensorTrain(shape of order {len(self.shape)}, ranks{named})",
            "Give smaller ranks=.",
        )

    @property
    def inner_ranks(self) -> tuple[int, ...]:
        """The N - 1 ranks between neighbouring modes, the first two modes' first."""
        if isinstance(self.ranks, tuple):
            return self.ranks
        if self.ranks is not None:
            return (self.ranks,) * (len(self.shape) - 1)
        ranks, before, after = [], 1, math.prod(self.shape)
        for size in self.shape[:-1]:
            before, after = before * size, after // size
            ranks.append(min(before, after))
        return tuple(ranks)

    @property
    def _core_shapes(self) -> list[tuple[int, int, int]]:
        inner = self.inner_ranks
        return list(zip((1, *inner), self.shape, (*inner, 1), strict=True))

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        dtype = jnp.result_type(float)
        return tuple(jax.ShapeDtypeStruct(core, dtype) for core in self._core_shapes)

    @property
    def degree(self) -> int:
        return len(self.shape)

    @property
    def paths(self) -> int:
        return math.prod(self.inner_ranks)

    def compose(self, factors: Factors) -> FloatArray:
        shape = dense_shape(self)
        # Both halves first: the one multiplication as large as the product then comes last.
        middle = len(factors) // 2
        head, tail = factors[0][0], factors[-1][:, :, 0]
        for core in factors[1:middle]:
            head = (head @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
        for core in factors[-2 : middle - 1 : -1]:
            tail = (core.reshape(-1, core.shape[2]) @ tail).reshape(core.shape[0], -1)
        return (head @ tail).reshape(shape)

    def entries(self, factors: Factors, indices) -> FloatArray:
        rows = jnp.ones((indices.shape[0], 1), factors[0].dtype)
        if len(factors) <= _UNROLLED:
            for core, places in zip(factors, indices.T, strict=True):
                rows = _times_slices(rows, core, places)
            return rows[:, 0]
        cores = _stacked(factors)
        # Zeros beyond the ranks multiply zeros.
        rows = jnp.pad(rows, ((0, 0), (0, cores.shape[1] - 1)))
        # Slices are picked once more for the gradient instead of kept for every mode.
        step = jax.checkpoint(_times_slices, prevent_cse=False)
        rows, _ = lax.scan(lambda rows, mode: (step(rows, *mode), None), rows, (cores, indices.T))
        return rows[:, 0]

    def conserved(self, factors: Factors) -> tuple[FloatArray, ...]:
        r"""For every inner index, what balances the cores on both of its sides.

        $\sum_i G_k[:, i, :]^\top G_k[:, i, :] - \sum_i G_{k+1}[:, i, :] G_{k+1}[:, i, :]^\top$ for
        `k = 1, ..., N - 1`, each symmetric.
        """
        left = [core.reshape(-1, core.shape[2]) for core in factors[:-1]]
        right = [core.reshape(core.shape[0], -1) for core in factors[1:]]
        return tuple(a.T @ a - b @ b.T for a, b in zip(left, right, strict=True))

    def matrix_chain(self, factors: Factors) -> tuple[FloatArray, ...]:
        if len(self.shape) > 2:
            raise ValueError(no_matrix(self.shape))
        first, second = factors
        return second[:, :, 0], first[0]


def checked_ranks(ranks, count: int, expected: str) -> int | tuple[int, ...] | None:
    """`None`, one rank for all or `count` of them, as given; `ValueError` for anything else."""
    if ranks is None:
        return None
    one = np.ndim(ranks) == 0
    given = tuple(integer("ranks", r, "summed indices") for r in ([ranks] if one else ranks))
    if not one and len(given) != count:
        raise ValueError(f"ranks must be an integer or {expected}, got {given}.")
    if min(given) < 1:
        raise ValueError(f"ranks must be 1 or more, got {ranks}.")
    return given[0] if one else given


def _times_slices(rows: FloatArray, core: FloatArray, places: jax.Array) -> FloatArray:
    """`rows[t] @ core[:, places[t], :]` for every `t`."""
    rank, size, following = core.shape
    if size > max(rank, _ONE_HOT):
        return jnp.einsum("tr,rts->ts", rows, core[:, places])
    # All slices by one multiplication: no larger than the picked matrices would be.
    every = (rows @ core.reshape(rank, -1)).reshape(-1, size, following)
    return jnp.einsum("tis,ti->ts", every, jax.nn.one_hot(places, size, dtype=core.dtype))


def _stacked(cores: tuple[FloatArray, ...]) -> FloatArray:
    """All cores in one array, padded with zeros to their largest rank and size of a mode."""
    rank, size = max(core.shape[0] for core in cores), max(core.shape[1] for core in cores)
    padded = [
        jnp.pad(core, [(0, n - m) for n, m in zip((rank, size, rank), core.shape, strict=True)])
        for core in cores
    ]
    return jnp.stack(padded)
