"""Norms and quasi-norms of the product."""

import math

import jax.numpy as jnp
from jax.scipy.special import logsumexp

from factorflow._linalg import in_range, with_slopes
from factorflow._measure.base import Number, checks, measure
from factorflow._measure.snapshot import Snapshot
from factorflow._types import FloatScalar

__all__ = [
    "entrywise_norm",
    "frobenius_norm",
    "ky_fan_norm",
    "max_norm",
    "nuclear_norm",
    "power_norm",
    "schatten_norm",
    "spectral_norm",
]


def _positive(p: Number) -> None:
    if not p > 0:
        raise ValueError(f"p must be positive, got {p}: only p > 0 gives a norm or quasi-norm.")


def _positive_integer(k: Number) -> None:
    if not (isinstance(k, int) and k >= 1):
        raise ValueError(f"k must be an integer of 1 or more, got {k}.")


@measure()
def frobenius_norm(snapshot: Snapshot) -> FloatScalar:
    r"""Frobenius norm $(\sum_{ij} w_{ij}^2)^{1/2}$, the Euclidean norm of the entries."""
    return power_norm(jnp.abs(snapshot.dense).ravel(), 2)


@measure()
def nuclear_norm(snapshot: Snapshot) -> FloatScalar:
    r"""Nuclear norm $\sum_i \sigma_i$."""
    return jnp.sum(snapshot.singular_values)


@measure()
def spectral_norm(snapshot: Snapshot) -> FloatScalar:
    r"""Spectral norm $\sigma_1$."""
    return snapshot.singular_values[0]


@measure(example=(0.5,))
@checks(_positive)
def schatten_norm(snapshot: Snapshot, p: Number) -> FloatScalar:
    r"""Schatten-p (quasi-)norm $(\sum_i \sigma_i^p)^{1/p}$ for any p > 0; a norm for p >= 1."""
    if math.isinf(p):
        return snapshot.singular_values[0]
    # In logarithms: sigma^p underflows long before the sum does, and small p overflows. Relative to
    # the largest, whose rounding a large p would amplify; p as a float, since JAX's integers end.
    logs = snapshot.log_singular_values
    largest = jnp.where(jnp.isfinite(logs[0]), logs[0], 0)
    log_norm = largest + logsumexp(float(p) * (logs - largest)) / float(p)
    # d norm / d sigma = (sigma / norm)^(p - 1). Of the zero matrix 0 is a subgradient; below p = 1
    # a value of zero has an infinite slope, in one direction only.
    slopes = jnp.exp((float(p) - 1) * (logs - log_norm)) if p != 1 else jnp.ones_like(logs)
    if p >= 1:
        slopes = jnp.where(jnp.isfinite(log_norm), slopes, 0)
    else:
        slopes = jnp.where(jnp.isfinite(logs), slopes, jnp.nan)
    return with_slopes(jnp.exp(log_norm), slopes, snapshot.singular_values)


@measure(example=(1.5,))
@checks(_positive)
def entrywise_norm(snapshot: Snapshot, p: Number) -> FloatScalar:
    r"""Entrywise l_p (quasi-)norm $(\sum_{ij} |w_{ij}|^p)^{1/p}$ for any p > 0."""
    return power_norm(jnp.abs(snapshot.dense).ravel(), p)


@measure(example=(1,))
@checks(_positive_integer)
def ky_fan_norm(snapshot: Snapshot, k: int) -> FloatScalar:
    r"""Ky Fan k-norm $\sum_{i \le k} \sigma_i$, the sum of the k largest singular values."""
    values = snapshot.singular_values
    if k > values.shape[0]:
        raise ValueError(f"ky_fan_norm[{k}] asks for more than the {values.shape[0]} there are.")
    return jnp.sum(values[:k])


@measure()
def max_norm(snapshot: Snapshot) -> FloatScalar:
    r"""Largest absolute entry $\max_{ij} |w_{ij}|$ (not the factorization norm $\gamma_2$)."""
    return jnp.max(jnp.abs(snapshot.dense))


def power_norm(sizes, p: Number) -> FloatScalar:
    """The l_p (quasi-)norm of nonnegative `sizes`, at any scale."""
    # Scaled by the largest entry, so that powers neither underflow nor overflow.
    if math.isinf(p):
        return jnp.max(sizes)
    sizes, power_of_two = in_range(sizes)
    largest = jnp.max(sizes)
    scale = jnp.where(largest > 0, largest, 1)
    # Exactly 1 for the largest itself: a large p would amplify the rounding of the quotient.
    ratios = jnp.where(sizes == largest, 1, sizes / scale)
    norm = jnp.where(largest > 0, largest * jnp.sum(ratios**p) ** (1 / p), largest)
    return norm / power_of_two
