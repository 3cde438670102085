"""Quantities that gradient flow conserves."""

import jax.numpy as jnp

from factorflow._linalg import symmetric_eigenvalues
from factorflow._measure.base import measure
from factorflow._measure.snapshot import Snapshot
from factorflow._types import FloatScalar

__all__ = ["balancedness_gap"]

_ARORA = """@inproceedings{arora2018optimization,
    author = {Arora, Sanjeev and Cohen, Nadav and Hazan, Elad},
    title = {On the Optimization of Deep Networks: Implicit Acceleration by
             Overparameterization},
    booktitle = {International Conference on Machine Learning},
    year = {2018},
}"""


@measure(citation=_ARORA, error="factors")
def balancedness_gap(snapshot: Snapshot) -> FloatScalar:
    r"""$\max_j \|W_{j+1}^\top W_{j+1} - W_j W_j^\top\|_2$, or what the factorization conserves."""
    if snapshot.factorization is None:
        raise ValueError("balancedness_gap needs factors; this run follows the product alone.")
    # Matrices have eigenvalues; differences of squared norms, one per component, are numbers.
    gaps = [
        jnp.max(jnp.abs(symmetric_eigenvalues(value) if value.ndim == 2 else value))
        for value in snapshot.factorization.conserved(snapshot.factors)
    ]
    if not gaps:
        return jnp.zeros((), snapshot.dense.dtype)
    return jnp.max(jnp.stack(gaps))
