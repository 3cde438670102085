r"""Fits of a sum of $r$ rank-one tensors (a CP decomposition), many starts at once.

A batch of $b$ starts for a tensor of shape $(d_1, \dots, d_N)$ is a list of $N$ arrays of shape
$(b, d_k, r)$: start $s$ stands for $\sum_j a^{1}_{sj} \otimes \dots \otimes a^{N}_{sj}$ with
$a^{k}_{sj}$ the column $j$ of its factor $k$. Everything is in NumPy and in double precision: the
arrays are too small, and their shapes too many, for a compiler to pay off.
"""

import math

import numpy as np
from scipy.linalg.lapack import dposv  # pyright: ignore[reportAttributeAccessIssue]

from factorflow.reference._patience import Patience
from factorflow.reference.unfoldings import mode_spaces

Factors = list[np.ndarray]

# Ridge of ALS, a share of the mean eigenvalue: keeps singular Gram matrices solvable.
_RIDGE = 1e-6
_SWEEPS_BETWEEN_CHECKS = 5
# ALS only has to find the valley: below this relative progress between checks LM is faster.
_ALS_PROGRESS = 0.02
_FIRST_DAMPING = 1e-2
# In units of the mean diagonal. Components can be rescaled at no cost, so that without damping
# the normal matrix is singular.
_SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-14, 1e8
# The damping falls by this factor at most after a step that went as predicted.
_QUICKEST_RELIEF = 0.2
# Iterations of LM over which its speed is measured, and how much better than that speed the
# remaining iterations may turn out before hope is given up.
_SPEED_WINDOW = 6
_HOPE = 3.0
# Entries of an array that are made at once; more starts take turns.
_ENTRIES = 2**22
# Operations of an eigendecomposition and a pseudoinverse, over the cube of the size; they are slow.
_EIGEN = 100


def unfold(tensors: np.ndarray, mode: int) -> np.ndarray:
    """Matrices of shape (b, d_mode, the rest) from tensors of shape (b, d_1, ..., d_N)."""
    moved = np.moveaxis(tensors, mode + 1, 1)
    return moved.reshape(*moved.shape[:2], -1)


def recompose(factors: Factors) -> np.ndarray:
    """The tensors, of shape (b, d_1, ..., d_N), that batched factors stand for."""
    rows = factors[0] @ _columnwise_product(factors[1:]).swapaxes(1, 2)
    return rows.reshape(len(rows), *(factor.shape[1] for factor in factors))


def square_errors(core: np.ndarray, factors: Factors) -> np.ndarray:
    """Squared Frobenius distance of every start to the tensor; shape (b,)."""
    _, *others = (factor.shape[1] for factor in factors)
    entries = max(core.size, math.prod(others) * factors[0].shape[2])
    # Of the residual itself: expanding the square would cancel near an exact fit.
    errors = [
        np.sum(np.square(core - recompose(_part(factors, turn))).reshape(-1, core.size), axis=1)
        for turn in _turns(len(factors[0]), entries)
    ]
    return np.concatenate(errors)


def random_starts(
    core: np.ndarray, rank: int, count: int, generator: np.random.Generator
) -> Factors:
    """Gaussian factors whose product has about the norm of the tensor."""
    # ||sum of r products of Gaussian columns||^2 has mean r prod(d_k).
    size = (np.linalg.norm(core) / math.sqrt(rank * core.size)) ** (1.0 / core.ndim)
    return [size * generator.standard_normal((count, dim, rank)) for dim in core.shape]


def algebraic_starts(
    core: np.ndarray,
    rank: int,
    count: int,
    generator: np.random.Generator,
    patience: Patience | None = None,
) -> Factors | None:
    r"""Factors from simultaneous diagonalization, exact for exact tensors in general position.

    With the modes in three groups, every combination of slices along the third is
    $A\, \mathrm{diag}(\cdot)\, B^\top$. Two of them, $S_1$ and $S_2$, give $S_1 S_2^{-1}$ the
    columns of $A$ as eigenvectors, and the rest follows linearly. Several random pairs make a
    badly conditioned one harmless.

    **Returns:** `count` starts, or `None` where no grouping has two groups of size `rank`, where a
    matrix turned out singular, or where the patience does not last.
    """
    groups = _three_groups(core.shape, rank)
    if groups is None:
        return None
    if patience is not None and not patience.lasts(_EIGEN * count * rank**3):
        return None
    first, second, third = groups
    order = (*first, *second, *third)
    sizes = [math.prod(core.shape[mode] for mode in group) for group in groups]
    cube = np.transpose(core, order).reshape(sizes)
    (left, _), (right, _), _ = mode_spaces(cube)
    left, right = left[:, :rank], right[:, :rank]
    rows = cube.reshape(sizes[0], -1)
    small = np.einsum("pr,pqs,qt->rts", left, cube, right, optimize=True)
    pairs = small @ generator.standard_normal((2, count, 1, sizes[2], 1))
    pairs = pairs.reshape(2, count, rank, rank).swapaxes(2, 3)
    try:
        vectors = np.linalg.eig(np.linalg.solve(pairs[1], pairs[0]).swapaxes(1, 2))[1]
        # Of a conjugate pair v, conj(v) this makes Re v + Im v and Re v - Im v: still a basis.
        joint = left @ (np.real(vectors) + np.imag(vectors))
        others = np.linalg.pinv(joint) @ rows
    except np.linalg.LinAlgError:
        return None
    factors: Factors = [np.empty(0)] * core.ndim
    parts = (joint.swapaxes(1, 2), first), (others, (*second, *third))
    for vectors, modes in parts:
        shape = [core.shape[mode] for mode in modes]
        best = _best_products(np.ascontiguousarray(vectors).reshape(-1, *shape))
        for mode, columns in zip(modes, best, strict=True):
            factors[mode] = columns.reshape(count, rank, -1).swapaxes(1, 2)
    return balanced(factors)


def balanced(factors: Factors) -> Factors:
    """The same tensors, with the norm of every component spread evenly over its columns."""
    norms = [np.linalg.norm(factor, axis=1, keepdims=True) for factor in factors]
    size = math.prod(norm ** (1.0 / len(factors)) for norm in norms)
    # A vanished column makes its component vanish: scale 0 for all of its columns is right.
    return [
        factor * (size / np.where(norm > 0.0, norm, 1.0))
        for factor, norm in zip(factors, norms, strict=True)
    ]


def alternate(
    core: np.ndarray,
    factors: Factors,
    target: float,
    sweeps: int,
    patience: Patience | None = None,
) -> Factors:
    """Alternating least squares with a small ridge, until a start has a squared error below
    `target`, the best start makes little progress or the patience ends.
    """
    factors = list(factors)
    rank, modes = factors[0].shape[2], range(core.ndim)
    matrices = [unfold(core[None], mode)[0] for mode in modes]
    turns = _turns(len(factors[0]), rank * max(rank, *(matrix.shape[1] for matrix in matrices)))
    grams = [factor.swapaxes(1, 2) @ factor for factor in factors]
    last = math.inf
    for sweep in range(1, sweeps + 1):
        for mode in modes:
            others = [other for other in modes if other != mode]
            gram = math.prod((grams[other] for other in others), start=np.ones(()))
            solved = []
            for turn in turns:
                here = _part(factors, turn)
                operations = 2 * len(here[0]) * rank * (core.size + rank**2)
                if patience is not None and not patience.lasts(operations):
                    return balanced(factors)
                product = _columnwise_product([here[other] for other in others])
                solved.append(_ridge_solution(gram[turn], matrices[mode] @ product, here[mode]))
            factors[mode] = np.concatenate(solved)
            grams[mode] = factors[mode].swapaxes(1, 2) @ factors[mode]
        factors = balanced(factors)
        grams = [factor.swapaxes(1, 2) @ factor for factor in factors]
        if sweep % _SWEEPS_BETWEEN_CHECKS == 0:
            error = float(np.min(square_errors(core, factors)))
            if error < target or error > (1.0 - _ALS_PROGRESS) * last:
                break
            last = error
    return factors


def levenberg_marquardt(
    core: np.ndarray,
    start: Factors,
    target: float,
    iterations: int,
    patience: Patience | None = None,
) -> Factors:
    r"""Damped Gauss-Newton steps from one start, until its squared error is below `target`.

    It also ends when no step helps, when it is so slow that the iterations left would not do, and
    when the patience ends.
    The start is a batch of one, and so is what is returned.
    """
    # The longest mode first: its unknowns are eliminated from the normal equations.
    order = np.argsort([-dim for dim in core.shape], kind="stable")
    core = np.ascontiguousarray(np.transpose(core, order))
    factors = balanced([start[mode] for mode in order])
    residual = core - recompose(factors)
    errors = [float(np.sum(np.square(residual)))]
    if not errors[0] >= target:
        return start
    operations = normal_operations(core.shape, start[0].shape[2])
    if patience is not None and not patience.lasts(operations):
        return start
    damping, growth = _FIRST_DAMPING, 2.0
    normal = _NormalEquations(core.shape, factors[0].shape[2])
    normal.update(residual, factors)
    while errors[-1] >= target and len(errors) <= iterations:
        if _hopeless(errors, target, iterations) or damping > _LARGEST_DAMPING:
            break
        if patience is not None and not patience.lasts(operations):
            break
        added = damping * normal.scale
        step = normal.damped_step(added)
        moved = [factor + part for factor, part in zip(factors, step, strict=True)]
        moved_residual = core - recompose(moved)
        error = float(np.sum(np.square(moved_residual)))
        # Nielsen's rule: the damping follows how well the quadratic model predicted the gain.
        if error < errors[-1]:
            gain = (errors[-1] - error) / normal.predicted_gain(step, added)
            damping *= max(_QUICKEST_RELIEF, 1.0 - (2.0 * gain - 1.0) ** 3)
            damping = max(damping, _SMALLEST_DAMPING)
            growth, factors, residual = 2.0, moved, moved_residual
            errors.append(error)
            normal.update(residual, factors)
        else:
            damping, growth = damping * growth, 2.0 * growth
            errors.append(errors[-1])
    return [factors[place] for place in np.argsort(order)]


def normal_operations(shape: tuple[int, ...], rank: int) -> int:
    """Operations of one damped step from a start of that rank."""
    rows = max(shape) * rank
    size = sum(shape) * rank - rows
    return 2 * rows * size**2 + size**3 // 3


def best_starts(core: np.ndarray, factors: Factors, count: int) -> Factors:
    """The starts with the smallest squared errors, best first."""
    # A start that has overflown is NaN, and sorted last.
    chosen = np.argsort(square_errors(core, factors), kind="stable")[:count]
    return [factor[chosen] for factor in factors]


def _turns(count: int, entries: int) -> list[slice]:
    """So many starts in turns, whose arrays of so many entries each fit in fast memory."""
    size = max(1, _ENTRIES // max(entries, 1))
    return [slice(first, first + size) for first in range(0, count, size)]


def _part(factors: Factors, turn: slice) -> Factors:
    return [factor[turn] for factor in factors]


def _ridge_solution(gram: np.ndarray, right: np.ndarray, old: np.ndarray) -> np.ndarray:
    """The factor that fits best, given the others, drawn a little to what it was."""
    rank = gram.shape[1]
    ridge = _RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / rank
    # A batch entry that has collapsed to zero must not stop the others.
    system = gram + np.maximum(ridge, np.finfo(float).tiny) * np.eye(rank)
    return np.linalg.solve(system, (right + ridge * old).swapaxes(1, 2)).swapaxes(1, 2)


def _columnwise_product(factors: Factors) -> np.ndarray:
    """Column by column the Kronecker product of the factors (Khatri-Rao): (b, prod d_k, r)."""
    product = factors[0]
    for factor in factors[1:]:
        count, _, rank = factor.shape
        product = (product[:, :, None, :] * factor[:, None, :, :]).reshape(count, -1, rank)
    return product


class _NormalEquations:
    r"""The normal equations of the squared error, without its Jacobian.

    With $G_k = A_k^\top A_k$ and $\ast$ the entrywise product, the block of the modes $n \ne m$
    has at $((i, p), (j, q))$ the entry $(\ast_{k \ne n, m} G_k)_{pq} (A_n)_{iq} (A_m)_{jp}$, and
    the diagonal block of the mode $n$ the entry $(\ast_{k \ne n} G_k)_{pq}\, \delta_{ij}$. The
    unknowns of the first mode are eliminated: in the eigenbasis of their small Gram matrix their
    block is diagonal for every damping.

    Its matrices are filled in place: fresh ones in every iteration cost as much as the algebra.
    """

    def __init__(self, shape: tuple[int, ...], rank: int):
        self.rank = rank
        rows, *others = (dim * rank for dim in shape)
        self.ends = np.cumsum([0, *others])
        size = int(self.ends[-1])
        self.rest, self.schur = np.zeros((size, size)), np.empty((size, size))
        self.mixed, self.rotated, self.scaled = (np.empty((rows, size)) for _ in range(3))

    def update(self, residual: np.ndarray, factors: Factors) -> None:
        """Move to other factors, a batch of one with that residual."""
        rank, modes = self.rank, range(len(factors))
        self.factors = [factor[0] for factor in factors]
        self.grams = [factor.T @ factor for factor in self.factors]
        products = [_columnwise_product([factors[k] for k in modes if k != n])[0] for n in modes]
        self.descent = [unfold(residual, n)[0] @ products[n] for n in modes]
        for n in modes[1:]:
            rows = slice(self.ends[n - 1], self.ends[n])
            self._fill(self.mixed[:, rows], 0, n)
            diagonal = self._as_block(self.rest[rows, rows], n, n)
            np.einsum("ipiq->ipq", diagonal)[...] = self._gram_without(n)
            for m in modes[n + 1 :]:
                columns = slice(self.ends[m - 1], self.ends[m])
                self._fill(self.rest[rows, columns], n, m)
                self.rest[columns, rows] = self.rest[rows, columns].T
        first = self._gram_without(0)
        values, self.basis = np.linalg.eigh(first)
        self.values = np.tile(np.maximum(values, 0.0), len(self.factors[0]))
        blocks = self.mixed.reshape(-1, rank, self.mixed.shape[1])
        np.matmul(self.basis.T, blocks, out=self.rotated.reshape(blocks.shape))
        unknowns = sum(factor.size for factor in self.factors)
        mean = (float(np.sum(self.values)) + float(np.trace(self.rest))) / unknowns
        self.scale = max(mean, float(np.finfo(float).tiny))

    def damped_step(self, added: float) -> Factors:
        """The step with `added` on the diagonal."""
        weights = 1.0 / (self.values + added)
        np.multiply(self.rotated, np.sqrt(weights)[:, None], out=self.scaled)
        np.matmul(self.scaled.T, self.scaled, out=self.schur)
        np.subtract(self.rest, self.schur, out=self.schur)
        np.einsum("ii->i", self.schur)[...] += added
        ahead = (self.descent[0] @ self.basis).reshape(-1)
        right = np.concatenate([part.reshape(-1) for part in self.descent[1:]])
        others = _solve_positive(self.schur, right - (weights * ahead) @ self.rotated)
        first = weights * (ahead - self.rotated @ others)
        parts = np.split(others, self.ends[1:-1])
        return [
            (first.reshape(-1, self.rank) @ self.basis.T)[None],
            *(part.reshape(1, -1, self.rank) for part in parts),
        ]

    def predicted_gain(self, step: Factors, added: float) -> float:
        """By how much the quadratic model says the squared error falls."""
        pairs = zip(step, self.descent, strict=True)
        return float(sum(np.sum(part * (added * part + descent)) for part, descent in pairs))

    def _gram_without(self, *modes: int) -> np.ndarray:
        others = [gram for mode, gram in enumerate(self.grams) if mode not in modes]
        return math.prod(others, start=np.ones((self.rank, self.rank)))

    def _as_block(self, matrix: np.ndarray, n: int, m: int) -> np.ndarray:
        """A view with the indices i, p, j, q: splitting axes never copies."""
        return matrix.reshape(len(self.factors[n]), self.rank, len(self.factors[m]), self.rank)

    def _fill(self, matrix: np.ndarray, n: int, m: int) -> None:
        inner = self._gram_without(n, m)[:, None, :] * self.factors[m].T[:, :, None]
        left = self.factors[n][:, None, None, :]
        np.multiply(inner, left, out=self._as_block(matrix, n, m))


def _solve_positive(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution for a symmetric positive definite matrix, or for what rounding has left of it.

    Cholesky's method takes half the operations of elimination.
    """
    _, solution, failure = dposv(matrix.T, right, lower=True)
    return np.linalg.solve(matrix, right) if failure else solution


def _hopeless(errors: list[float], target: float, iterations: int) -> bool:
    """Whether the recent speed, times some hope, leaves the target out of reach."""
    if len(errors) <= _SPEED_WINDOW:
        return False
    left = iterations - len(errors) + 1
    speed = math.log(errors[-1 - _SPEED_WINDOW] / errors[-1]) / _SPEED_WINDOW
    return math.log(errors[-1] / target) > _HOPE * speed * left


def _three_groups(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], ...] | None:
    """Modes in three groups, the first two of a size of at least `rank`, or None."""
    modes = sorted(range(len(shape)), key=lambda mode: -shape[mode])
    groups: list[list[int]] = [[modes[0]], [modes[1]], []]
    for mode in modes[2:]:
        sizes = [math.prod(shape[other] for other in group) for group in groups[:2]]
        short = int(sizes[1] < sizes[0])
        groups[short if sizes[short] < rank else 2].append(mode)
    sizes = [math.prod(shape[mode] for mode in group) for group in groups]
    if not groups[2] or min(sizes[:2]) < rank or (rank > 1 and sizes[2] < 2):
        return None
    return tuple(tuple(sorted(group)) for group in groups)


def _best_products(tensors: np.ndarray) -> list[np.ndarray]:
    """Vectors whose outer product is near each tensor (m, d_1, ..., d_k), as (m, d_i) arrays."""
    vectors = []
    for mode in range(tensors.ndim - 2):
        matrices = unfold(tensors, mode)
        vectors.append(np.linalg.eigh(matrices @ matrices.swapaxes(1, 2))[1][:, :, -1])
    rest = tensors
    for vector in vectors:
        matrices = rest.reshape(len(rest), vector.shape[1], -1)
        rest = np.einsum("md,mdx->mx", vector, matrices)
    return [*vectors, rest.reshape(len(rest), -1)]
