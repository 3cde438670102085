"""The interface of a dynamics and of its state."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct
from factorflow._results import RESULTS
from factorflow._types import Factors, FloatScalar, IntScalar, RandomKey

__all__ = ["AbstractDynamics", "AbstractState", "tree_norm", "where"]


class AbstractState(eqx.Module):
    """What every state carries; dynamics add what they need.

    `result` is `RESULTS.successful` until the dynamics itself cannot go on.
    """

    step: eqx.AbstractVar[IntScalar]
    time: eqx.AbstractVar[FloatScalar]
    loss: eqx.AbstractVar[FloatScalar]
    result: eqx.AbstractVar[RESULTS]

    @abc.abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counters worth reporting."""

    def elapsed(self, before: "AbstractState") -> FloatScalar:
        """The time since an earlier state in the same step, or at the end of the one before.

        Those whose steps may be shorter than the distance of two times know it better.
        """
        return self.time - before.time


class AbstractDynamics(eqx.Module):
    """How factors move: discrete descent or continuous flow.

    Problem and factorization are passed to every method instead of being carried in the state:
    what does not change should not travel through the compiled loop.
    """

    # Whether times and levels can be hit exactly (a flow) or only passed (descent).
    continuous: ClassVar[bool]
    # Whether runs are followed one by one: where they would wait for each other's phases.
    alone: ClassVar[bool] = False

    @property
    def balanced(self) -> bool:
        """Whether balance holds by construction, so that its drift says nothing."""
        return False

    def companion(self) -> "AbstractDynamics | None":
        """The same with another discretization, where that is cheap enough to run always."""
        return None

    def refined(self) -> "AbstractDynamics | None":
        """The same with a finer discretization, to compare with when asked for."""
        return None

    def resolving(
        self, factorization: AbstractFactorization, factors: Factors
    ) -> "AbstractDynamics":
        """The same with tolerances that resolve these factors, however small they are."""
        del factorization, factors
        return self

    @property
    @abc.abstractmethod
    def integrator_name(self) -> str:
        """What advances the state, for `trajectory.stats`."""

    @abc.abstractmethod
    def resolve(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> "AbstractDynamics":
        """The dynamics that will follow these concrete factors: itself, or a choice it makes.

        **Raises:** `ValueError` where they cannot be followed.
        """

    @abc.abstractmethod
    def keeps_time(self, factors: Factors) -> bool:
        """Whether states know their time."""

    @abc.abstractmethod
    def init(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        factors: Factors,
        key: RandomKey,
    ) -> Any:
        """The state at time 0."""

    @abc.abstractmethod
    def advance(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: Any,
        active: jax.Array,
    ) -> Any:
        """One step of descent, or one attempted step of an integrator, where `active`.

        Where not, the state is returned as it is: other lanes of the batch go on.
        """

    @abc.abstractmethod
    def gradient_norm(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: Any
    ) -> FloatScalar:
        """Norm of what moves the state: the gradient with respect to the factors, or the field."""

    @abc.abstractmethod
    def product(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: Any
    ) -> AbstractProduct: ...

    @abc.abstractmethod
    def factors(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: Any
    ) -> Factors: ...

    @abc.abstractmethod
    def locate(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: Any,
        *,
        time: FloatScalar | None = None,
        loss: FloatScalar | None = None,
    ) -> Any:
        """The state within the last step at exactly this time or loss.

        Descent has nothing between its steps and returns the state itself.
        """


def where(condition: jax.Array, first: Any, second: Any) -> Any:
    """`jnp.where` over the leaves of two equal structures."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def tree_norm(tree: Any) -> FloatScalar:
    """Euclidean norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
