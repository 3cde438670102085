r"""Charts for the flow of balanced square factors, with the smallest singular value kept apart.

Balanced factors of full width follow the end-to-end flow of their $d \times d$ product. In its
entries a vanishing singular value $\sigma$ is lost to rounding, and with it the sign of the
determinant, which decides where the flow goes. Two charts:

- *plain*, the entries of the product, while $\sigma$ is comparable to the others;
- *split*, $W = U \begin{pmatrix} M & 0 \\ 0 & \sigma \end{pmatrix} V^\top$ with
  $U = U_0 Q(\alpha)$, $V = V_0 Q(\beta)$ and coordinates $(M, \alpha, \beta, \ln \sigma)$. $M$ is
  not diagonalized: its singular values may meet, only $\sigma$ must stay below them. After every
  step the frames move along, so that $\alpha = \beta = 0$ and $M$ is diagonal at its end.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._dynamics.charts.base import AbstractChart, AbstractCharts, Position
from factorflow._dynamics.charts.gram_root import end_to_end_field, gram_roots, powers
from factorflow._factorization import (
    AbstractFactorization,
    DeepMatrix,
    balanced_from_spectrum,
)
from factorflow._linalg import singular_values, solve_smooth, svd
from factorflow._problem import AbstractProblem
from factorflow._product import Dense, Spectral, log_determinant
from factorflow._types import (
    Factors,
    FloatArray,
    FloatScalar,
    Matrix,
    Vector,
)

__all__ = ["BalancedSquare"]

_PLAIN, _SPLIT = 0, 1
# sigma over the next larger singular value at which the split chart is entered and left.
_SMALL, _COMPARABLE = 0.2, 0.6
# The logarithm that stands for a singular value of exactly zero; its exponential is zero.
_LOG_ZERO = -1e5


class _Frame(eqx.Module):
    sign: FloatScalar  # of det W: -1, 0 or 1
    left: Matrix
    right: Matrix


class _Coordinates(eqx.Module):
    """The split chart's coordinates, taken apart."""

    block: Matrix
    left: Vector
    right: Vector
    log_sigma: FloatScalar

    @classmethod
    def of(cls, y: Vector) -> "_Coordinates":
        dim = round(y.shape[0] ** 0.5)
        square = y.reshape(dim, dim)
        return cls(square[:-1, :-1], square[:-1, -1], square[-1, :-1], square[-1, -1])

    def flat(self) -> Vector:
        """The coordinates as one vector."""
        upper = jnp.concatenate([self.block, self.left[:, None]], axis=1)
        lower = jnp.concatenate([self.right, self.log_sigma[None]])
        return jnp.concatenate([upper, lower[None]]).reshape(-1)


class _AbstractSquare(AbstractChart):
    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> FloatScalar:
        return problem.loss(Dense(self.dense(y, frame)))

    @abc.abstractmethod
    def dense(self, y: Vector, frame: _Frame) -> Matrix:
        """The product."""


class _Plain(_AbstractSquare):
    def dense(self, y: Vector, frame: _Frame) -> Matrix:
        return y.reshape(frame.left.shape)

    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        gradient = _gradient(problem, self.dense(y, frame))
        return end_to_end_field(self.dense(y, frame), gradient, fz.depth).reshape(-1)

    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame):
        gradient = _gradient(problem, self.dense(y, frame))
        return -jnp.sum(gradient * end_to_end_field(self.dense(y, frame), gradient, fz.depth))

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        return jnp.broadcast_to(jnp.max(jnp.abs(y)), y.shape)

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Spectral:
        dense = self.dense(y, frame)
        return Spectral(dense, jnp.log(singular_values(dense)), frame.sign)

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factors:
        left, values, right = svd(self.dense(y, frame))
        return balanced_from_spectrum(fz, left, jnp.log(values), right)


class _Split(_AbstractSquare):
    def bases(self, y: Vector, frame: _Frame) -> tuple[Matrix, Matrix]:
        """U and V."""
        at = _Coordinates.of(y)
        return frame.left @ _rotation(at.left), frame.right @ _rotation(at.right)

    def dense(self, y: Vector, frame: _Frame) -> Matrix:
        return _product(_Coordinates.of(y), *self.bases(y, frame))

    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        at, depth = _Coordinates.of(y), fz.depth
        turned_left, push_left = jax.linearize(_rotation, at.left)
        turned_right, push_right = jax.linearize(_rotation, at.right)
        left, right = frame.left @ turned_left, frame.right @ turned_right
        g = left.T @ _gradient(problem, _product(at, left, right)) @ right
        sigma = jnp.exp(at.log_sigma)
        outer, inner = gram_roots(at.block, depth)
        outers, inners = powers(outer, depth), powers(inner, depth)
        p = jnp.exp(2 * at.log_sigma / depth)
        # The end-to-end flow in the frame, block by block.
        pairs = range(depth)
        block = -sum(outers[depth - 1 - j] @ g[:-1, :-1] @ inners[j] for j in pairs)
        column = -sum(p**j * outers[depth - 1 - j] @ g[:-1, -1] for j in pairs)
        row = -sum(p ** (depth - 1 - j) * g[-1, :-1] @ inners[j] for j in pairs)
        log_sigma = -depth * jnp.exp(at.log_sigma * (1 - 2 / depth)) * g[-1, -1]
        # How U and V must turn to keep the off-diagonal blocks zero.
        size = at.block.shape[0]
        stay = sigma * jnp.eye(size, dtype=y.dtype)
        system = jnp.block([[stay, -at.block], [-at.block.T, stay]])
        turn = solve_smooth(system, jnp.concatenate([column, row]))
        moved_left, spun_left = _spun(turned_left, push_left, turn[:size])
        moved_right, spun_right = _spun(turned_right, push_right, turn[size:])
        block = block - spun_left @ at.block + at.block @ spun_right
        return _Coordinates(block, moved_left, moved_right, log_sigma).flat()

    def reexpressed(self, fz: Any, y: Vector, frame: _Frame, following: _Frame) -> Vector:
        at = _Coordinates.of(y)
        left, right = self.bases(y, frame)
        a = (following.left.T @ left[:, -1])[:-1]
        b = (following.right.T @ right[:, -1])[:-1]
        outer = (following.left @ _rotation(a))[:, :-1].T @ left[:, :-1]
        inner = (following.right @ _rotation(b))[:, :-1].T @ right[:, :-1]
        return _Coordinates(outer @ at.block @ inner.T, a, b, at.log_sigma).flat()

    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame):
        at, depth = _Coordinates.of(y), fz.depth
        left, right = self.bases(y, frame)
        g = left.T @ _gradient(problem, _product(at, left, right)) @ right
        outer, values, inner = svd(at.block)
        g = _rotate_block(g, outer, inner)
        p = jnp.concatenate([values, jnp.exp(at.log_sigma)[None]]) ** (2 / depth)
        weights = sum(p[:, None] ** (depth - 1 - j) * p[None] ** j for j in range(depth))
        return jnp.sum(weights * g**2)

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        at = _Coordinates.of(y)
        # Diagonal at the beginning of a step.
        values = jnp.abs(jnp.diagonal(at.block))
        block = jnp.sqrt(values[:, None] * values[None])
        ones = jnp.ones_like(at.left)
        return _Coordinates(block, ones, ones, 1 + jnp.abs(at.log_sigma)).flat()

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Spectral:
        at = _Coordinates.of(y)
        logs = jnp.log(singular_values(at.block))
        last = jnp.where(frame.sign == 0, -jnp.inf, jnp.minimum(at.log_sigma, logs[-1]))
        return Spectral(self.dense(y, frame), jnp.append(logs, last), frame.sign)

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factors:
        left, right = self.bases(y, frame)
        outer, _, inner = svd(_Coordinates.of(y).block)
        left = jnp.concatenate([left[:, :-1] @ outer, left[:, -1:]], axis=1)
        right = jnp.concatenate([right[:, :-1] @ inner.T, right[:, -1:]], axis=1)
        logs = self.product(problem, fz, y, frame).log_values
        return balanced_from_spectrum(fz, left, logs, right.T)


class BalancedSquare(AbstractCharts):
    """The two charts; reflections carry the sign of the determinant."""

    charts: tuple[Any, ...]

    balanced: ClassVar[bool] = True
    name: ClassVar[str] = "split"

    def __init__(self):
        self.charts = (_Plain(), _Split())

    def start(self, fz: AbstractFactorization, factors: Factors) -> Position:
        assert isinstance(fz, DeepMatrix)
        product = fz.compose(factors)
        sign, log_det = log_determinant(fz.matrix_chain(factors))
        identity = jnp.eye(product.shape[0], dtype=product.dtype)
        _, values, _ = svd(product)
        log_sigma = jnp.maximum(log_det - jnp.sum(jnp.log(values[:-1])), _LOG_ZERO)
        split, left, right = _split(product, log_sigma)
        apart = log_sigma < jnp.log(_SMALL * values[-2])
        return Position(
            jnp.where(apart, split, product.reshape(-1)),
            jnp.where(apart, _SPLIT, _PLAIN).astype(jnp.int32),
            _Frame(sign, jnp.where(apart, left, identity), jnp.where(apart, right, identity)),
        )

    def reexpressed(
        self, fz: AbstractFactorization, stages: FloatArray, position: Position, following: _Frame
    ) -> FloatArray:
        split = self.charts[_SPLIT]

        def moved(y):
            return split.reexpressed(fz, y, position.frame, following)

        return jnp.where(position.kind == _SPLIT, jax.vmap(moved)(stages), stages)

    def leave(
        self,
        chart: Any,
        problem: AbstractProblem,
        fz: AbstractFactorization,
        y: Vector,
        frame: _Frame,
    ) -> Position:
        del problem, fz
        identity = jnp.eye(frame.left.shape[0], dtype=frame.left.dtype)
        if isinstance(chart, _Plain):
            product = chart.dense(y, frame)
            values = singular_values(product)
            there, left, right = _split(product, jnp.log(values[-1]))
            plain = ~(values[-1] < _SMALL * values[-2])
            coordinates = y
        else:
            at = _Coordinates.of(y)
            left, right = chart.bases(y, frame)
            outer, values, inner = svd(at.block)
            outer, inner = _aligned(outer, inner)
            left = jnp.concatenate([left[:, :-1] @ outer, left[:, -1:]], axis=1)
            right = jnp.concatenate([right[:, :-1] @ inner.T, right[:, -1:]], axis=1)
            zero = jnp.zeros_like(at.left)
            there = _Coordinates(jnp.diag(values), zero, zero, at.log_sigma).flat()
            plain = at.log_sigma > jnp.log(_COMPARABLE * values[-1])
            coordinates = chart.dense(y, frame).reshape(-1)
        return Position(
            jnp.where(plain, coordinates, there),
            jnp.where(plain, _PLAIN, _SPLIT).astype(jnp.int32),
            _Frame(frame.sign, jnp.where(plain, identity, left), jnp.where(plain, identity, right)),
        )


def _split(product: Matrix, log_sigma: FloatScalar) -> tuple[Vector, Matrix, Matrix]:
    left, values, right = svd(product)
    zero = jnp.zeros_like(values[:-1])
    return _Coordinates(jnp.diag(values[:-1]), zero, zero, log_sigma).flat(), left, right.T


def _rotation(vector: Vector) -> Matrix:
    """The rotation that takes the last unit vector to `(vector, sqrt(1 - |vector|^2))`."""
    cosine = jnp.sqrt(1 - jnp.sum(vector**2))
    size = vector.shape[0]
    upper = jnp.eye(size, dtype=vector.dtype) - jnp.outer(vector, vector) / (1 + cosine)
    last = jnp.append(vector, cosine)
    return jnp.concatenate([jnp.concatenate([upper, -vector[None]]), last[:, None]], axis=1)


def _spun(rotation: FloatArray, push: Callable, turn: Vector) -> tuple[Vector, FloatArray]:
    """Velocity of the rotation's vector, and of the basis of the block, for a turn of the frame.

    `push` is the derivative of the rotation with respect to its vector.
    """
    velocity = rotation[:-1, :-1] @ turn
    return velocity, rotation[:, :-1].T @ push(velocity)[:, :-1]


def _product(at: _Coordinates, left: Matrix, right: Matrix) -> Matrix:
    small = jnp.exp(at.log_sigma) * left[:, -1:] @ right[:, -1:].T
    return left[:, :-1] @ at.block @ right[:, :-1].T + small


def _gradient(problem: AbstractProblem, product: Matrix) -> Matrix:
    return jax.grad(lambda w: problem.loss(Dense(w)))(product)


def _rotate_block(g: FloatArray, outer: FloatArray, inner: FloatArray) -> FloatArray:
    block = outer.T @ g[:-1, :-1] @ inner.T
    column = outer.T @ g[:-1, -1:]
    row = g[-1:, :-1] @ inner.T
    upper = jnp.concatenate([block, column], axis=1)
    return jnp.concatenate([upper, jnp.concatenate([row, g[-1:, -1:]], axis=1)])


def _aligned(outer: Matrix, inner: Matrix) -> tuple[Matrix, Matrix]:
    """Signs of singular vectors such that a nearly diagonal block turns its frame little."""
    signs = jnp.where(jnp.diagonal(outer) < 0, -1, 1).astype(outer.dtype)
    return outer * signs, inner * signs[:, None]
