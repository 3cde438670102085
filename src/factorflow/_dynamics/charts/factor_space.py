r"""The factors themselves as coordinates: for small factorizations that are not balanced.

The product of a deep matrix factorization does not change when hidden bases are rotated,
$W_j \to Q_j W_j Q_{j-1}^\top$. Here they follow the singular vectors of the factors, which makes
every factor nearly diagonal: an entry of the product that vanishes is then a sum of terms as small
as itself, where in other bases it would be a difference of numbers as large as the largest entry.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from factorflow._dynamics.charts.base import AbstractChart, AbstractCharts, Position
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._linalg import svd
from factorflow._problem import AbstractProblem
from factorflow._product import Factored
from factorflow._types import Factors, FloatArray, FloatScalar, Vector

__all__ = ["FactorSpace"]

# The hidden bases, from the first layer on; none for other factorizations.
_Frame = tuple[FloatArray, ...]


class _Factors(AbstractChart):
    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        return -jax.grad(lambda y: self.loss(problem, fz, y, frame))(y)

    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> FloatScalar:
        return problem.loss(self.product(problem, fz, y, frame))

    def dissipation(
        self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame
    ) -> FloatScalar:
        return jnp.sum(self.field(problem, fz, y, frame) ** 2)

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        return jnp.broadcast_to(jnp.max(jnp.abs(y)), y.shape)

    def reexpressed(self, fz: Any, y: Vector, frame: _Frame, following: _Frame) -> Vector:
        turns = tuple(new @ old.T for new, old in zip(following, frame, strict=True))
        return _flat(_turned(_factors(fz, y), turns))

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factored:
        return Factored(fz, _factors(fz, y))

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factors:
        return _turned(_factors(fz, y), tuple(basis.T for basis in frame))


class FactorSpace(AbstractCharts):
    """One chart, which knows nothing of the problem."""

    charts: tuple[Any, ...]

    balanced: ClassVar[bool] = False
    name: ClassVar[str] = "radau"

    def __init__(self):
        self.charts = (_Factors(),)

    def start(self, fz: AbstractFactorization, factors: Factors) -> Position:
        frame: _Frame = ()
        if isinstance(fz, DeepMatrix):
            dtype = jax.tree.leaves(factors)[0].dtype
            frame = tuple(jnp.eye(width, dtype=dtype) for width in fz.hidden_widths)
        return _aligned(fz, _flat(factors), frame)

    def reexpressed(
        self, fz: AbstractFactorization, stages: FloatArray, position: Position, following: _Frame
    ) -> FloatArray:
        chart = self.charts[0]
        return jax.vmap(lambda y: chart.reexpressed(fz, y, position.frame, following))(stages)

    def leave(
        self,
        chart: Any,
        problem: AbstractProblem,
        fz: AbstractFactorization,
        y: Vector,
        frame: _Frame,
    ) -> Position:
        del chart, problem
        return _aligned(fz, y, frame)


def _aligned(fz: AbstractFactorization, y: Vector, frame: _Frame) -> Position:
    """The same factors in hidden bases of left singular vectors, layer by layer."""
    factors = _factors(fz, y)
    turns, inner = [], None
    for factor in factors[: len(frame)]:
        factor = factor if inner is None else factor @ inner.T
        basis = svd(factor)[0]
        # Signs that turn as little as possible: prediction goes on across the change.
        inner = (basis * jnp.where(jnp.diagonal(basis) < 0, -1, 1).astype(basis.dtype)).T
        turns.append(inner)
    frame = tuple(turn @ basis for turn, basis in zip(turns, frame, strict=True))
    return Position(_flat(_turned(factors, tuple(turns))), jnp.zeros((), jnp.int32), frame)


def _turned(factors: Factors, turns: _Frame) -> Factors:
    """$Q_j W_j Q_{j-1}^\\top$ for the given hidden turns; the outer bases stay."""
    if not turns:
        return factors
    turned = list(factors)
    for layer, turn in enumerate(turns):
        turned[layer] = turn @ turned[layer]
        turned[layer + 1] = turned[layer + 1] @ turn.T
    return tuple(turned)


def _flat(factors: Factors) -> Vector:
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(factors)])


def _factors(fz: AbstractFactorization, y: Vector) -> Factors:
    shapes, structure = jax.tree.flatten(fz.shapes())
    parts, place = [], 0
    for shape in shapes:
        parts.append(y[place : place + shape.size].reshape(shape.shape))
        place += shape.size
    return jax.tree.unflatten(structure, parts)
