r"""A chart for the flow of balanced square factors, in which every singular value keeps its digits.

Balanced factors of full width follow the end-to-end flow of their $d \times d$ product. In its
entries a small singular value is lost to rounding, and with the smallest the sign of the
determinant, which decides where the flow goes. Here the singular values are kept in *levels*, a new
one where they drop:

$$W = U \begin{pmatrix} B_1 & & \\ & B_2 & \\ & & \ddots \end{pmatrix} V^\top, \qquad
  U = U_0 Q(A), \quad V = V_0 Q(C).$$

A block is not diagonalized: its singular values may meet, only those of different levels must stay
apart. It is held as $e^c N$ with $N_{11} = 1$; a singular value by itself is its logarithm. $A$ and
$C$ are unit lower triangular by blocks, see `flags`, and have as many free entries as the places
between the blocks. After every step the frames move along, so that at its beginning $A = C = 1$ and
all blocks are diagonal, and the levels are chosen anew.

What moves a block is as small as the block, level by level: no term is a difference of larger ones.
With $P = (W W^\top)^{1/L}$ and $G$ the gradient, all in the frame, the blocks move by
$-\sum_j P^{L-j} G P'^{j-1}$, and the frame turns by the $\Omega$ that satisfies
$P \Omega - \Omega P = G B^\top + B G^\top$ between levels. This keeps $P$ block diagonal.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from factorflow._dynamics.charts.base import AbstractChart, AbstractCharts, Position
from factorflow._dynamics.charts.flags import flag_of, flag_velocity, orthonormal
from factorflow._dynamics.charts.levels import (
    Levels,
    apart,
    descending,
    gram_root,
    level_svd,
    levels_of,
    powers,
    same,
    turn,
)
from factorflow._factorization import AbstractFactorization, DeepMatrix, balanced_from_spectrum
from factorflow._linalg import qr, slogdet, svd
from factorflow._problem import AbstractProblem
from factorflow._product import Dense, Spectral
from factorflow._types import BoolArray, Factors, FloatArray, FloatScalar, Matrix, Vector

__all__ = ["BalancedSquare", "balanced_spectrum"]

# The logarithm that stands for a singular value of exactly zero; its exponential is zero. That of
# a value that is not falls like the square of an entry: it gets nowhere near.
_LOG_ZERO = -1e30
# A logarithm is resolved to this share of its size, and to one: it is that of a number.
_LOG_SHARE = 0.1
# Bases are made orthogonal again once they are off by this multiple of rounding, and not before:
# an entry of theirs that is nearly zero has its own relative precision, which that takes away.
_DRIFTED = 1e3


class _Frame(eqx.Module):
    """The beginning of a step; its singular values as they are and as logarithms.

    Either underflows, or rounds by more than the other: both are carried on.
    """

    sign: FloatScalar  # of det W: -1, 0 or 1
    left: Matrix
    right: Matrix
    values: Vector
    logs: Vector
    levels: Levels


class _Parts(eqx.Module):
    """The coordinates, taken apart."""

    growth: Vector  # of c since the step began, for every position that of its level
    blocks: Matrix  # N
    flags: FloatArray  # A and C, shape (2, d, d)

    @classmethod
    def of(cls, y: Vector, levels: Levels) -> "_Parts":
        square = _square(y)
        identity = jnp.eye(square.shape[0], dtype=y.dtype)
        blocks = jnp.where(_first(levels), identity, jnp.where(same(levels), square, 0))
        below = apart(levels).T
        flags = jnp.stack([jnp.where(below, part, identity) for part in (square, square.T)])
        return cls(jnp.diagonal(square)[levels], blocks, flags)

    def flat(self, levels: Levels) -> Vector:
        """The coordinates as one vector."""
        between = jnp.where(apart(levels), self.flags[1].T, self.flags[0])
        square = jnp.where(same(levels), self.blocks, between)
        return jnp.where(_first(levels), self.growth[:, None], square).reshape(-1)


class _Point(eqx.Module):
    """A point of the chart, with its bases."""

    parts: _Parts
    frame: _Frame
    left: Matrix
    right: Matrix

    @classmethod
    def of(cls, y: Vector, frame: _Frame) -> "_Point":
        parts = _Parts.of(y, frame.levels)
        q, _, _ = jax.vmap(orthonormal)(parts.flags)
        return cls(parts, frame, frame.left @ q[0], frame.right @ q[1])

    def logs(self) -> FloatArray:
        """For every position c, the logarithm of the size of its level."""
        return self.frame.logs[self.frame.levels] + self.parts.growth

    def dense(self) -> FloatArray:
        """The product."""
        sizes = self.frame.values[self.frame.levels] * jnp.exp(self.parts.growth)
        return self.left @ (sizes[:, None] * self.parts.blocks) @ self.right.T

    def gradient(self, problem: AbstractProblem) -> FloatArray:
        """Of the loss with respect to the product, in the bases."""
        gradient = jax.grad(lambda w: problem.loss(Dense(w)))(self.dense())
        return self.left.T @ gradient @ self.right

    def spectrum(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Singular vectors and values `(left, values, logs, right)`, descending."""
        levels, growth = self.frame.levels, self.parts.growth
        outer, sizes, inner = level_svd(self.parts.blocks, levels)
        # Signs of singular vectors such that a nearly diagonal block turns its frame little.
        signs = jnp.where(jnp.diagonal(outer) < 0, -1, 1).astype(growth.dtype)
        values = self.frame.values[levels] * jnp.exp(growth) * sizes
        logs = jnp.maximum(self.logs() + jnp.log(sizes), _LOG_ZERO)
        logs = jnp.where(values > jnp.finfo(values.dtype).tiny, jnp.log(values), logs)
        order = descending(logs)
        left, right = self.left @ (outer * signs), self.right @ (inner * signs)
        return left[:, order], values[order], logs[order], right[:, order]


class _LevelChart(AbstractChart):
    def dense(self, y: Vector, frame: _Frame) -> Matrix:
        """The product."""
        return _Point.of(y, frame).dense()

    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> FloatScalar:
        return problem.loss(Dense(self.dense(y, frame)))

    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        depth, levels = fz.depth, frame.levels
        at = _Parts.of(y, levels)
        q, r, inverse = jax.vmap(orthonormal)(at.flags)
        point = _Point(at, frame, frame.left @ q[0], frame.right @ q[1])
        g, logs = point.gradient(problem), point.logs()
        outer, values, inner = level_svd(lax.stop_gradient(at.blocks), levels)
        # Left and right at once: the transposed product has the transposed gradient.
        blocks, slopes = jnp.stack([at.blocks, at.blocks.T]), jnp.stack([g, g.T])
        vectors, others = jnp.stack([outer, inner]), jnp.stack([inner, outer])
        roots = jax.vmap(lambda n, p, q: gram_root(n, p, values, q, depth))(blocks, vectors, others)
        outers, inners = powers(roots[0], depth), powers(roots[1], depth)
        # Everything relative to the size of the level, e^c; what has vanished stays as it is.
        pace = jnp.where(_vanished(logs), 0, jnp.exp(logs * (1 - 2 / depth)))[:, None]
        within = jnp.where(same(levels), g, 0)
        moved = -pace * sum(outers[depth - 1 - j] @ within @ inners[j] for j in range(depth))
        above = apart(levels)
        fall = jnp.where(above, logs[None] - logs[:, None], 0)
        ratio, drop = jnp.exp(fall * (2 / depth)), jnp.exp(fall)
        root_values = values ** (2 / depth)

        def turned(root, n, g, p):
            side = pace * (n @ g.T + drop * (g @ n.T))
            x = turn(root, ratio, side, p, root_values, above)
            return x - x.T

        turning = jax.vmap(turned)(roots, blocks, slopes, vectors)
        every = jax.vmap(flag_velocity, in_axes=(0, 0, 0, 0, None))
        moved_flags, spins = every(turning, at.flags, r, inverse, levels)
        moved = moved - spins[0] @ at.blocks + at.blocks @ spins[1]
        growth = jnp.diagonal(moved)[levels]
        return _Parts(growth, moved - at.blocks * growth[:, None], moved_flags).flat(levels)

    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame):
        point, depth = _Point.of(y, frame), fz.depth
        outer, sizes, inner = level_svd(point.parts.blocks, frame.levels)
        g = outer.T @ point.gradient(problem) @ inner
        p = jnp.exp(point.logs() * (2 / depth)) * sizes ** (2 / depth)
        weights = sum(p[:, None] ** (depth - 1 - j) * p[None] ** j for j in range(depth))
        return jnp.sum(weights * g**2)

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        at = _Parts.of(y, frame.levels)
        # Diagonal at the beginning of a step.
        values = jnp.abs(jnp.diagonal(at.blocks))
        blocks = jnp.sqrt(values[:, None] * values[None])
        growth = 1 + _LOG_SHARE * jnp.abs(frame.logs)
        return _Parts(growth, blocks, jnp.ones_like(at.flags)).flat(frame.levels)

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Spectral:
        point = _Point.of(y, frame)
        _, _, logs, _ = point.spectrum()
        logs = jnp.where(_vanished(logs), -jnp.inf, logs)
        return Spectral(point.dense(), logs, frame.sign)

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factors:
        left, _, logs, right = _Point.of(y, frame).spectrum()
        return balanced_from_spectrum(fz, left, logs, right.T)


class BalancedSquare(AbstractCharts):
    """The chart; reflections in its frames carry the sign of the determinant."""

    charts: tuple[Any, ...]

    balanced: ClassVar[bool] = True
    name: ClassVar[str] = "split"

    def __init__(self):
        self.charts = (_LevelChart(),)

    def start(self, fz: AbstractFactorization, factors: Factors) -> Position:
        assert isinstance(fz, DeepMatrix)
        left, values, right = balanced_spectrum(fz.matrix_chain(factors))
        logs = jnp.sum(jnp.log(values), axis=0)
        logs = jnp.where(jnp.isnan(logs), -jnp.inf, logs)
        sign, _ = slogdet(left @ right.T)
        sign = jnp.where(jnp.isfinite(logs).all(), sign, 0)
        order, logs = descending(logs), jnp.maximum(logs, _LOG_ZERO)
        spectrum = left[:, order], jnp.prod(values, axis=0)[order], logs[order], right[:, order]
        return _at_rest(sign, *spectrum)

    def reexpressed(
        self, fz: AbstractFactorization, stages: FloatArray, position: Position, following: _Frame
    ) -> FloatArray:
        # Only predictions across which the levels stay are used.
        frame, levels = position.frame, following.levels

        def moved(y):
            point = _Point.of(y, frame)
            turns = jnp.stack([following.left.T @ point.left, following.right.T @ point.right])
            flags = jax.vmap(lambda turned: flag_of(turned, levels))(turns)
            q, _, _ = jax.vmap(orthonormal)(flags)
            outer, inner = jnp.where(same(levels), jnp.swapaxes(q, 1, 2) @ turns, 0)
            blocks = outer @ point.parts.blocks @ inner.T
            sizes = jnp.diagonal(blocks)[levels]
            growth = point.logs() - following.logs[levels] + jnp.log(sizes)
            return _Parts(growth, blocks / sizes[:, None], flags).flat(levels)

        return jax.vmap(moved)(stages)

    def leave(
        self,
        chart: Any,
        problem: AbstractProblem,
        fz: AbstractFactorization,
        y: Vector,
        frame: _Frame,
    ) -> Position:
        del chart, problem, fz
        left, values, logs, right = _Point.of(y, frame).spectrum()
        return _at_rest(frame.sign, _polished(left), values, logs, _polished(right))


def balanced_spectrum(factors: tuple[FloatArray, ...]) -> tuple[FloatArray, FloatArray, FloatArray]:
    r"""Singular vectors of the product of balanced factors, and the singular values of each factor.

    Returns `(left, values, right)`, values of shape `(L, d)`, equal over the layers if the factors
    are balanced. Where a factor is known with relative precision row by row or column by
    column, as `diag(1, 1e-40)` is, so are its small singular values: they are never taken from a
    product, or from differences of larger numbers.
    """
    _, _, right = svd(factors[0])
    right = right.T
    transposed = tuple(factor.T for factor in factors[::-1])
    # Once through the layers, back, and on again: as in subspace iteration, what rounding left of
    # large directions in small ones shrinks by the ratio of the product's singular values.
    for chain in (factors, transposed, factors):
        left, diagonals = _through(chain, right)
        left, right = right, left
    left, right = right, left
    signs = jnp.where(jnp.prod(jnp.sign(diagonals), axis=0) < 0, -1, 1).astype(left.dtype)
    return left * signs, jnp.abs(diagonals), right


def _through(factors: tuple[FloatArray, ...], basis: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The basis after all factors, orthonormal after each, and the diagonals of the triangles."""
    diagonals = []
    for factor in factors:
        basis, triangle = qr(factor @ basis)
        diagonals.append(jnp.diagonal(triangle))
    return basis, jnp.stack(diagonals)


def _at_rest(
    sign: FloatScalar, left: Matrix, values: Vector, logs: Vector, right: Matrix
) -> Position:
    """The beginning of a step at a product of these singular vectors and values."""
    levels = levels_of(logs)
    large = values > jnp.finfo(values.dtype).tiny
    shares = jnp.where(
        large, values / jnp.where(large, values[levels], 1), jnp.exp(logs - logs[levels])
    )
    zero = jnp.zeros((2, *left.shape), left.dtype)
    y = _Parts(jnp.zeros_like(logs), jnp.diag(shares), zero).flat(levels)
    # Positions are of one kind if they have the same levels.
    place = jnp.arange(levels.shape[0], dtype=jnp.int32)
    kind = jnp.sum(jnp.where(levels == place, 1 << place, 0), dtype=jnp.int32)
    return Position(y, kind, _Frame(sign, left, right, values, logs, levels))


def _square(y: Vector) -> FloatArray:
    dim = round(y.shape[0] ** 0.5)
    return y.reshape(dim, dim)


def _first(levels: Levels) -> BoolArray:
    """The diagonal places of the first positions, which hold the logarithms."""
    place = jnp.arange(levels.shape[0], dtype=jnp.int32)
    return (place[:, None] == place) & (levels == place)


def _vanished(logs: Vector) -> BoolArray:
    return logs < _LOG_ZERO / 10


def _polished(basis: Matrix) -> FloatArray:
    """Orthogonal, by one step of Newton and Schulz's iteration, if rounding has added up."""
    gram = basis.T @ basis
    off = jnp.max(jnp.abs(gram - jnp.eye(basis.shape[0], dtype=basis.dtype)))
    drifted = off > _DRIFTED * jnp.finfo(basis.dtype).eps
    return jnp.where(drifted, 1.5 * basis - 0.5 * basis @ gram, basis)
