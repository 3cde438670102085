"""The interface of an initializer, and the rules of scale and determinant that all follow."""

import abc
import math
from typing import Literal

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._product import log_determinant
from factorflow._types import Factors, FloatScalar, RandomKey

__all__ = [
    "AbstractInitializer",
    "Sign",
    "check_scales",
    "factor_scale_for",
    "root_scale",
    "with_determinant",
]

Sign = Literal["positive", "negative"]


class AbstractInitializer(eqx.Module):
    """Draws factors for a factorization: `initializer(factorization, key) -> factors`.

    To add one, subclass, implement `__call__`, and give it a row in the initializer tests.
    """

    @abc.abstractmethod
    def __call__(
        self, factorization: AbstractFactorization, key: RandomKey | None = None
    ) -> Factors:
        """Factors in the shapes of `factorization`."""


def check_scales(**scales: float | None) -> None:
    """Exactly one scale, positive and finite; the keyword's name says which it is."""
    given = {name: scale for name, scale in scales.items() if scale is not None}
    names = " or ".join(f"{name}=" for name in scales)
    if len(given) != 1:
        raise ValueError(f"Give exactly one of {names}, got {sorted(given) or 'none'}.")
    for name, scale in given.items():
        if not isinstance(scale, int | float | np.number):
            continue  # traced: checked when it was concrete
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(
                f"{name} must be positive and finite, got {scale}. At scale 0 every factor of a "
                "deep factorization starts on a stationary point and never moves."
            )


def root_scale(
    factor_scale: float | FloatScalar | None, product_scale: float | FloatScalar | None, depth: int
) -> float | FloatScalar:
    """The multiple in each of `depth` factors that multiply to `product_scale`, unless given."""
    if factor_scale is not None:
        return factor_scale
    assert product_scale is not None  # check_scales saw to it
    return product_scale ** (1 / depth)


def factor_scale_for(
    factorization: AbstractFactorization, product_scale: float | FloatScalar
) -> float | FloatScalar:
    r"""Per-factor standard deviation that gives the product's entries `product_scale`.

    With Gaussian factors an entry of the product is a sum of uncorrelated products of `degree`
    numbers, `paths` of them, and has standard deviation
    $\text{factor\_scale}^\text{degree} \sqrt{\text{paths}}$.
    """
    paths, power = factorization.paths, 1 / factorization.degree
    if paths.bit_length() > 1000:
        # Beyond what a float holds, as at order 784.
        return product_scale**power * math.exp(-math.log(paths) * power / 2)
    return (product_scale / math.sqrt(paths)) ** power


def with_determinant(
    factorization: AbstractFactorization, factors: Factors, determinant: Sign | None
) -> Factors:
    """The factors, with one output row negated where the determinant has the other sign.

    A single reflection keeps balancedness, norms and symmetric distributions, and needs no
    rejection loop.
    """
    if determinant is None:
        return factors
    check_determinant(determinant)
    if not isinstance(factorization, DeepMatrix):
        raise ValueError(
            f"determinant={determinant!r} needs a DeepMatrix, got {type(factorization).__name__}."
        )
    if len(set(factorization.shape)) != 1:
        raise ValueError(
            f"determinant={determinant!r} needs a square matrix, got shape {factorization.shape}."
        )
    if min(factorization.widths) < factorization.shape[0]:
        raise ValueError(
            f"determinant={determinant!r} cannot be honoured: hidden widths "
            f"{factorization.hidden_widths} below {factorization.shape[0]} make every product "
            "singular."
        )
    wanted = 1.0 if determinant == "positive" else -1.0
    sign, reflected = _reflected(tuple(factors), wanted)
    if not isinstance(sign, jax.core.Tracer) and float(sign) == 0:
        raise ValueError(
            f"determinant={determinant!r} cannot be honoured: the product is singular, or "
            "underflows. Give a product of full rank or a larger scale, or no sign."
        )
    return reflected


@jax.jit
def _reflected(factors: Factors, wanted: FloatScalar) -> tuple[FloatScalar, Factors]:
    """The sign of the determinant, and the factors with the wanted one."""
    sign, _ = log_determinant(factors)
    *inner, last = factors
    turn = jnp.where(sign * wanted < 0, -1, 1).astype(last.dtype)
    return sign, (*inner, last.at[0].multiply(turn))


def check_determinant(determinant: Sign | None) -> None:
    if determinant not in (None, "positive", "negative"):
        raise ValueError(
            f"determinant must be 'positive', 'negative' or None, got {determinant!r}."
        )
