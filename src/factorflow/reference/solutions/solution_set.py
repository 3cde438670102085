r"""The matrices that fit the observations exactly: an affine set, in double precision."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from threadpoolctl import threadpool_limits

from factorflow._problem import AbstractProblem, Completion, Sensing
from factorflow.reference._inputs import is_traced

__all__ = ["SolutionSet", "require_solutions"]


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Measurements $A = U \\operatorname{diag}(s) Q$, cut off at their rank.

    `rows` is $Q$ with orthonormal rows; `at` holds the flat places of the entries instead where
    the measurements are entries, `left` is then `None`.
    """

    sizes: np.ndarray
    left: np.ndarray | None
    rows: np.ndarray | None
    at: np.ndarray | None


@dataclass(frozen=True, eq=False)
class SolutionSet:
    r"""The affine set $\{W : \mathcal{A}(W) = b\}$ of a completion or sensing problem of matrices.

    Entries observed several times count once, observations without weight, such as those that
    `Completion(room=...)` adds, not at all. Everything is NumPy in double precision, whatever
    the problem's dtype. Make one with `SolutionSet.of(problem)`.

    **Attributes:**

    - `shape`: of the matrices, `(rows, columns)`.
    - `values`: the observations $b$, shape `(m,)`.
    - `mask`: which entries are observed, booleans of shape `(rows, columns)`; `None` for sensing.
    - `epsilon`: rounding of the problem's own dtype, 2.2e-16 or 1.2e-7.

    !!! example

        ```python
        >>> import numpy as np
        >>> import factorflow as ff
        >>> from factorflow.reference import SolutionSet
        >>> solutions = SolutionSet.of(ff.razin_cohen_problem())
        >>> solutions.dimension, solutions.inconsistency
        (1, 0.0)
        >>> solutions.project(np.full((2, 2), 5.0)).tolist()
        [[5.0, 1.0], [1.0, 0.0]]

        ```
    """

    shape: tuple[int, int]
    values: Float[np.ndarray, " m"]
    mask: Bool[np.ndarray, "rows columns"] | None
    epsilon: float
    _spectrum: _Spectrum
    # What the merged values lost: the residual of contradicting repetitions.
    _spread: float = 0.0

    @classmethod
    def of(cls, problem: AbstractProblem) -> "SolutionSet":
        """The solutions of a problem.

        **Arguments:**

        - `problem`: a `Completion` or `Sensing` of matrices, with concrete numbers.

        **Raises:** `ValueError` for another kind of problem, tensors (naming the shape), traced
        numbers, or when no observation has any weight.
        """
        if not isinstance(problem, Completion | Sensing):
            raise ValueError(
                "Solutions are known for Completion and Sensing, got "
                f"{type(problem).__name__}: make one of these from the observations."
            )
        if len(problem.shape) != 2:
            raise ValueError(
                f"Solution sets are of matrices, got a problem of shape {problem.shape}: unfold "
                "the tensor, or use a problem of order 2."
            )
        if is_traced(problem.values, problem.weights):
            raise ValueError(
                "SolutionSet looks at numbers, which are traced here: call it outside jit"
            )
        kept = np.asarray(problem.weights) > 0
        if not np.any(kept):
            raise ValueError("No observation has a positive weight, so that every matrix fits.")
        epsilon = float(np.finfo(problem.values.dtype).eps)
        values = np.asarray(problem.values, np.float64)[kept]
        shape = (int(problem.shape[0]), int(problem.shape[1]))
        if isinstance(problem, Completion):
            return _of_entries(shape, np.asarray(problem.indices)[kept], values, epsilon)
        return _of_measurements(np.asarray(problem.measurements, np.float64)[kept], values, epsilon)

    @property
    def dimension(self) -> int:
        """Dimension of the affine set; 0 where the solution is unique."""
        return math.prod(self.shape) - self._spectrum.sizes.size

    @property
    def condition(self) -> float:
        """Largest over smallest positive singular value of the measurements; 1 for entries."""
        sizes = self._spectrum.sizes
        return float(sizes.max() / sizes.min()) if sizes.size else 1.0

    @property
    def slack(self) -> float:
        r"""Residual below which rounding alone can explain it.

        That is $c\, \epsilon\, \|\mathcal{A}\|\, \|W\|_F$ with the rounding $\epsilon$ of the
        problem's dtype and the least-squares solution $W$: observations computed from a matrix
        carry an error of that order. It is between $c\, \epsilon \|b\|$ and that times the
        condition number of the measurements. $c$ is 10, and for sensing at least the larger
        dimension of the measurement matrix, as in the cut-off of its rank.
        """
        # Entries are exact: nothing is cut off.
        cut = 0 if self.basis is None else max(self.values.size, math.prod(self.shape))
        largest = float(self._spectrum.sizes.max(initial=0.0))
        return max(10, cut) * self.epsilon * largest * float(np.linalg.norm(self.goal))

    @cached_property
    def inconsistency(self) -> float:
        r"""The smallest residual $\min_W \|\mathcal{A}(W) - b\|_2$; 0 up to rounding if any fit."""
        left = self._spectrum.left
        if left is None:
            return self._spread
        return float(np.linalg.norm(self.values - left @ (left.T @ self.values)))

    def measure(self, matrix: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " m"]:
        """The observations that a matrix would give."""
        flat = self._flat(matrix)
        kind = self._spectrum
        if kind.at is not None:
            return flat[kind.at]
        assert kind.left is not None and kind.rows is not None
        return kind.left @ (kind.sizes * (kind.rows @ flat))

    def adjoint(self, multipliers: Float[np.ndarray, " m"]) -> Float[np.ndarray, "rows columns"]:
        r"""$\mathcal{A}^*(y)$: the measurements weighted by `multipliers` and summed."""
        kind = self._spectrum
        if kind.at is not None:
            flat = np.zeros(math.prod(self.shape))
            flat[kind.at] = multipliers
            return flat.reshape(self.shape)
        assert kind.left is not None and kind.rows is not None
        return ((kind.sizes * (kind.left.T @ multipliers)) @ kind.rows).reshape(self.shape)

    def residual(self, matrix: Float[np.ndarray, "rows columns"]) -> float:
        r"""$\|\mathcal{A}(W) - b\|_2$."""
        return math.hypot(float(np.linalg.norm(self.measure(matrix) - self.values)), self._spread)

    def project(
        self, matrix: Float[np.ndarray, "rows columns"], tolerance: float | int = 0.0
    ) -> Float[np.ndarray, "rows columns"]:
        r"""The matrix nearest in Frobenius norm with $\|\mathcal{A}(W) - b\|_2 \le$ `tolerance`.

        Where no matrix has so small a residual, the nearest of those with the smallest one.
        `require_solutions` tells beforehand.
        """
        coordinates, goal = self.coordinates(matrix), self.goal
        sizes = self._spectrum.sizes
        gap = coordinates - goal
        room = self.room(tolerance)
        moved = _shrunk(sizes, gap, room)
        if self._spectrum.at is not None:
            flat = self._flat(matrix).copy()
            # Set, not added: an exact solution has the observed values to the last bit.
            flat[self._spectrum.at] = self.values + moved
            return flat.reshape(self.shape)
        assert self._spectrum.rows is not None
        step = (moved - gap) @ self._spectrum.rows
        return np.asarray(matrix, np.float64) + step.reshape(self.shape)

    def coordinates(self, matrix: Float[np.ndarray, "rows columns"]) -> np.ndarray:
        r"""$Q \operatorname{vec}(W)$ for the orthonormal rows $Q$ that span the measurements."""
        kind = self._spectrum
        return self._flat(matrix)[kind.at] if kind.rows is None else kind.rows @ self._flat(matrix)

    @property
    def sizes(self) -> np.ndarray:
        """Positive singular values of the measurements, one per coordinate."""
        return self._spectrum.sizes

    @cached_property
    def goal(self) -> np.ndarray:
        """The coordinates of the solutions: with the smallest residual where none fits."""
        kind = self._spectrum
        return self.values if kind.left is None else (kind.left.T @ self.values) / kind.sizes

    def room(self, tolerance: float | int) -> float:
        """What is left of a residual `tolerance` after the part that no matrix can remove."""
        rest = max(float(tolerance), self.inconsistency) ** 2 - self.inconsistency**2
        return math.sqrt(max(rest, 0.0))

    def spread(self, coordinates: np.ndarray) -> Float[np.ndarray, "rows columns"]:
        r"""$Q^\top c$ as a matrix: the transpose of `coordinates`."""
        kind = self._spectrum
        if kind.rows is not None:
            return (coordinates @ kind.rows).reshape(self.shape)
        flat = np.zeros(math.prod(self.shape))
        flat[kind.at] = coordinates
        return flat.reshape(self.shape)

    def symmetric(self) -> "SolutionSet":
        """The same set as symmetric matrices see it, which no antisymmetric part can help.

        Its coordinates are those of the symmetrized measurements, so `project` keeps a symmetric
        matrix symmetric. `values` and `measure` may count a pair of mirrored entries twice.
        """
        rows, columns = self.shape
        if rows != columns:
            raise ValueError(f"Only square matrices are symmetric, got the shape {self.shape}.")
        kind = self._spectrum
        if self.mask is None:
            assert kind.left is not None and kind.rows is not None
            full = ((kind.left * kind.sizes) @ kind.rows).reshape(-1, rows, rows)
            return _of_measurements((full + full.transpose(0, 2, 1)) / 2, self.values, self.epsilon)
        counts = self.mask.astype(float) + self.mask.T
        total = self.spread(self.values)
        both = self.mask & self.mask.T
        means = np.where(both, (total + total.T) / 2, total + total.T)
        places = np.flatnonzero(counts)
        lost = math.hypot(self._spread, float(np.linalg.norm((means - total)[self.mask])))
        sizes = np.sqrt(counts.ravel()[places] / 2)
        mirrored = _Spectrum(sizes, None, None, places)
        return SolutionSet(
            self.shape, means.ravel()[places], counts > 0, self.epsilon, mirrored, lost
        )

    @property
    def basis(self) -> np.ndarray | None:
        """The orthonormal rows $Q$, shape `(rank, rows * columns)`; `None` for completions."""
        return self._spectrum.rows

    @property
    def places(self) -> np.ndarray:
        """Where the coordinates are in the flat matrix, row by row; for completions only."""
        if self._spectrum.at is None:
            raise ValueError("The measurements of a sensing problem are not entries.")
        return self._spectrum.at

    def _flat(self, matrix) -> np.ndarray:
        array = np.asarray(matrix, np.float64)
        if array.shape != self.shape:
            raise ValueError(f"The matrix must have shape {self.shape}, got {array.shape}.")
        return array.ravel()


def require_solutions(solutions: SolutionSet, tolerance: float | int = 0.0) -> None:
    r"""Raise `ValueError` unless some matrix fits to within `tolerance`.

    Rounding is not held against the observations: a residual up to `solutions.slack` counts as
    zero.

    **Arguments:**

    - `solutions`: the solution set.
    - `tolerance`: the residual $\|\mathcal{A}(W) - b\|_2$ that is allowed, 0 or more.

    **Raises:** `ValueError` for a tolerance that is negative or not finite; for observations that
    contradict each other, with the smallest residual there is.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(
            f"tolerance must be 0 or more and finite, got {tolerance}: it bounds the norm of the "
            "residual, and 0 asks for exact solutions."
        )
    least = solutions.inconsistency
    if least > tolerance + solutions.slack:
        raise ValueError(
            f"The observations contradict each other: no matrix has a residual below {least:.6g}, "
            f"and tolerance={tolerance} was asked for. Drop the contradicting observations or pass "
            f"tolerance={1.01 * least:.3g}."
        )


def _of_entries(
    shape: tuple[int, int], indices: np.ndarray, values: np.ndarray, epsilon: float
) -> SolutionSet:
    flat = np.ravel_multi_index(tuple(indices.T), shape)
    places, owner, counts = np.unique(flat, return_inverse=True, return_counts=True)
    merged = np.empty(places.size)
    merged[owner] = values
    # Repetitions differ only after label noise; equal ones keep their bits.
    differ = np.zeros(places.size, bool)
    np.logical_or.at(differ, owner, values != merged[owner])
    means = np.bincount(owner, weights=values) / counts
    merged = np.where(differ, means, merged)
    lost = float(np.linalg.norm(values - merged[owner]))
    mask = np.zeros(shape, bool)
    mask.ravel()[places] = True
    kind = _Spectrum(np.ones(places.size), None, None, places)
    return SolutionSet(shape, merged, mask, epsilon, kind, lost)


def _of_measurements(measurements: np.ndarray, values: np.ndarray, epsilon: float) -> SolutionSet:
    shape = (measurements.shape[1], measurements.shape[2])
    matrix = measurements.reshape(len(values), -1)
    with threadpool_limits(1, user_api="blas"):
        left, sizes, rows = np.linalg.svd(matrix, full_matrices=False)
    # Below this a singular value is rounding of the measurements themselves.
    rank = int(np.sum(sizes > max(matrix.shape) * epsilon * sizes[0]))
    kind = _Spectrum(sizes[:rank], left[:, :rank], rows[:rank], None)
    return SolutionSet(shape, values, None, epsilon, kind)


def _shrunk(sizes: np.ndarray, gap: np.ndarray, room: float) -> np.ndarray:
    r"""The nearest point to `gap` in the ellipsoid $\|s \cdot x\|_2 \le$ `room`.

    It is $x = g / (1 + \lambda s^2)$, where $\lambda$ solves the secular equation
    $\|s \cdot x\| =$ `room`.
    """
    if room == 0 or not gap.size:
        return np.zeros_like(gap)
    residual = sizes * gap
    if float(np.linalg.norm(residual)) <= room:
        return gap
    squares = sizes**2
    if np.all(squares == squares[0]):
        return gap * (room / np.linalg.norm(residual))
    return gap / (1 + secular_multiplier(squares, residual, room) * squares)


def secular_multiplier(squares: np.ndarray, residual: np.ndarray, room: float) -> float:
    r"""The $\lambda \ge 0$ with $\|r / (1 + \lambda s^2)\|_2 =$ `room`, where $\|r\| >$ `room`."""
    multiplier = 0.0
    # Newton on 1/norm, which is concave in the multiplier: from 0 on it rises to the root
    # monotonically, quadratically at the end.
    for _ in range(200):
        shares = 1 / (1 + multiplier * squares)
        norm = float(np.linalg.norm(residual * shares))
        slope = float(np.sum(residual**2 * squares * shares**3))
        if slope == 0:
            break
        step = (norm / room - 1) * norm**2 / slope
        multiplier += step
        if step <= 4 * np.finfo(float).eps * multiplier:
            break
    return multiplier
