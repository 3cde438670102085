"""What flows share: a position, an equation that moves it, and an integrator that follows it."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics.base import AbstractDynamics
from factorflow._dynamics.flow import FlowState, Integrator
from factorflow._dynamics.integrators import default_tolerances, with_tolerances
from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct
from factorflow._types import Factors, FloatScalar, RandomKey

__all__ = ["AbstractFlow"]

# A hundredth of the tolerance moves a second-order method 20 times nearer to the flow.
_REFINED = 100.0


class AbstractFlow(AbstractDynamics):
    """A continuous dynamics: subclasses say where it starts and how its position moves."""

    integrator: eqx.AbstractVar[Any]
    rtol: eqx.AbstractVar[float | None]
    atol: eqx.AbstractVar[float | None]

    continuous: ClassVar[bool] = True

    @abc.abstractmethod
    def start(self, factorization: AbstractFactorization, factors: Factors) -> Any:
        """The position of these factors: themselves, or their product."""

    @abc.abstractmethod
    def field(
        self, problem: AbstractProblem, factorization: AbstractFactorization
    ) -> Callable[[Any], Any]:
        """The velocity as a function of position."""

    @abc.abstractmethod
    def position_product(self, factorization: AbstractFactorization, y: Any) -> AbstractProduct:
        """The product at a position."""

    @abc.abstractmethod
    def solver(self) -> diffrax.AbstractSolver:
        """The solver that follows it."""

    @property
    def integrator_name(self) -> str:
        return type(self.solver()).__name__

    def refined(self) -> "AbstractFlow | None":
        if self.rtol is None or self.atol is None:
            return None
        finer = self.rtol / _REFINED, self.atol / _REFINED
        return eqx.tree_at(lambda flow: (flow.rtol, flow.atol), self, finer)

    def resolving(self, factorization: AbstractFactorization, factors: Factors) -> "AbstractFlow":
        # An absolute tolerance above the start leaves the plateau to chance, in both runs alike.
        small = self._absolute(factorization, factors) / _REFINED
        given: Any = self.atol  # resolved: a number, or an array in a prepared run
        return eqx.tree_at(lambda flow: flow.atol, self, jnp.minimum(given, small))

    def with_default_tolerances(
        self, factorization: AbstractFactorization, factors: Factors
    ) -> "AbstractFlow":
        """The same with its tolerances as numbers, the absolute one below this start's size."""
        rtol, _ = default_tolerances(jax.tree.leaves(factors)[0].dtype)
        small = self._absolute(factorization, factors)
        return dataclasses.replace(
            self,
            rtol=rtol if self.rtol is None else self.rtol,
            atol=small if self.atol is None else self.atol,
        )

    def _absolute(self, factorization: AbstractFactorization, factors: Factors) -> float:
        """The default absolute tolerance.

        A start far below 1 must grow as accurately as what is of size 1: its time, and its
        direction when it arrives, depend on every step of the plateau. Zero itself has no size.
        """
        _, atol = default_tolerances(jax.tree.leaves(factors)[0].dtype)
        size = _root_mean_square(self.start(factorization, factors))
        return atol * min(1.0, size if size > 0 else 1.0)

    def keeps_time(self, factors: Factors) -> bool:
        del factors
        return True

    def init(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        factors: Factors,
        key: RandomKey,
    ) -> FlowState:
        del key
        y = self.start(factorization, factors)
        return self._integrator(problem, factorization, y).init(y)

    def advance(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: FlowState,
        active: jax.Array,
    ) -> FlowState:
        return self._integrator(problem, factorization, state.y).advance(state, active)

    def gradient_norm(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: FlowState
    ) -> FloatScalar:
        return self._integrator(problem, factorization, state.y).speed(state)

    def product(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: FlowState
    ) -> AbstractProduct:
        del problem
        return self.position_product(factorization, state.y)

    def locate(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: FlowState,
        *,
        time: FloatScalar | None = None,
        loss: FloatScalar | None = None,
    ) -> FlowState:
        return self._integrator(problem, factorization, state.y).locate(state, time=time, loss=loss)

    def _integrator(
        self, problem: AbstractProblem, factorization: AbstractFactorization, y: Any
    ) -> Integrator:
        def loss(y: Any) -> FloatScalar:
            return problem.loss(self.position_product(factorization, y))

        dtype = jax.tree.leaves(y)[0].dtype
        solver, controller = with_tolerances(self.solver(), self.rtol, self.atol, dtype)
        return Integrator(self.field(problem, factorization), loss, solver, controller, None)


def _root_mean_square(y: Any) -> float:
    entries = np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(y)])
    largest = float(np.max(np.abs(entries), initial=0.0))
    # Scaled, because squares underflow first.
    return largest * float(np.sqrt(np.mean((entries / largest) ** 2))) if largest else 0.0
