"""Which coordinates and integrator follow a flow: chosen from its structure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._balance import allowed_gap, balancedness_gap
from factorflow._dynamics.base import AbstractDynamics
from factorflow._dynamics.charts import (
    Balanced2x2,
    BalancedSquare,
    FactorSpace,
    balanced_spectrum,
)
from factorflow._dynamics.collocation import CollocationFlow
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._problem import AbstractProblem
from factorflow._types import Factors, FloatArray

__all__ = ["CHARTED", "charted_flow", "is_lost"]

# Integrators that follow the flow by collocation, each in coordinates of its own.
CHARTED = ("spectral", "split", "radau")

# The factors of a balanced product have the same singular values. Up to this relative difference
# they say which ones; where they do not agree, rounding has decided. A zero is one up to so many
# roundings of the largest.
_AGREEMENT = {"float64": 1e-6, "float32": 1e-2}
_ZERO_ULPS = 1e2
# Newton's method solves dense systems of (stages x unknowns): `Stabilized` is faster beyond these.
_LARGEST_DIM = 12
_MOST_PARAMETERS = 48
# Seven stages need the fewest steps; five cost less where the linear algebra dominates.
_MANY_STAGES_DIM = 4
# In double precision: a step's error is far below what a row is asked for, see the oracle tests.
_TOLERANCES = {"spectral": 1e-10, "split": 1e-9, "radau": 1e-12}
_SINGLE_TOLERANCE = 1e-5


def charted_flow(
    problem: AbstractProblem,
    fz: AbstractFactorization,
    factors: Factors,
    *,
    name: str | None,
    tolerance: float | None,
) -> AbstractDynamics | None:
    """The flow in coordinates that suit its structure, or `None` where there are none.

    **Raises:** `ValueError` where the coordinates asked for by `name` do not fit, with the reason.
    """
    misfit = _misfit(problem, fz, factors)
    zero = not any(np.any(leaf) for leaf in jax.tree.leaves(factors))
    if name is None:
        if misfit is None:
            name = "spectral" if fz.shape == (2, 2) else "split"
        elif _smooth(problem) and _parameters(factors) <= _MOST_PARAMETERS and not zero:
            name = "radau"
        else:
            return None
    elif name != "radau" and misfit is not None:
        raise ValueError(
            f"GradientFlow('{name}') {misfit}; GradientFlow('radau') or 'Stabilized' follow the "
            "factors themselves, whatever they are."
        )
    elif name == "radau" and zero:
        raise ValueError(
            "GradientFlow('radau') measures errors by the size of the factors, but these are all "
            "zero; GradientFlow() and 'Stabilized' start from zero too."
        )
    elif name == "spectral" and fz.shape != (2, 2):
        raise ValueError(
            f"GradientFlow('spectral') is for 2x2 products, this one is {fz.shape}; use 'split'."
        )
    if tolerance is None:
        double = jax.tree.leaves(factors)[0].dtype == jnp.float64
        tolerance = _TOLERANCES[name] if double else _SINGLE_TOLERANCE
    if name == "spectral":
        return CollocationFlow(Balanced2x2(problem), tolerance)
    if name == "split":
        stages = 7 if fz.shape[0] <= _MANY_STAGES_DIM else 5
        return CollocationFlow(BalancedSquare(), tolerance, stages)
    return CollocationFlow(FactorSpace(), tolerance)


@eqx.filter_jit
def _values(fz: DeepMatrix, factors: Factors) -> FloatArray:
    return balanced_spectrum(fz.matrix_chain(factors))[1]


def _misfit(problem: AbstractProblem, fz: AbstractFactorization, factors: Factors) -> str | None:
    """Why this is not the flow of a balanced square product, if it is not."""
    if not isinstance(fz, DeepMatrix):
        return f"follows a DeepMatrix, got {type(fz).__name__}"
    rows, columns = fz.shape
    if rows != columns:
        return f"needs a square product, this one is {fz.shape}"
    if fz.depth < 2:
        return "needs a depth of 2 or more: at depth 1 the determinant may change sign"
    if min(fz.widths) < rows:
        return f"needs hidden widths of {rows} or more, got {fz.hidden_widths}"
    if not 2 <= rows <= _LARGEST_DIM:
        return f"is made for dimensions 2 to {_LARGEST_DIM}, this one is {rows}"
    if not _smooth(problem):
        return "needs a loss with a continuous gradient"
    gap, allowed = balancedness_gap(fz, factors), allowed_gap(factors)
    if gap > allowed:
        return (
            f"needs balanced factors; these have a balancedness gap of {gap:.3g} (allowed: "
            f"{allowed:.3g}). Start from Balanced or balanced_factors"
        )
    values = np.asarray(_values(fz, factors))
    lost = is_lost(values)
    if lost is not None:
        return (
            f"keeps the digits of every singular value, but singular value {lost + 1} of "
            f"{rows} is lost in the rounding of these factors: it is "
            f"{values[:, lost].min():.3g} in one and {values[:, lost].max():.3g} in another. Start "
            "from Balanced or balanced_factors"
        )
    return None


def is_lost(values: np.ndarray) -> int | None:
    """The first singular value that factors do not agree on, of shape `(layers, d)`, if any."""
    lowest, highest = values.min(axis=0), values.max(axis=0)
    # Where one is exactly zero the product's is, and rounding may fill in the others.
    rounding = _ZERO_ULPS * np.finfo(values.dtype).eps * highest.max()
    agreed = np.where(
        lowest > 0,
        highest <= lowest * (1 + _AGREEMENT[values.dtype.name]),
        highest <= rounding,
    )
    return None if agreed.all() else int(np.argmin(agreed))


def _smooth(problem: AbstractProblem) -> bool:
    return getattr(problem, "penalty", "squared") in ("squared", "huber")


def _parameters(factors: Factors) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(factors))
