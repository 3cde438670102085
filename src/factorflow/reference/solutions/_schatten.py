r"""Small Schatten-p quasi-norms over a solution set, p < 1, by reweighted least squares.

The smoothed objective $\sum_i (\sigma_i^2 + \gamma^2)^{p/2}$ is bounded from above by a quadratic
form that touches it at the present matrix. Minimizing the form over the solutions is a problem of
least squares; repeating that never increases the objective. $\gamma$ shrinks on the way. What is
found is a local minimum: several starts make it likely to be a good one, none makes it certain.
"""

from collections.abc import Iterator

import numpy as np

from factorflow.reference.solutions._certified import schatten
from factorflow.reference.solutions.solution_set import SolutionSet, secular_multiplier

__all__ = ["smallest_quasi_norm"]

# The smoothing over the largest singular value: first, for starts that are minima already, and
# last. Below, least squares lose their digits; the rank is then settled, and the rest is a fit.
_WIDEST, _NARROWER, _NARROWEST = 1.0, 0.1, 1e-4
_NARROWING = 0.7
# Steps at one smoothing end when they move by less than this share of it. Less patience costs more
# than it saves: on random completions, two steps each gave values up to twice as large.
_SETTLED, _MOST_STEPS = 0.03, 100
# Where the leading part of a matrix may end, as shares of its largest singular value.
_CUTS = (1e-2, 1e-3, 1e-4)
# A fit counts if its relative residual is below this; it ends where steps no longer shrink it.
_FITTED, _MOST_FITS = 1e-13, 20
# A singular value below this many roundings of the largest is zero.
_ROUNDINGS = 10
# Gauss-Newton on factors is for Jacobians up to this size.
_LARGEST_JACOBIAN = 2e7


def smallest_quasi_norm(
    solutions: SolutionSet,
    p: float,
    tolerance: float,
    first: np.ndarray,
    starts: int,
    seed: int,
) -> tuple[np.ndarray, float, int]:
    """A solution of small quasi-norm, the quasi-norm, and the number of steps taken.

    **Arguments:**

    - `first`: a solution that is known, that of minimum nuclear norm.
    - `starts`: how many starts. The first is the least-squares solution; the second the same on
        the way to the smallest rank, that is with the exponent 0, which passes minima in which
        the exponent `p` ends; the third is `first`; the others are random solutions.
    """
    best, least, taken = first, quasi_norm(first, p), 0
    for start, exponent, width in _starts(solutions, p, tolerance, first, starts, seed):
        product, count = _descend(solutions, exponent, tolerance, start, width)
        taken += count
        for candidate in (product, *_of_lower_rank(solutions, tolerance, product)):
            value = quasi_norm(candidate, p)
            if value < least:
                best, least = candidate, value
    return best, least, taken


def quasi_norm(matrix: np.ndarray, p: float) -> float:
    r"""The Schatten-p quasi-norm, with rounding taken as zero: $\sigma^p$ would blow it up."""
    values = np.linalg.svd(matrix, compute_uv=False)
    kept = values > _ROUNDINGS * max(matrix.shape) * np.finfo(float).eps * values[0]
    return schatten(values[kept], p)


def _starts(
    solutions: SolutionSet,
    p: float,
    tolerance: float,
    first: np.ndarray,
    starts: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, float, float]]:
    """Starts, with the exponent and the smoothing to begin with."""
    generator = np.random.default_rng(seed)
    least_squares = solutions.project(np.zeros(solutions.shape), tolerance)
    known = [(least_squares, p, _WIDEST), (least_squares, 0.0, _WIDEST), (first, p, _NARROWER)]
    yield from known[:starts]
    size = float(np.linalg.norm(least_squares, 2)) / np.sqrt(max(solutions.shape))
    for _ in range(starts - len(known)):
        # Sizes over two decades: where a completion is far, local minima are, too.
        noise = generator.standard_normal(solutions.shape)
        spread = size * 10 ** generator.uniform(-1, 1)
        yield solutions.project(spread * noise, tolerance), p, _NARROWER


def _descend(
    solutions: SolutionSet, p: float, tolerance: float, product: np.ndarray, width: float
) -> tuple[np.ndarray, int]:
    scale, taken = float(np.linalg.norm(product, 2)), 0
    while True:
        width = max(width, _NARROWEST)
        for _ in range(_MOST_STEPS):
            before = product
            product = _reweighted(solutions, p, tolerance, before, width * scale)
            taken += 1
            if np.linalg.norm(product - before) <= _SETTLED * width * scale:
                break
        if width == _NARROWEST:
            return product, taken
        width *= _NARROWING


def _reweighted(
    solutions: SolutionSet, p: float, tolerance: float, product: np.ndarray, width: float
) -> np.ndarray:
    r"""Minimize $\operatorname{tr}(W M^{-1} W^\top)$, $M = (W_0^\top W_0 + \gamma^2)^{1 - p/2}$."""
    rows, columns = product.shape
    _, values, right = np.linalg.svd(product, full_matrices=True)
    squares = np.zeros(columns)
    squares[: values.size] = values**2
    inverse = (right.T * ((squares + width**2) / (squares[0] + width**2)) ** (1 - p / 2)) @ right
    if solutions.mask is not None:
        moved = _by_rows(solutions, inverse, tolerance)
    else:
        assert solutions.basis is not None
        sizes = solutions.sizes
        basis = solutions.basis.reshape(-1, rows, columns)
        measured = sizes[:, None, None] * (basis @ inverse)
        form = measured.reshape(sizes.size, -1) @ (solutions.basis.T * sizes)
        values, room = sizes * solutions.goal, solutions.room(tolerance)
        weights = _weights(form[None], values[None], room)[0]
        moved = np.tensordot(weights, measured, axes=1)
    return solutions.project(moved, tolerance)


def _by_rows(solutions: SolutionSet, inverse: np.ndarray, tolerance: float) -> np.ndarray:
    """For completions, whose rows share nothing but the tolerance: small systems in one batch."""
    mask = solutions.mask
    assert mask is not None
    counts = mask.sum(axis=1)
    width = int(counts.max())
    # The observed columns of every row first, then padding.
    order = np.argsort(~mask, axis=1, kind="stable")[:, :width]
    real = np.arange(width) < counts[:, None]
    values = np.where(real, np.take_along_axis(solutions.spread(solutions.goal), order, 1), 0.0)
    form = inverse[order[:, :, None], order[:, None, :]]
    form = np.where(real[:, :, None] & real[:, None, :], form, np.eye(width))
    weights = _weights(form, values, solutions.room(tolerance))
    dense = np.zeros(mask.shape)
    np.put_along_axis(dense, order, np.where(real, weights, 0.0), 1)
    return dense @ inverse


def _weights(forms: np.ndarray, values: np.ndarray, room: float) -> np.ndarray:
    """Multipliers of the measurements, whose forms come in blocks: exact, or just so that the
    residual of all blocks together has the size `room`."""
    if np.linalg.norm(values) <= room:
        return np.zeros_like(values)
    # Positive definite even where rounding says otherwise.
    ridge = forms.shape[-1] * np.finfo(float).eps * float(np.max(forms))
    forms = (forms + forms.swapaxes(-1, -2)) / 2 + ridge * np.eye(forms.shape[-1])
    if room == 0:
        return np.linalg.solve(forms, values[..., None])[..., 0]
    levels, vectors = np.linalg.eigh(forms)
    turned = np.einsum("rij,ri->rj", vectors, values)
    multiplier = secular_multiplier(levels, turned, room)
    return np.einsum("rij,rj->ri", vectors, turned * multiplier / (1 + multiplier * levels))


def _of_lower_rank(
    solutions: SolutionSet, tolerance: float, product: np.ndarray
) -> Iterator[np.ndarray]:
    """The matrix without its tail of small singular values, fitted again, where that succeeds."""
    left, values, right = np.linalg.svd(product, full_matrices=False)
    size = solutions.sizes.size * sum(product.shape)
    for rank in sorted({int(np.sum(values > cut * values[0])) for cut in _CUTS}):
        if rank < values.size and rank * size <= _LARGEST_JACOBIAN:
            roots = np.sqrt(values[:rank])
            fitted = _fitted(solutions, tolerance, left[:, :rank] * roots, right[:rank].T * roots)
            if fitted is not None:
                yield fitted


def _fitted(
    solutions: SolutionSet, tolerance: float, a: np.ndarray, b: np.ndarray
) -> np.ndarray | None:
    """A solution `a @ b.T` by Gauss-Newton from these factors, if it is one."""
    size = float(np.linalg.norm(solutions.goal))
    # The observations of a low-rank matrix are those of one only up to their own rounding.
    enough = max(_FITTED, _ROUNDINGS * solutions.epsilon) * size
    best, least = None, np.inf
    for _ in range(_MOST_FITS):
        fitted = a @ b.T
        # Towards the nearest solution, which within a tolerance moves with the matrix.
        gap = solutions.coordinates(solutions.project(fitted, tolerance) - fitted)
        error = float(np.linalg.norm(gap))
        if not error < least:
            break
        best, least = fitted, error
        # The smallest step: factors may turn into each other without changing their product.
        step = np.linalg.lstsq(_jacobian(solutions, a, b), gap, rcond=1e-10)[0]
        a = a + step[: a.size].reshape(a.shape)
        b = b + step[a.size :].reshape(b.shape)
    return best if least <= enough else None


def _jacobian(solutions: SolutionSet, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How the coordinates of `a @ b.T` move with the entries of `a`, then of `b`."""
    (rows, rank), columns = a.shape, b.shape[0]
    if solutions.basis is not None:
        basis = solutions.basis.reshape(-1, rows, columns)
        by_a, by_b = basis @ b, basis.transpose(0, 2, 1) @ a
        return np.concatenate([by_a.reshape(len(basis), -1), by_b.reshape(len(basis), -1)], 1)
    i, j = np.unravel_index(solutions.places, solutions.shape)
    number = np.arange(i.size)
    by_a, by_b = np.zeros((i.size, rows, rank)), np.zeros((i.size, columns, rank))
    by_a[number, i], by_b[number, j] = b[j], a[i]
    return np.concatenate([by_a.reshape(i.size, -1), by_b.reshape(i.size, -1)], 1)
