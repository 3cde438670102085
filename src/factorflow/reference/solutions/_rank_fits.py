r"""Fits of a given rank to observations, followed as far as they go, to infinity if need be.

The right factor is eliminated: for a left factor $U$ with orthonormal columns, the best $V$ solves
a linear least-squares problem. What remains is minimized over $U$ by Levenberg-Marquardt. As the
columns of $U$ stay orthonormal, only $V$ can grow, at no cost: a damping on $U$ does not keep the
product from running to infinity, where an infimum that is not attained lies.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["Measurements", "Model", "Path", "fit", "model_of", "starts_of"]

_Array = NDArray[np.float64]
# Singular directions of U on the observations below this are rounding, not a large V.
_CUT = 1e-14
_ITERATIONS = 200
_SWEEPS = 40
# Relative residuals at which a fit has nothing left to gain in double precision.
_FLOOR = 1e-15
# Products beyond this multiple of the observations are at infinity for all we can tell.
_INFINITY = 1e12


@dataclass(frozen=True, eq=False)
class Path:
    """The way of one fit: relative residuals and Frobenius norms of the product along it.

    `product` is the last one, or if the product runs to infinity the first good enough.
    """

    residuals: _Array
    norms: _Array
    product: _Array

    @property
    def residual(self) -> float:
        """The relative residual at the end."""
        return float(self.residuals[-1])

    @property
    def decades(self) -> float:
        """Decades by which the residual fell below a tenth (or below the start, if smaller)."""
        first, last = np.maximum(self.residuals[[0, -1]], _FLOOR)
        return math.log10(min(0.1, first) / last)

    @property
    def slope(self) -> float:
        """Slope of log norm against log residual to the end, over half of the decades or more.

        The median over where it begins, in the second quarter of the decades or at the first point
        behind it: a path may stray for a step or two. 0 where the residual does not fall. What
        comes before is left out, because on the way from a random start the norm may change for
        other reasons.
        """
        seen = max(int(np.sum(self.residuals > _FLOOR)), 1)
        logs, norms = np.log(np.maximum(self.residuals, _FLOOR)), np.log(self.norms)
        logs, norms = logs[: seen + 1], norms[: seen + 1]
        first, last = min(math.log(0.1), float(logs[0])), float(logs[-1])
        quarter, middle = first + (last - first) / 4, (first + last) / 2
        behind = min(int(np.argmax(logs <= middle)), len(logs) - 2)
        if behind < 0 or logs[behind] - last < math.log(10.0):
            return 0.0
        starts = [i for i in range(behind) if logs[i] <= quarter] + [behind]
        return float(np.median((norms[-1] - norms[starts]) / (last - logs[starts])))


class Entries:
    """Observed entries: every column is a least-squares problem of its own."""

    def __init__(self, mask: NDArray[np.bool_], values: _Array):
        self.shape = (mask.shape[0], mask.shape[1])
        self.mask, self.values = mask.astype(np.float64), values

    def _bases(self, left: _Array) -> tuple[_Array, _Array, _Array]:
        """Per column: an orthonormal basis of U's observed rows, and how to return to U."""
        basis, triangle = np.linalg.qr(self.mask.T[:, :, None] * left)
        turned, sizes, back = np.linalg.svd(triangle)
        kept = sizes > _CUT * np.maximum(sizes[:, :1], 1e-300)
        inverse = np.where(kept, 1.0 / np.where(kept, sizes, 1.0), 0.0)
        return (basis @ turned) * kept[:, None, :], inverse, back

    def _misfit(self, basis: _Array) -> tuple[_Array, NDArray[np.bool_]]:
        """What the bases cannot fit, and which columns have anything of that kind.

        From the bases, not from the product: its rounding grows with V. A column with as many
        directions as observations is fitted exactly, however large V must be for that.
        """
        inside = np.einsum("jrk,rj->jk", basis, self.values)
        unfitted = np.sum(self.mask, axis=0) > np.sum(basis**2, axis=(1, 2)) + 0.5
        return unfitted * (self.values - np.einsum("jrk,jk->rj", basis, inside)), unfitted

    def right(self, left: _Array) -> tuple[_Array, float]:
        basis, inverse, back = self._bases(left)
        inside = np.einsum("jrk,rj->jk", basis, self.values)
        right = np.einsum("jk,jkl->jl", inverse * inside, back)
        return right, float(np.linalg.norm(self._misfit(basis)[0]))

    def curvature(self, left: _Array, right: _Array) -> tuple[_Array, _Array]:
        basis, _, _ = self._bases(left)
        rows, rank = left.shape
        misfit, unfitted = self._misfit(basis)
        kept = np.flatnonzero(unfitted)
        basis, right, seen = basis[kept], right[kept], self.mask[:, kept]
        gradient = -(misfit[:, kept] @ right)
        mixed = np.einsum("jrc,ja->rajc", basis, right).reshape(rows * rank, -1)
        hessian = -(mixed @ mixed.T)
        blocks = np.einsum("rj,ja,jb->rab", seen, right, right)
        view = hessian.reshape(rows, rank, rows, rank)
        each = np.arange(rows)
        view[each, :, each, :] += blocks
        return gradient.ravel(), hessian

    def bounded(self, left: _Array, penalty: float) -> _Array:
        """The right factor of least squares plus `penalty` times its squared norm."""
        square = np.einsum("rj,ra,rb->jab", self.mask, left, left)
        square += penalty * np.eye(left.shape[1])
        right = np.linalg.solve(square, (self.values.T @ left)[:, :, None])[:, :, 0]
        return np.asarray(right, np.float64)

    def flipped(self) -> "Entries":
        """The transposed problem."""
        return Entries(self.mask.T > 0, self.values.T)


class Measurements:
    """Measurements, one per row; the columns of V are one least-squares problem."""

    def __init__(self, rows: _Array, goal: _Array, shape: tuple[int, int]):
        self.shape = shape
        self.rows, self.goal = rows.reshape(-1, *shape), goal

    def _basis(self, left: _Array) -> tuple[_Array, _Array, _Array]:
        design = np.swapaxes(self.rows, 1, 2) @ left
        basis, sizes, back = np.linalg.svd(design.reshape(len(self.goal), -1), full_matrices=False)
        kept = sizes > _CUT * max(sizes[0], 1e-300)
        return basis[:, kept], sizes[kept], back[kept]

    def _misfit(self, basis: _Array) -> _Array:
        return self.goal - basis @ (basis.T @ self.goal)

    def right(self, left: _Array) -> tuple[_Array, float]:
        basis, sizes, back = self._basis(left)
        right = (((basis.T @ self.goal) / sizes) @ back).reshape(self.shape[1], -1)
        return right, float(np.linalg.norm(self._misfit(basis)))

    def curvature(self, left: _Array, right: _Array) -> tuple[_Array, _Array]:
        basis, _, _ = self._basis(left)
        jacobian = (self.rows @ right).reshape(len(self.goal), -1)
        gradient = -(self._misfit(basis) @ jacobian)
        jacobian = jacobian - basis @ (basis.T @ jacobian)
        return gradient, jacobian.T @ jacobian

    def bounded(self, left: _Array, penalty: float) -> _Array:
        """The right factor of least squares plus `penalty` times its squared norm."""
        design = (np.swapaxes(self.rows, 1, 2) @ left).reshape(len(self.goal), -1)
        square = design.T @ design + penalty * np.eye(design.shape[1])
        right = np.linalg.solve(square, design.T @ self.goal).reshape(self.shape[1], -1)
        return np.asarray(right, np.float64)

    def flipped(self) -> "Measurements":
        """The transposed problem."""
        turned = np.swapaxes(self.rows, 1, 2)
        return Measurements(turned, self.goal, (self.shape[1], self.shape[0]))


# Both know `right`: the best right factor of a left one, and the residual norm; and `curvature`:
# gradient and Gauss-Newton Hessian in the left factor, with the right one eliminated.
Model: TypeAlias = Entries | Measurements


def model_of(solutions: SolutionSet, *, flip: bool) -> Model:
    """The observations, transposed where `flip` says so."""
    if solutions.mask is not None:
        filled = solutions.adjoint(solutions.values)
        if flip:
            return Entries(solutions.mask.T, filled.T)
        return Entries(solutions.mask, filled)
    assert solutions.basis is not None
    # With the sizes: the residual to be small is that of the measurements as they are.
    rows = (solutions.sizes[:, None] * solutions.basis).reshape(-1, *solutions.shape)
    shape = solutions.shape
    if flip:
        rows, shape = np.swapaxes(rows, 1, 2), (shape[1], shape[0])
    return Measurements(rows, solutions.sizes * solutions.goal, shape)


def starts_of(
    solutions: SolutionSet, rank: int, count: int, generator: np.random.Generator, *, flip: bool
) -> Iterator[_Array]:
    """Left factors to start from: the leading directions of the least solution, then random.

    Every second one has been through alternating least squares with a fading penalty on the norm:
    where solutions and an infimum at infinity exist, descent alone may prefer infinity.
    """
    least = solutions.project(np.zeros(solutions.shape))
    least = least.T if flip else least
    directions, sizes, _ = np.linalg.svd(least, full_matrices=False)
    model = model_of(solutions, flip=flip)
    other = model.flipped()
    for start in range(count):
        left = generator.standard_normal((least.shape[0], rank))
        if start == 0:
            # Off the saddle that a symmetric problem may put exactly there.
            left = directions[:, :rank] + 1e-2 * left
        if start % 2:
            left *= np.sqrt(sizes[0] / left.shape[0])
            for penalty in sizes[0] * solutions.sizes[0] ** 2 * np.geomspace(0.3, 1e-6, _SWEEPS):
                left = other.bounded(model.bounded(left, penalty), penalty)
        yield left


def fit(model: Model, left: _Array, size: float, enough: float) -> Path:
    """Levenberg-Marquardt from a left factor; residuals relative to `size`, the norm of b.

    It goes on beyond the residual that is `enough`, to see whether the norm settles.
    """
    left = np.linalg.qr(left)[0]
    right, residual = model.right(left)
    track = [(residual / size, float(np.linalg.norm(right)))]
    damping, idle, good = 1e-3, 0, None
    for _ in range(_ITERATIONS):
        if good is None and residual <= enough * size:
            good = left @ right.T
        if residual <= _FLOOR * size or track[-1][1] > _INFINITY * size or idle >= 6:
            break
        gradient, hessian = model.curvature(left, right)
        diagonal = np.maximum(np.diag(hessian), 0.0)
        diagonal = diagonal + (1e-6 * float(np.mean(diagonal)) + 1e-300)
        better = None
        while better is None and damping < 1e8:
            step = _solve(hessian, damping * diagonal, gradient)
            if step is not None:
                trial = np.linalg.qr(left + step.reshape(left.shape))[0]
                moved, reached = model.right(trial)
                better = (trial, moved, reached) if reached < residual else None
            damping = damping if better is not None else 8.0 * damping
        if better is None:
            break
        idle = idle + 1 if better[2] > (1.0 - 1e-3) * residual else 0
        left, right, residual = better
        track.append((residual / size, float(np.linalg.norm(right))))
        damping = max(damping / 5.0, 1e-15)
    residuals, norms = np.array(track).T
    path = Path(residuals, np.maximum(norms, 1e-300), left @ right.T)
    if good is not None and path.slope < -0.02:
        path = dataclasses.replace(path, product=good)
    return path


def _solve(hessian: _Array, damping: _Array, gradient: _Array) -> _Array | None:
    """The damped Newton step, or None where rounding leaves no positive definite matrix."""
    matrix = hessian.copy()
    matrix[np.diag_indices_from(matrix)] += damping
    try:
        step = -cho_solve(cho_factor(matrix, check_finite=False), gradient, check_finite=False)
    except LinAlgError:
        return None
    return step if np.all(np.isfinite(step)) else None
