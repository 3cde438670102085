"""Ranks of the product: hard, soft, and as a distance."""

import jax.numpy as jnp
from jax.nn import log_softmax
from jax.scipy.special import logsumexp

from factorflow._linalg import with_slopes
from factorflow._measure.base import Number, checks, measure
from factorflow._measure.snapshot import Snapshot
from factorflow._types import FloatArray, FloatScalar

__all__ = [
    "distance_to_rank",
    "effective_rank",
    "effective_rank_excess",
    "effective_rank_of",
    "rank",
    "relative_tolerance",
    "stable_rank",
]

_ROY_VETTERLI = """@inproceedings{roy2007effective,
    author = {Roy, Olivier and Vetterli, Martin},
    title = {The Effective Rank: A Measure of Effective Dimensionality},
    booktitle = {European Signal Processing Conference},
    year = {2007},
}"""

_RUDELSON_VERSHYNIN = """@article{rudelson2007sampling,
    author = {Rudelson, Mark and Vershynin, Roman},
    title = {Sampling from Large Matrices: An Approach through Geometric Functional Analysis},
    journal = {Journal of the ACM},
    year = {2007},
}"""


def relative_tolerance(tolerance: Number = 1e-6) -> None:
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is relative to sigma_1, in (0, 1), got {tolerance}.")


def _nonnegative_integer(k: Number) -> None:
    if not (isinstance(k, int) and k >= 0):
        raise ValueError(f"k must be an integer of 0 or more, got {k}.")


@measure(example=(1e-6,), error="exact")
@checks(relative_tolerance)
def rank(snapshot: Snapshot, tolerance: Number = 1e-6) -> FloatScalar:
    r"""Number of singular values above `tolerance` times the largest (default 1e-6); 0 for zero."""
    logs = snapshot.log_singular_values
    above = logs > logs[0] + jnp.log(jnp.asarray(tolerance, logs.dtype))
    return jnp.sum(above & jnp.isfinite(logs[0])).astype(logs.dtype)


@measure(citation=_ROY_VETTERLI)
def effective_rank(snapshot: Snapshot) -> FloatScalar:
    r"""Effective rank $\exp(-\sum_i p_i \ln p_i)$, $p_i = \sigma_i / \sum \sigma$; 0 for zero."""
    return effective_rank_of(snapshot.log_singular_values, snapshot.singular_values)


@measure(citation=_ROY_VETTERLI)
def effective_rank_excess(snapshot: Snapshot) -> FloatScalar:
    r"""Effective rank minus 1, computed without cancellation; -1 for the zero matrix."""
    return _excess(snapshot.log_singular_values, snapshot.singular_values)


@measure(citation=_RUDELSON_VERSHYNIN)
def stable_rank(snapshot: Snapshot) -> FloatScalar:
    r"""Stable rank $\|W\|_F^2 / \sigma_1^2$; 0 for the zero matrix."""
    logs = snapshot.log_singular_values
    ratios = jnp.exp(2 * (logs - jnp.where(jnp.isfinite(logs[0]), logs[0], 0)))
    total = jnp.sum(ratios)
    slopes = (2 * jnp.sqrt(ratios)).at[0].add(-2 * total) * jnp.exp(-logs[0])
    slopes = jnp.where(jnp.isfinite(logs[0]), slopes, jnp.nan)
    return with_slopes(total, slopes, snapshot.singular_values)


@measure(example=(1,))
@checks(_nonnegative_integer)
def distance_to_rank(snapshot: Snapshot, k: int) -> FloatScalar:
    r"""Frobenius distance to the matrices of rank at most k, $(\sum_{i > k} \sigma_i^2)^{1/2}$."""
    logs = snapshot.log_singular_values
    if k >= logs.shape[0]:
        raise ValueError(
            f"distance_to_rank[{k}] is zero for every matrix of this shape: k must be below "
            f"{logs.shape[0]}."
        )
    log_distance = logsumexp(2 * logs[k:]) / 2
    # d / d sigma_i = sigma_i / distance; where the distance is zero, its least, 0 is a subgradient.
    slopes = jnp.where(jnp.isfinite(log_distance), jnp.exp(logs - log_distance), 0).at[:k].set(0)
    return with_slopes(jnp.exp(log_distance), slopes, snapshot.singular_values)


def effective_rank_of(log_singular_values: FloatArray, singular_values: FloatArray) -> FloatScalar:
    """Effective rank from the logarithms of the singular values; 0 where all are zero.

    It follows derivatives of `singular_values`; a value of zero has an infinite slope, given as
    NaN.
    """
    return _excess(log_singular_values, singular_values) + 1


def _excess(logs: FloatArray, values: FloatArray) -> FloatScalar:
    zero = ~jnp.isfinite(logs[0])
    log_p = log_softmax(jnp.where(zero, 0, logs))
    # -p ln p as p -> 0 is 0, where -inf * 0 would be NaN.
    finite = jnp.isfinite(log_p)
    p = jnp.exp(log_p)
    small_terms = jnp.sum(jnp.where(finite, -p * log_p, 0)[1:])
    # -ln p_1 = -log1p(-(1 - p_1)), with 1 - p_1 summed from the small ones: no cancellation at 1.
    rest = jnp.sum(p[1:])
    entropy = -p[0] * jnp.log1p(-rest) + small_terms
    excess = jnp.where(zero, -1.0, jnp.expm1(entropy)).astype(logs.dtype)
    # d exp(entropy) / d sigma_i = exp(entropy) (-ln p_i - entropy) / sum of sigma.
    slopes = (1 + excess) * (-log_p - entropy) * jnp.exp(-logsumexp(logs))
    return with_slopes(excess, jnp.where(finite & ~zero, slopes, jnp.nan), values)
