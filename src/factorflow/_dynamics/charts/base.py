"""Coordinates in which a flow is followed, and when to change them."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct
from factorflow._types import (
    BoolScalar,
    Factors,
    FloatArray,
    FloatScalar,
    IntScalar,
    Vector,
)

__all__ = ["AbstractChart", "AbstractCharts", "Position"]


class Position(eqx.Module):
    """Coordinates `y` of shape `(n,)` in the chart number `kind`.

    `frame` is what else the charts need to know; it is constant along a step.
    """

    y: Vector
    kind: IntScalar
    frame: Any


class AbstractChart(eqx.Module):
    """One system of coordinates."""

    @abc.abstractmethod
    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Vector:
        """The velocity of the coordinates under the flow."""

    @abc.abstractmethod
    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> FloatScalar:
        """The training loss."""

    @abc.abstractmethod
    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> FloatScalar:
        """The rate at which the flow lowers the loss: the squared norm of the factors' gradient."""

    @abc.abstractmethod
    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Vector:
        """The natural size of every coordinate, which errors are relative to."""

    @abc.abstractmethod
    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> AbstractProduct:
        """The product."""

    @abc.abstractmethod
    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: Any) -> Factors:
        """Factors of the product, in the factorization's shapes."""


class AbstractCharts(eqx.Module):
    """Systems of coordinates for one flow, all with the same number of coordinates.

    A chart in which an invariant of the flow holds by construction keeps it whatever the error of
    the integration; one whose coordinates are small where they cancel elsewhere keeps their
    relative precision.
    """

    # Whether they hold balanced products only, so that balance holds by construction.
    balanced: ClassVar[bool]
    name: ClassVar[str]
    charts: eqx.AbstractVar[tuple[Any, ...]]

    @abc.abstractmethod
    def start(self, fz: AbstractFactorization, factors: Factors) -> Position:
        """The position of these factors."""

    @abc.abstractmethod
    def leave(
        self, chart: Any, problem: AbstractProblem, fz: AbstractFactorization, y: Vector, frame: Any
    ) -> Position:
        """The point of this chart in the chart and frame that suit it best."""

    def rests(
        self, chart: Any, problem: AbstractProblem, fz: AbstractFactorization, y: Vector, frame: Any
    ) -> BoolScalar:
        """Whether the loss is known to have come to rest above zero."""
        del chart, problem, fz, y, frame
        return jnp.asarray(False)

    def reexpressed(
        self, fz: AbstractFactorization, stages: FloatArray, position: Position, following: Any
    ) -> FloatArray:
        """Coordinates in the following frame of points that have these in the position's frame."""
        del fz, position, following
        return stages

    def on(self, kind: IntScalar, function: Callable[[Any, Vector], Any], y: FloatArray) -> Any:
        """`function(chart, y)` of the chart of this number.

        A loop of length 0 or 1 per chart and not a `lax.switch`, which under `vmap` computes all
        charts for all lanes: only the charts that some lane is in are computed. `y` is carried
        through the loop, and changed by it, because what depends on constants alone would be
        moved out of the loop and computed in any case.
        """
        if len(self.charts) == 1:
            return function(self.charts[0], y)
        value = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(lambda y: function(self.charts[0], y), y),
        )
        for number, chart in enumerate(self.charts):

            def compute(carry, chart=chart):
                todo, y, _ = carry
                return jnp.zeros_like(todo), jnp.zeros_like(y), function(chart, y)

            start = kind == number, y, value
            _, _, value = lax.while_loop(lambda carry: carry[0], compute, start)
        return value
