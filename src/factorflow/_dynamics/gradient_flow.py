"""Gradient flow of the factors, through any diffrax solver."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._dynamics.abstract_flow import AbstractFlow
from factorflow._dynamics.base import AbstractDynamics
from factorflow._dynamics.choice import CHARTED, charted_flow
from factorflow._dynamics.flow import FlowState
from factorflow._dynamics.integrators import check_tolerances, choose_integrator
from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct, Factored
from factorflow._types import Factors

__all__ = ["GradientFlow"]


class GradientFlow(AbstractFlow):
    r"""Gradient flow of the factors, $\dot W_j = -\partial \ell / \partial W_j$.

    **Arguments:**

    - `integrator`: `None` chooses from the structure of problem and factors, and
        `trajectory.stats["integrator"]` says what: `"spectral"` for balanced 2x2 factors of depth 2
        or more, `"split"` for balanced d x d factors up to d = 12, `"radau"` for other
        factorizations with up to 48 numbers, not all zero, and a smooth penalty, `"Stabilized"`
        (explicit) for all others. Any of them can be asked for by name, and so can `"Tsit5"`,
        `"Dopri8"`, `"Kvaerno5"`, ... or a diffrax solver be given.
    - `rtol`, `atol`: relative and absolute tolerance per step. `None` takes 1e-10, 1e-9 and 1e-12
        for `"spectral"`, `"split"` and `"radau"`, which have no absolute one; for
        diffrax solvers 1e-9 and 1e-11 in double precision, the latter times the root mean square of
        the start's entries where that is below 1 and not zero. In single precision 1e-5, and 1e-4
        and 1e-6.

    Levels and times are hit exactly. `"spectral"` and `"split"` keep the sign of the determinant by
    construction. Near the solutions of problems whose determinant must not change sign, every
    method that follows the factors eventually leaves the true flow (at depth 2 near a loss of 3e-3,
    whatever its tolerance): read `trajectory.certificate` before believing a curve.

    **Raises:** `ValueError` where the factors do not fit the integrator asked for by name.

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

    def __check_init__(self):
        check_tolerances(self.rtol, self.atol)
        if not (isinstance(self.integrator, str) and self.integrator in CHARTED):
            choose_integrator(self.integrator)  # refuses unknown names at once

    def resolve(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> AbstractDynamics:
        name = self.integrator
        if name is None or (isinstance(name, str) and name in CHARTED):
            flow = charted_flow(problem, factorization, factors, name=name, tolerance=self.rtol)
            if flow is not None:
                return flow
        return self.with_default_tolerances(factorization, factors)

    def start(self, factorization: AbstractFactorization, factors: Factors) -> Factors:
        del factorization
        return factors

    def field(
        self, problem: AbstractProblem, factorization: AbstractFactorization
    ) -> Callable[[Factors], Factors]:
        gradient = jax.grad(lambda y: problem.loss(Factored(factorization, y)))
        return lambda y: jax.tree.map(jnp.negative, gradient(y))

    def position_product(self, factorization: AbstractFactorization, y: Factors) -> AbstractProduct:
        return Factored(factorization, y)

    def factors(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: FlowState
    ) -> Factors:
        return state.y

    def solver(self) -> diffrax.AbstractSolver:
        return choose_integrator(self.integrator)
