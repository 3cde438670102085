r"""Matrices that are block diagonal over levels of singular values, of sizes no dtype compares.

The singular values of a product, in descending order, fall into *levels*: a new one begins where
they drop. A matrix that is block diagonal over the levels is held as $e^{c_i} N_{ik}$ with one
logarithm $c$ per level and blocks of $N$ of size one: every block keeps its own precision. Levels
are given by an array, for every position the first one of its level: one compiled function serves
all patterns.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from factorflow._linalg import svd
from factorflow._types import BoolArray, FloatArray, Matrix, Vector

__all__ = [
    "Levels",
    "apart",
    "descending",
    "gram_root",
    "level_svd",
    "levels_of",
    "powers",
    "same",
    "turn",
]

# No name for its size: coordinates have another, and names of sizes hold for whole signatures.
Levels = Int[Array, "..."]

# A new level begins where a singular value is less than this share of the one before.
_DROP = 0.2
# Blocks are told apart by size where a library's decomposition would not see that they are apart.
_FADE = 0.4


def levels_of(logs: Vector) -> Levels:
    """For every position the first one of its level, given logarithms in descending order."""
    place = jnp.arange(logs.shape[0], dtype=jnp.int32)
    drops = jnp.diff(logs, prepend=logs[:1]) < jnp.log(jnp.asarray(_DROP, logs.dtype))
    return lax.cummax(jnp.where(drops, place, 0))


def same(levels: Levels) -> BoolArray:
    """Which pairs of positions are of one level."""
    return levels[:, None] == levels[None]


def apart(levels: Levels) -> BoolArray:
    """Which pairs of positions lie above the diagonal blocks."""
    return levels[:, None] < levels[None]


def descending(keys: Array) -> Levels:
    """The stable order of a few keys, largest first; counted, which compiles faster than a sort."""
    place = jnp.arange(keys.shape[0])
    ahead = (keys[:, None] < keys) | ((keys[:, None] == keys) & (place[:, None] > place))
    return jnp.argmax(jnp.sum(ahead, axis=1)[None] == place[:, None], axis=1)


def level_svd(blocks: Matrix, levels: Levels) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""Singular vectors and values $(P, n, Q)$ with $N = P \\operatorname{diag}(n) Q^\\top$.

    Block by block, the values of each descending. Vectors of different levels do not mix, even
    where their values are equal: LAPACK keeps the exact zeros between blocks, and blocks are scaled
    so that equal values seldom meet.
    """
    fade = jnp.asarray(_FADE, blocks.dtype) ** levels.astype(blocks.dtype)
    left, values, right = svd(blocks * fade[:, None])
    order = descending(-levels[jnp.argmax(jnp.abs(left), axis=0)])
    within = same(levels)
    left = jnp.where(within, left[:, order], 0)
    return left, values[order] / fade, jnp.where(within, right[order].T, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def gram_root(blocks: Matrix, left: Matrix, values: Vector, right: Matrix, depth: int) -> Matrix:
    r"""$(N N^\top)^{1/L}$, given the singular vectors and values of $N$.

    Differentiable in $N$, also where singular values meet.
    """
    del blocks, right
    return (left * values ** (2 / depth)) @ left.T


@gram_root.defjvp
def _gram_root_jvp(depth: int, primals, tangents):
    _, left, values, right = primals
    moved = left.T @ tangents[0] @ right
    moved = moved * values + values[:, None] * moved.T
    p = values ** (2 / depth)
    # Divided differences of the root, with no difference in them (Daleckii and Krein):
    # (p_i - p_j) / (p_i^L - p_j^L) = 1 / sum_k p_i^k p_j^(L - 1 - k).
    slopes = 1 / sum(p[:, None] ** k * p[None] ** (depth - 1 - k) for k in range(depth))
    return gram_root(*primals, depth), left @ (slopes * moved) @ left.T


def powers(root: Matrix, depth: int) -> list[FloatArray]:
    """Powers 0 to `depth - 1`."""
    values = [jnp.eye(root.shape[0], dtype=root.dtype)]
    for _ in range(depth - 1):
        values.append(values[-1] @ root)
    return values


@jax.custom_jvp
def turn(
    root: Matrix, ratio: Matrix, side: Matrix, vectors: Matrix, values: Vector, above: BoolArray
) -> FloatArray:
    r"""The solution of $R X - \varepsilon \circ (X R) = H$ above the diagonal blocks, else zero.

    $R$ is block diagonal with these eigenvectors and eigenvalues, and $\varepsilon$ constant on
    every block: it holds the ratio of two levels' scales. Differentiable in the first three.
    """
    gaps = jnp.where(above, values[:, None] - ratio * values, 1)
    turned = vectors.T @ jnp.where(above, side, 0) @ vectors
    return vectors @ (turned / gaps) @ vectors.T


@turn.defjvp
def _turn_jvp(primals, tangents):
    root, ratio, _, *spectrum = primals
    moved_root, moved_ratio, moved_side = tangents[:3]
    x = turn(*primals)
    side = moved_side - moved_root @ x + ratio * (x @ moved_root) + moved_ratio * (x @ root)
    return x, turn(root, ratio, side, *spectrum)
