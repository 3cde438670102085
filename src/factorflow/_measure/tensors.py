"""Measures of tensor products: their components, and their unfoldings."""

import jax.numpy as jnp
from jax import lax

from factorflow._factorization import CP
from factorflow._linalg import singular_values
from factorflow._measure.base import Number, checks, measure
from factorflow._measure.norms import power_norm
from factorflow._measure.ranks import effective_rank_of, relative_tolerance
from factorflow._measure.snapshot import Snapshot
from factorflow._types import FloatArray

__all__ = [
    "component_alignment",
    "component_norms",
    "largest_component_norms",
    "multilinear_rank",
    "norm_differences",
    "unfolding_effective_rank",
]

_RAZIN = """@inproceedings{razin2021implicit,
    author = {Razin, Noam and Maman, Asaf and Cohen, Nadav},
    title = {Implicit Regularization in Tensor Factorization},
    booktitle = {International Conference on Machine Learning},
    year = {2021},
}"""

_LATHAUWER = """@article{delathauwer2000multilinear,
    author = {De Lathauwer, Lieven and De Moor, Bart and Vandewalle, Joos},
    title = {A Multilinear Singular Value Decomposition},
    journal = {SIAM Journal on Matrix Analysis and Applications},
    volume = {21}, number = {4}, pages = {1253--1278},
    year = {2000},
}"""


def _count(k: Number) -> None:
    if not (isinstance(k, int) and k >= 1):
        raise ValueError(f"k counts components and must be an integer of 1 or more, got {k}.")


@measure(dims=("component",), citation=_RAZIN)
def component_norms(snapshot: Snapshot) -> FloatArray:
    r"""$\prod_n \|a_r^n\|$, the Frobenius norm of every component of a CP factorization."""
    return _component_norms(snapshot, "component_norms")


@measure(dims=("largest_component",), example=(2,), citation=_RAZIN)
@checks(_count)
def largest_component_norms(snapshot: Snapshot, k: int) -> FloatArray:
    r"""The k largest of $\prod_n \|a_r^n\|$ over the components, descending."""
    norms = _component_norms(snapshot, f"largest_component_norms[{k}]")
    if k > norms.shape[0]:
        raise ValueError(
            f"largest_component_norms[{k}] asks for more than the {norms.shape[0]} there are."
        )
    return lax.top_k(norms, k)[0]


@measure(dims=("component",), citation=_RAZIN, error="unit")
def component_alignment(snapshot: Snapshot) -> FloatArray:
    r"""Cosine between $-\nabla\ell(W)$ and each component $\otimes_n a_r^n$: what makes it grow."""
    fz = _cp(snapshot, "component_alignment")
    gradient = snapshot.gradient
    # The inner products with all components are one pullback and one column sum.
    along = jnp.sum(fz.pullback(snapshot.factors, gradient)[0] * snapshot.factors[0], axis=0)
    size = power_norm(jnp.abs(gradient).ravel(), 2)
    sizes = _component_norms(snapshot, "component_alignment") * size
    return -along / jnp.where(sizes > 0, sizes, 1)


@measure(dims=("mode_pair", "component"), citation=_RAZIN, error="factors")
def norm_differences(snapshot: Snapshot) -> FloatArray:
    r"""$\|a_r^{n+1}\|^2 - \|a_r^n\|^2$ of every component: conserved by gradient flow."""
    fz = _cp(snapshot, "norm_differences")
    return jnp.stack(fz.conserved(snapshot.factors))


@measure(dims=("mode",), example=(1e-6,), citation=_LATHAUWER, error="exact")
@checks(relative_tolerance)
def multilinear_rank(snapshot: Snapshot, tolerance: Number = 1e-6) -> FloatArray:
    r"""Rank of every mode's unfolding: singular values above `tolerance` times the largest."""
    return jnp.stack(
        [
            jnp.sum((s > tolerance * s[0]) & (s[0] > 0)).astype(s.dtype)
            for s in _unfolded_singular_values(snapshot)
        ]
    )


@measure(dims=("mode",))
def unfolding_effective_rank(snapshot: Snapshot) -> FloatArray:
    r"""Effective rank $\exp(-\sum_i p_i \ln p_i)$ of every mode's unfolding; 0 for zero."""
    spectra = _unfolded_singular_values(snapshot)
    return jnp.stack([effective_rank_of(jnp.log(s), s) for s in spectra])


def _unfolded_singular_values(snapshot: Snapshot) -> list[FloatArray]:
    dense = snapshot.dense
    return [
        singular_values(jnp.moveaxis(dense, mode, 0).reshape(dense.shape[mode], -1))
        for mode in range(dense.ndim)
    ]


def _component_norms(snapshot: Snapshot, name: str) -> FloatArray:
    return _cp(snapshot, name).component_norms(snapshot.factors)


def _cp(snapshot: Snapshot, name: str) -> CP:
    if not isinstance(snapshot.factorization, CP):
        kind = type(snapshot.factorization).__name__
        raise ValueError(f"{name} is about the components of a CP factorization, not of a {kind}.")
    return snapshot.factorization
