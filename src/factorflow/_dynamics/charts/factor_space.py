"""The factors themselves as coordinates: for small factorizations that are not balanced."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from factorflow._dynamics.charts.base import AbstractChart, AbstractCharts, Position
from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import Factored
from factorflow._types import BoolScalar, Factors, FloatScalar, Vector

__all__ = ["FactorSpace"]


class _Factors(AbstractChart):
    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Vector:
        return -jax.grad(lambda y: self.loss(problem, fz, y, frame))(y)

    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> FloatScalar:
        return problem.loss(self.product(problem, fz, y, frame))

    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> FloatScalar:
        return jnp.sum(self.field(problem, fz, y, frame) ** 2)

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Vector:
        return jnp.broadcast_to(jnp.max(jnp.abs(y)), y.shape)

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Factored:
        return Factored(fz, self.factors(problem, fz, y, frame))

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Factors:
        shapes, structure = jax.tree.flatten(fz.shapes())
        parts, place = [], 0
        for shape in shapes:
            parts.append(y[place : place + shape.size].reshape(shape.shape))
            place += shape.size
        return jax.tree.unflatten(structure, parts)


class FactorSpace(AbstractCharts):
    """One chart, which knows nothing of the problem."""

    charts: tuple[Any, ...]

    balanced: ClassVar[bool] = False
    name: ClassVar[str] = "radau"

    def __init__(self):
        self.charts = (_Factors(),)

    def start(self, fz: AbstractFactorization, factors: Factors) -> Position:
        y = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(factors)])
        return Position(y, jnp.zeros((), jnp.int32), None)

    def recharted(
        self, problem: AbstractProblem, fz: AbstractFactorization, position: Position
    ) -> tuple[Position, BoolScalar]:
        return position, jnp.asarray(False)
