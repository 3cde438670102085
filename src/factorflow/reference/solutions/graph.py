"""Which rows and columns the observations tie together, and whether they fix a low-rank matrix."""

import dataclasses

import numpy as np
import scipy
from jaxtyping import ArrayLike
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from factorflow._problem import AbstractProblem, Completion
from factorflow.reference._inputs import require_at_least
from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["LocalUniqueness", "ObservationGraph", "local_uniqueness", "observation_graph"]

# Entries of the largest Jacobian that is decomposed, 1 GiB in double precision.
_LARGEST = 2**27


@dataclasses.dataclass(frozen=True, eq=False)
class ObservationGraph:
    """The bipartite graph of a completion problem: an edge for every observed entry.

    **Attributes:**

    - `mask`: whether an entry is observed, shape `(rows, columns)`.
    - `components`: the connected components that hold observations, as pairs of ascending index
        arrays, rows and columns, in the order of their first rows.
    - `unobserved_rows`, `unobserved_columns`: those without observations. Each is a component of
        its own, without edges, and not listed in `components`.
    """

    mask: NDArray[np.bool_]
    components: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]
    unobserved_rows: NDArray[np.intp]
    unobserved_columns: NDArray[np.intp]

    @property
    def count(self) -> int:
        """The number of connected components, unobserved rows and columns included."""
        return len(self.components) + self.unobserved_rows.size + self.unobserved_columns.size

    @property
    def connected(self) -> bool:
        """Whether a path of observed entries leads from every row and column to every other."""
        return self.count == 1

    @property
    def complete(self) -> tuple[bool, ...]:
        """For each of `components`, whether all entries of its block are observed."""
        return tuple(bool(np.all(self.mask[np.ix_(*pair)])) for pair in self.components)

    @property
    def disconnected_complete(self) -> bool:
        """Whether the graph is disconnected and every block of `components` is fully observed.

        There depth-2 training from a vanishing start finds the minimum of the nuclear norm.
        Unobserved rows and columns do no harm: they stay zero, as in that minimum.
        """
        return not self.connected and all(self.complete)

    @property
    def density(self) -> float:
        """The share of entries that are observed."""
        return float(np.mean(self.mask))

    @property
    def smallest_row_degree(self) -> int:
        """The fewest observations in a row."""
        return int(np.min(np.sum(self.mask, axis=1)))

    @property
    def smallest_column_degree(self) -> int:
        """The fewest observations in a column."""
        return int(np.min(np.sum(self.mask, axis=0)))


@dataclasses.dataclass(frozen=True, eq=False)
class LocalUniqueness:
    """How many directions the observations leave to a matrix of given rank.

    **Attributes:**

    - `rank`: the rank of the matrices.
    - `observations`: the number of independent observations.
    - `dimension`: of the matrices of that rank, `rank * (rows + columns - rank)`.
    - `jacobian_rank`: how many of these dimensions the observations see.
    - `gap`: the smallest singular value counted in `jacobian_rank` over the largest one that is
        not (of those the symmetry of the factors does not already set to zero), and at least over
        the rounding error. Near 1, the rank is not determined in double precision.
    - `generic`: whether the point was drawn at random.
    """

    rank: int
    observations: int
    dimension: int
    jacobian_rank: int
    gap: float
    generic: bool

    @property
    def unique(self) -> bool:
        """Whether the observations see every dimension."""
        return self.jacobian_rank == self.dimension

    @property
    def freedom(self) -> int:
        """The number of dimensions that the observations do not see."""
        return self.dimension - self.jacobian_rank

    @property
    def slack(self) -> int:
        """Observations beyond the dimension: negative ones rule out uniqueness by counting."""
        return self.observations - self.dimension


def observation_graph(problem: AbstractProblem) -> ObservationGraph:
    r"""The bipartite graph between rows and columns, with an edge for every observed entry.

    $$(i, j) \in E \iff (i, j) \in \Omega$$

    Its connectivity decides much about training. In a disconnected graph the blocks between
    components are free; with every component fully observed, depth 2 minimizes the nuclear norm.

    **Arguments:**

    - `problem`: a matrix `Completion`.

    **Returns:** an `ObservationGraph`.

    **Raises:** `ValueError` for other problems and for tensors, whose observations join more than
    two indices.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.reference import observation_graph
        >>> problem = ff.Completion((3, 3), [[0, 0], [1, 1], [1, 2]], [1.0, 2.0, 3.0])
        >>> graph = observation_graph(problem)
        >>> graph.count, graph.connected, graph.disconnected_complete
        (3, False, True)
        >>> graph.unobserved_rows.tolist()
        [2]

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{bai2024connectivity,
            author = {Bai, Zhiwei and Zhao, Jiajie and Zhang, Yaoyu},
            title = {Connectivity Shapes Implicit Regularization in Matrix Factorization Models
                     for Matrix Completion},
            booktitle = {Advances in Neural Information Processing Systems},
            year = {2024},
        }
        ```
    """
    if not isinstance(problem, Completion):
        raise ValueError(
            f"observation_graph needs a Completion, got {type(problem).__name__}: only there does "
            "an observation belong to one row and one column."
        )
    if len(problem.shape) != 2:
        raise ValueError(
            f"observation_graph needs a matrix problem, got shape {problem.shape}: an observation "
            "of a tensor joins more than two indices; unfold the tensor first."
        )
    mask = SolutionSet.of(problem).mask
    assert mask is not None
    rows, columns = mask.shape
    starts, ends = np.nonzero(mask)
    edges = scipy.sparse.coo_array(
        (np.ones(starts.size), (starts, rows + ends)), shape=(rows + columns,) * 2
    )
    _, labels = scipy.sparse.csgraph.connected_components(edges, directed=False)
    # Of the rows with observations only, in the order in which they meet their components.
    seen = list(dict.fromkeys(labels[:rows][np.any(mask, axis=1)].tolist()))
    components = tuple(
        (np.flatnonzero(labels[:rows] == label), np.flatnonzero(labels[rows:] == label))
        for label in seen
    )
    return ObservationGraph(
        mask,
        components,
        np.flatnonzero(~np.any(mask, axis=1)),
        np.flatnonzero(~np.any(mask, axis=0)),
    )


def local_uniqueness(
    problem: AbstractProblem,
    rank: int,
    *,
    factors: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> LocalUniqueness:
    r"""Whether the observations fix a matrix of given rank up to finitely many alternatives.

    The rank of the Jacobian of

    $$(U, V) \mapsto \mathcal{A}(U V^\top)$$

    is compared with the dimension $r (m + n - r)$ of the matrices of rank $r$. If they are equal,
    no other matrix of rank $r$ near $U V^\top$ has the same observations.

    Without `factors` the point is drawn from a Gaussian. The answer then holds for almost every
    matrix of that rank: `unique` says that almost all have finitely many alternatives, its
    contrary that almost all lie on a curve of alternatives. It depends on where the observations
    are, not on their values. At given `factors`, full rank is sufficient and not necessary.

    Singular values below $\epsilon \max(\text{size}) \, \sigma_1$ count as zero; read `gap` to
    see whether anything lies near.

    **Arguments:**

    - `problem`: a matrix `Completion` or `Sensing`. Observations that others imply do not count.
    - `rank`: between 1 and `min(rows, columns)`.
    - `factors`: a pair of shapes `(rows, rank)` and `(columns, rank)`, both of full rank.
    - `seed`: of the random point.

    **Returns:** a `LocalUniqueness`.

    **Raises:** `ValueError` for tensors, ranks out of range, factors of other shapes or of lower
    rank, and problems whose Jacobian exceeds a gigabyte.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.reference import local_uniqueness
        >>> problem = ff.Completion((2, 2), [[0, 0], [0, 1], [1, 0]], [1.0, 2.0, 3.0])
        >>> local_uniqueness(problem, 1).unique, local_uniqueness(problem, 2).freedom
        (True, 1)

        ```

    ??? cite "Reference"

        ```bibtex
        @article{singer2010uniqueness,
            author = {Singer, Amit and Cucuringu, Mihai},
            title = {Uniqueness of Low-Rank Matrix Completion by Rigidity Theory},
            journal = {SIAM Journal on Matrix Analysis and Applications},
            volume = {31},
            number = {4},
            pages = {1621--1641},
            year = {2010},
        }
        ```
    """
    solutions = SolutionSet.of(problem)
    rows, columns = solutions.shape
    require_at_least("rank", rank, 1, "a matrix of rank 0 has no neighbors of its rank")
    require_at_least("seed", seed, 0, "pass a seed as numpy.random.default_rng takes it")
    if rank > min(rows, columns):
        raise ValueError(
            f"rank must be at most min(shape) = {min(rows, columns)}, got {rank}: no matrix of "
            "this shape has a higher one."
        )
    if factors is None:
        generator = np.random.default_rng(seed)
        left = generator.standard_normal((rows, rank))
        right = generator.standard_normal((columns, rank))
    else:
        left, right = _checked_factors(factors, (rows, columns), rank)
    jacobian = _jacobian(solutions, left, right)
    # Where others compete for the cores, more threads wait for each other longer than they work.
    with threadpool_limits(1, user_api="blas"):
        values = np.linalg.svd(jacobian, compute_uv=False)
    dimension = rank * (rows + columns - rank)
    # The r^2 directions that leave the product alone are zero in theory: not part of the question.
    values = values[:dimension]
    floor = np.finfo(np.float64).eps * max(jacobian.shape) * values[0]
    found = int(np.sum(values > floor))
    below = max(values[found], floor) if found < values.size else floor
    gap = float(values[found - 1] / below) if found else 1.0
    return LocalUniqueness(rank, jacobian.shape[0], dimension, found, gap, factors is None)


def _jacobian(
    solutions: SolutionSet, left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Derivatives of the observations, shape `(observations, (rows + columns) * rank)`."""
    (rows, rank), columns = left.shape, right.shape[0]
    width = (rows + columns) * rank
    _refuse_large(solutions.sizes.size, width)
    if solutions.mask is not None:
        at = np.argwhere(solutions.mask)
        jacobian = np.zeros((len(at), rows + columns, rank))
        order = np.arange(len(at))
        jacobian[order, at[:, 0]] = right[at[:, 1]]
        jacobian[order, rows + at[:, 1]] = left[at[:, 0]]
    else:
        assert solutions.basis is not None
        measurements = solutions.basis.reshape(-1, rows, columns)
        towards_left = measurements @ right
        towards_right = np.swapaxes(measurements, 1, 2) @ left
        jacobian = np.concatenate([towards_left, towards_right], axis=1)
    return jacobian.reshape(-1, width)


def _refuse_large(observations: int, width: int) -> None:
    if observations * width > _LARGEST:
        raise ValueError(
            f"the Jacobian of {observations} observations by {width} factor entries exceeds a "
            "gigabyte: ask for a lower rank or part of the rows."
        )


def _checked_factors(
    factors: tuple[ArrayLike, ArrayLike], shape: tuple[int, int], rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    arrays = [np.asarray(factor, np.float64) for factor in factors]
    wanted = [(dim, rank) for dim in shape]
    if [array.shape for array in arrays] != wanted:
        raise ValueError(
            f"factors must have shapes {wanted[0]} and {wanted[1]}, got "
            f"{[array.shape for array in arrays]}."
        )
    for array in arrays:
        if not np.all(np.isfinite(array)):
            raise ValueError("factors must be finite.")
        if (lower := int(np.linalg.matrix_rank(array))) < rank:
            raise ValueError(
                f"factors must have full rank {rank}, one has rank {lower}: the product then has a "
                "lower rank; ask for that rank."
            )
    return arrays[0], arrays[1]
