r"""Whether measurements allow a matrix of rank one: certificates from its vanishing minors.

On a matrix of rank one every 2x2 minor vanishes, and so does every combination $q$ of minors. The
solutions lie in the linear space that $W_0$, the least one, spans together with all that measures
zero. If a combination is positive definite there, say $q(X) \ge \lambda \|X\|^2$, no matrix of
that space has rank one or comes near it. If a combination is constant and not zero on the
solutions alone, none of them has rank one, though matrices of rank one may come near from far out.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import null_space

from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["MinorProof", "rank_one_by_minors"]

_Array = NDArray[np.float64]
# Numbers in the table of minors; its decomposition then takes about a second.
_LARGEST = 4_000_000
# Rounding of a sum of minors with weights of norm one, generously.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class MinorProof:
    r"""What the minors show.

    **Attributes:**

    - `out_of_reach`: proof that no matrix of rank one has a residual of at most `delta`.
    - `unattained`: proof that none fits exactly.
    - `apart`: a lower bound, for every solution and every direction that measures zero, on its
        distance to rank one relative to its Frobenius norm.
    """

    out_of_reach: bool
    unattained: bool
    apart: float


def rank_one_by_minors(solutions: SolutionSet, delta: float) -> MinorProof:
    """The certificates for a sensing problem of moderate size, against a residual norm `delta`."""
    rows, columns = solutions.shape
    least = solutions.project(np.zeros(solutions.shape))
    size = float(np.linalg.norm(least))
    pairs = list(itertools.combinations(range(rows), 2))
    others = list(itertools.combinations(range(columns), 2))
    width = solutions.dimension + 1
    if not pairs or not others or len(pairs) * len(others) * width**2 > 2 * _LARGEST:
        return MinorProof(False, False, 0.0)
    assert solutions.basis is not None
    # Orthonormal: the least solution has no part that measures zero.
    space = np.column_stack([least.ravel() / size, null_space(solutions.basis)])
    if space.shape[1] != width:
        return MinorProof(False, False, 0.0)
    (top, bottom), (first, second) = np.array(pairs).T, np.array(others).T
    flat = np.arange(rows * columns).reshape(rows, columns)
    corners = [
        flat[one[:, None], two[None, :]].ravel()
        for one, two in ((top, first), (bottom, second), (top, second), (bottom, first))
    ]
    a, b, c, d = (space[corner] for corner in corners)
    forms = a[:, :, None] * b[:, None, :] - c[:, :, None] * d[:, None, :]
    forms = (forms + np.swapaxes(forms, 1, 2)) / 2
    table = forms.reshape(len(forms), -1).T
    wanted = np.stack([np.eye(width), np.zeros((width, width))])
    wanted[1, 0, 0] = 1.0
    shares = np.linalg.lstsq(table, wanted.reshape(2, -1).T, rcond=None)[0]
    bounded, constant = ((table @ share).reshape(width, width) for share in shares.T)
    weights = np.maximum(np.linalg.norm(shares, axis=0), 1.0)
    least_value = float(np.linalg.eigvalsh(bounded)[0] - _ROUNDING * weights[0])
    # Weights that are large hide their rounding in a small misfit.
    unattained = float(np.linalg.norm(constant - wanted[1])) <= _ROUNDING and weights[1] <= 1e3
    if least_value <= 0:
        return MinorProof(False, bool(unattained), 0.0)
    norm = _norm_of(np.asarray(shares[:, 0], np.float64), corners, rows * columns)
    # A matrix W of rank one with residual delta is within eps of some X in the space, no smaller
    # than W_0, and |q(X) - q(W)| <= norm * (2 eps ||X|| + 3 eps^2), while q(W) = 0.
    eps = delta / float(solutions.sizes[-1])
    out_of_reach = least_value * size**2 > norm * (2 * eps * size + 3 * eps**2)
    apart = min(math.sqrt(1 + least_value / norm) - 1, 1.0)
    return MinorProof(out_of_reach, bool(unattained or out_of_reach), apart)


def _norm_of(share: _Array, corners: list[NDArray[np.intp]], entries: int) -> float:
    """The spectral norm of a combination of minors as a quadratic form of all entries."""
    form = np.zeros((entries, entries))
    np.add.at(form, (corners[0], corners[1]), share / 2)
    np.add.at(form, (corners[2], corners[3]), -share / 2)
    return float(np.max(np.abs(np.linalg.eigvalsh(form + form.T))))
