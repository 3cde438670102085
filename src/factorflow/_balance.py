"""When factors count as balanced: the one definition that flows and initializers share."""

import itertools

import jax.numpy as jnp
import numpy as np

from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._types import Factors

__all__ = ["BALANCE_ULPS", "allowed_gap", "balancedness_gap", "is_balanced"]

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
    del fz
    # In double precision and without their scale: squares of small factors would underflow, and
    # any start would look balanced.
    wide = [np.asarray(factor, np.float64) for factor in factors]
    size = max(float(np.max(np.abs(factor))) for factor in wide) or 1.0
    wide = [factor / size for factor in wide]
    gaps = (outer.T @ outer - inner @ inner.T for inner, outer in itertools.pairwise(wide))
    return max((float(np.linalg.norm(gap, 2)) for gap in gaps), default=0.0) * size**2


def allowed_gap(factors: Factors) -> float:
    """Up to which gap factors count as balanced: what rounding leaves of exact balance."""
    scale = max(float(np.linalg.norm(factor, 2)) ** 2 for factor in factors)
    return BALANCE_ULPS * float(jnp.finfo(factors[0].dtype).eps) * scale
