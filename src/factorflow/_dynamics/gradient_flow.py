"""Gradient flow of the factors, through any diffrax solver."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._dynamics.base import AbstractDynamics
from factorflow._dynamics.flow import FlowState, Integrator
from factorflow._dynamics.integrators import check_tolerances, choose_integrator, with_tolerances
from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct, Factored
from factorflow._types import Factors, FloatScalar, RandomKey

__all__ = ["GradientFlow"]


class GradientFlow(AbstractDynamics):
    r"""Gradient flow of the factors, $\dot W_j = -\partial \ell / \partial W_j$.

    **Arguments:**

    - `integrator`: a diffrax solver, the name of one (`"Tsit5"`, `"Dopri8"`, `"Kvaerno5"`,
        `"RKC2"`, ...), or `None` for the stabilized explicit `RKC2`. A method of higher order
        (`"Dopri8"`) is the better choice for tolerances below 1e-9.
    - `rtol`, `atol`: relative and absolute tolerance per step. `None` takes 1e-8 and 1e-10 in
        double precision, 1e-4 and 1e-6 in single.

    Levels and times are hit exactly, by repeating part of the last step.

    Near the solutions of problems whose determinant must not change sign, every method that
    follows the factors eventually leaves the true flow (at depth 2 near a loss of 3e-3, whatever
    its tolerance): read `trajectory.certificate` before believing a curve.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=3)
        >>> trajectory = ff.simulate(
        ...     problem, fz, ff.GradientFlow(), ff.Identity(product_scale=1e-3)(fz),
        ...     observe=ff.AtLosses([1e-2]), stop=ff.Stop(loss=1e-2), measures=["entry[0,0]"])
        >>> round(float(trajectory.measures["entry[0,0]"][0]), 3)
        6.934

        ```
    """

    integrator: Any = eqx.field(default=None)
    rtol: float | None = None
    atol: float | None = None

    continuous: ClassVar[bool] = True

    def __check_init__(self):
        check_tolerances(self.rtol, self.atol)
        choose_integrator(self.integrator)  # refuses unknown names at once

    def check(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> None:
        del problem, factorization, factors

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
        return self._integrator(problem, factorization, factors).init(factors)

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

    def product(self, factorization: AbstractFactorization, state: FlowState) -> AbstractProduct:
        return Factored(factorization, state.y)

    def factors(self, factorization: AbstractFactorization, state: FlowState) -> Factors:
        return state.y

    def locate(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: FlowState,
        *,
        time: FloatScalar | None = None,
        loss: FloatScalar | None = None,
    ) -> FlowState:
        integrator = self._integrator(problem, factorization, state.y)
        return integrator.locate(state, time=time, loss=loss)

    def _integrator(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> Integrator:
        def loss(y: Factors) -> FloatScalar:
            return problem.loss(Factored(factorization, y))

        def field(y: Factors) -> Factors:
            return jax.tree.map(jnp.negative, jax.grad(loss)(y))

        leaves = jax.tree.leaves(factors)
        solver = choose_integrator(self.integrator)
        solver, controller = with_tolerances(solver, self.rtol, self.atol, leaves[0].dtype)
        return Integrator(field, loss, solver, controller, None)
