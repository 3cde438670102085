"""When factors count as balanced: the one definition that flows and initializers share."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._types import Factors, FloatArray

__all__ = ["BALANCE_ULPS", "allowed_gap", "balancedness_gap", "is_balanced", "largest_gap"]

# Factors count as balanced up to this multiple of the rounding of their squares. Initializers of
# balanced factors stay below 16; a gap that somebody asked for must not pass for their rounding.
BALANCE_ULPS = 20.0


def is_balanced(fz: AbstractFactorization, factors: Factors) -> bool:
    """Whether these are balanced factors of a matrix that no hidden width is too narrow for."""
    if not isinstance(fz, DeepMatrix) or min(fz.widths) < min(fz.shape):
        return False
    return balancedness_gap(fz, factors) <= allowed_gap(factors)


def balancedness_gap(fz: DeepMatrix, factors: Factors) -> float:
    r"""$\max_j \|W_{j+1}^\top W_{j+1} - W_j W_j^\top\|_2$."""
    return largest_gap(_conserved(fz, factors))


def largest_gap(conserved: Any) -> float:
    """The largest spectral norm among these differences."""
    return max((float(np.linalg.norm(gap, 2)) for gap in conserved), default=0.0)


def allowed_gap(factors: Factors) -> float:
    """Up to which gap factors count as balanced: what rounding leaves of exact balance."""
    scale = max(float(np.linalg.norm(factor, 2)) ** 2 for factor in factors)
    return BALANCE_ULPS * float(jnp.finfo(factors[0].dtype).eps) * scale


# Compiled whole: operation by operation, a first flow would compile a dozen of them.
@eqx.filter_jit
def _conserved(fz: DeepMatrix, factors: Factors) -> tuple[FloatArray, ...]:
    return fz.conserved(factors)
