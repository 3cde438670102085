"""The flow of the product itself, which balanced factors follow exactly."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._balance import allowed_gap, balancedness_gap
from factorflow._dynamics.abstract_flow import AbstractFlow
from factorflow._dynamics.base import AbstractDynamics
from factorflow._dynamics.choice import charted_flow
from factorflow._dynamics.flow import FlowState
from factorflow._dynamics.integrators import check_tolerances, choose_integrator
from factorflow._dynamics.solver import RKC2, Stabilized
from factorflow._factorization import AbstractFactorization, DeepMatrix, balanced_factors
from factorflow._linalg import svd
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct, Dense
from factorflow._types import Factors, Matrix

__all__ = ["EndToEndFlow", "end_to_end_field"]


def end_to_end_field(product: Matrix, gradient: Matrix, depth: int) -> Matrix:
    r"""$-\sum_{j=1}^L (W W^\top)^{(L-j)/L} \, G \, (W^\top W)^{(j-1)/L}$.

    In the singular bases of $W$ this multiplies $u_a^\top G v_b$ by
    $\sum_j \sigma_a^{2(L-j)/L} \sigma_b^{2(j-1)/L}$, with $0^0 = 1$.
    """
    rows, columns = product.shape
    left, values, right = svd(product)
    left_values = jnp.zeros(rows, product.dtype).at[: values.size].set(values)
    right_values = jnp.zeros(columns, product.dtype).at[: values.size].set(values)
    weights = jnp.zeros((rows, columns), product.dtype)
    for layer in range(1, depth + 1):
        outer = _power(left_values, 2 * (depth - layer) / depth)
        inner = _power(right_values, 2 * (layer - 1) / depth)
        weights = weights + outer[:, None] * inner[None, :]
    return -left @ (weights * (left.T @ gradient @ right.T)) @ right


def _power(values, exponent: float):
    return jnp.ones_like(values) if exponent == 0 else values**exponent


class EndToEndFlow(AbstractFlow):
    r"""The end-to-end flow of a balanced deep matrix factorization.

    $$\dot W = -\sum_{j=1}^{L} (W W^\top)^{\frac{L-j}{L}} \, \nabla\ell(W) \,
      (W^\top W)^{\frac{j-1}{L}}$$

    Balance holds by construction; the product's entries still round, so a vanishing singular value
    is lost once it falls below `eps * sigma_1`.

    **Arguments:** as for `GradientFlow`.

    **Raises:** `ValueError` for factors that are not balanced, with their gap.

    ??? cite "Reference"

        ```bibtex
        @inproceedings{arora2018optimization,
            author = {Arora, Sanjeev and Cohen, Nadav and Hazan, Elad},
            title = {On the Optimization of Deep Networks: Implicit Acceleration by
                     Overparameterization},
            booktitle = {International Conference on Machine Learning},
            year = {2018},
        }
        ```
    """

    integrator: Any = eqx.field(default=None)
    rtol: float | None = None
    atol: float | None = None

    def __check_init__(self):
        check_tolerances(self.rtol, self.atol)
        solver = self.solver()
        if isinstance(solver, diffrax.AbstractImplicitSolver | RKC2 | Stabilized):
            raise ValueError(
                f"EndToEndFlow cannot use {type(solver).__name__}: it differentiates the field, "
                "which is singular where singular values meet. Use an explicit solver such as "
                "'Tsit5' or 'Dopri8'."
            )

    def resolve(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> AbstractDynamics:
        if not isinstance(factorization, DeepMatrix):
            raise ValueError(
                f"EndToEndFlow follows a DeepMatrix, got {type(factorization).__name__}; use "
                "GradientFlow."
            )
        gap, allowed = balancedness_gap(factorization, factors), allowed_gap(factors)
        if gap > allowed:
            raise ValueError(
                f"EndToEndFlow needs balanced factors; these have a balancedness gap of "
                f"{gap:.3g} (allowed: {allowed:.3g}). Start from Balanced or balanced_factors, or "
                "follow the factors with GradientFlow."
            )
        narrowest = min(factorization.widths)
        if narrowest < min(factorization.shape):
            raise ValueError(
                f"EndToEndFlow needs hidden widths of {min(factorization.shape)} or more, got "
                f"{factorization.hidden_widths}; use GradientFlow."
            )
        if self.integrator is None:
            flow = charted_flow(problem, factorization, factors, name=None, tolerance=self.rtol)
            # Factors may be small enough for the factor-space charts, but this is the product's.
            if flow is not None and flow.integrator_name != "radau":
                return flow
        return self.with_default_tolerances(factorization, factors)

    def start(self, factorization: AbstractFactorization, factors: Factors) -> Matrix:
        return factorization.compose(factors)

    def field(
        self, problem: AbstractProblem, factorization: AbstractFactorization
    ) -> Callable[[Matrix], Matrix]:
        assert isinstance(factorization, DeepMatrix)  # check saw to it
        gradient = jax.grad(lambda y: problem.loss(Dense(y)))
        return lambda y: end_to_end_field(y, gradient(y), factorization.depth)

    def position_product(self, factorization: AbstractFactorization, y: Matrix) -> AbstractProduct:
        del factorization
        return Dense(y)

    def factors(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: FlowState
    ) -> Factors:
        assert isinstance(factorization, DeepMatrix)  # check saw to it
        return balanced_factors(factorization, state.y)

    def solver(self) -> diffrax.AbstractSolver:
        return choose_integrator(self.integrator or "Tsit5")
