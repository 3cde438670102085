"""The named completion problems of the field."""

import math

import jax
import jax.core
import numpy as np

from factorflow._memory import refuse_too_large
from factorflow._problem.base import AbstractProblem
from factorflow._problem.completion import Completion
from factorflow._problem.ground_truth import (
    check_at_least_one,
    eager_or_traced,
    low_rank,
    rescaled,
)
from factorflow._random import check_key
from factorflow._settings import own_settings
from factorflow._types import Penalty, RandomKey

__all__ = [
    "block_completion_problem",
    "connected_completion_problem",
    "random_low_rank_problem",
    "razin_cohen_parameters",
    "razin_cohen_problem",
]


@own_settings()
def razin_cohen_problem(
    dim: int = 2, z: float = 1.0, z_prime: float = 1.0, eps: float = 0.0
) -> Completion:
    r"""The completion problem on which every norm is driven to infinity.

    All entries of a `dim` x `dim` matrix but (1, 1) are observed:
    $w_{12} = z$, $w_{21} = z'$, $w_{22} = \epsilon$; from the third row on ones on the diagonal
    and zeros elsewhere. The loss is half the sum of squares. For $\epsilon = 0$ every exact
    solution has determinant $-z z'$, so a product whose determinant has the sign of $z z'$ can
    only approach zero loss at infinity.

    **Arguments:**

    - `dim`: 2 or more.
    - `z`, `z_prime`: the off-diagonal observations, finite.
    - `eps`: the observation at (2, 2), finite.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> ff.razin_cohen_problem().observed_entries().tolist()
        [[0.0, 1.0], [1.0, 0.0]]

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{razin2020implicit,
            author = {Razin, Noam and Cohen, Nadav},
            title = {Implicit Regularization in Deep Learning May Not Be Explainable by Norms},
            booktitle = {Advances in Neural Information Processing Systems},
            year = {2020},
        }
        ```
    """
    if dim < 2:
        raise ValueError(f"dim must be 2 or more, got {dim}.")
    # Indices and values, with room to check them.
    refuse_too_large(
        6 * dim**2, f"razin_cohen_problem(dim={dim}), all but one entry,", "Give a smaller dim."
    )
    observed = np.eye(dim)
    observed[:2, :2] = [[0.0, z], [z_prime, eps]]
    indices = np.argwhere(np.arange(dim**2).reshape(dim, dim) > 0)
    return Completion((dim, dim), indices, observed[tuple(indices.T)])


def razin_cohen_parameters(problem: AbstractProblem) -> tuple[int, float, float, float] | None:
    """`dim`, `z`, `z_prime` and `eps` of a `razin_cohen_problem`; `None` for any other problem."""
    if not isinstance(problem, Completion) or problem.masked is None or len(problem.shape) != 2:
        return None
    squares = problem.penalty == "squared" and problem.normalization == "half_sum"
    dim = problem.shape[0]
    if not squares or problem.shape != (dim, dim) or dim < 2:
        return None
    weights, values = (np.asarray(array) for array in problem.masked)
    expected, observed = np.eye(dim), np.ones((dim, dim))
    expected[:2, :2], observed[0, 0] = values[:2, :2], 0
    if not np.array_equal(weights, observed) or not np.array_equal(values, expected):
        return None
    return dim, float(values[0, 1]), float(values[1, 0]), float(values[1, 1])


@own_settings()
def random_low_rank_problem(
    key: RandomKey,
    shape: tuple[int, ...] = (100, 100),
    rank: int = 5,
    n_observed: int = 2000,
    *,
    frobenius_norm: float | None = None,
    normalization: str = "half_sum",
    loss: str | Penalty = "squared",
    room: int | None = None,
) -> Completion:
    r"""Random entries of a random low-rank matrix, or low-CP-rank tensor.

    The ground truth is $\sum_{r} a_r^1 \otimes \dots \otimes a_r^N$ with standard Gaussian factors,
    rescaled to `frobenius_norm`, by default $\sqrt{\prod_n d_n}$ (unit mean square entry). Observed
    entries are drawn uniformly without replacement.

    **Arguments:**

    - `key`: a JAX random key.
    - `shape`: shape of the ground truth.
    - `rank`: its number of components, 1 or more.
    - `n_observed`: number of observed entries.
    - `frobenius_norm`: Frobenius norm of the ground truth.
    - `normalization`, `loss`, `room`: as for `Completion`.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> problem = ff.random_low_rank_problem(jax.random.key(0), (6, 4), rank=1, n_observed=9)
        >>> problem.shape, problem.values.shape
        ((6, 4), (9,))

        ```
    """
    check_key(key)
    size = math.prod(shape)
    check_at_least_one(rank=rank)
    if not 1 <= n_observed <= size:
        raise ValueError(
            f"n_observed must be between 1 and the {size} entries of shape {shape}, got "
            f"{n_observed}."
        )
    factor_key, entry_key = jax.random.split(key)
    target = rescaled(low_rank(factor_key, tuple(shape), rank), frobenius_norm)
    array = eager_or_traced(target)
    flat = array.asarray(jax.random.permutation(entry_key, size))[:n_observed]
    indices = array.stack(array.unravel_index(flat, tuple(shape)), axis=-1)
    values = array.asarray(target)[tuple(indices.T)]
    return Completion(
        tuple(shape), indices, values, target, normalization=normalization, loss=loss, room=room
    )


@own_settings()
def block_completion_problem(
    key: RandomKey,
    rows: tuple[int, ...] = (3, 3),
    columns: tuple[int, ...] = (3, 3),
    rank: int = 1,
    *,
    frobenius_norm: float | None = None,
    normalization: str = "half_sum",
    room: int | None = None,
) -> Completion:
    r"""Completion of a random low-rank matrix whose blocks on the diagonal are observed.

    $$\Omega = \bigcup_k R_k \times C_k$$

    with disjoint $R_k$ of `rows[k]` rows and $C_k$ of `columns[k]` columns: a disconnected graph of
    observations with complete components. The ground truth is a solution of lowest rank. The
    nuclear norm is least where the hidden blocks are zero (and elsewhere), at the sum of the norms
    of the observed blocks.

    **Arguments:**

    - `key`: a JAX random key.
    - `rows`, `columns`: the sizes of the observed blocks, from the top left on.
    - `rank`, `frobenius_norm`, `normalization`, `room`: as for `random_low_rank_problem`.

    **Returns:** a `Completion` of shape `(sum(rows), sum(columns))`.

    **Raises:** `ValueError` for block sizes below 1 or of different numbers, and a rank below 1.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> from factorflow.reference import observation_graph
        >>> problem = ff.block_completion_problem(jax.random.key(0), (2, 3), (3, 2))
        >>> problem.shape, observation_graph(problem).disconnected_complete
        ((5, 5), True)

        ```
    """
    check_key(key)
    if not rows or len(rows) != len(columns) or min(*rows, *columns) < 1:
        raise ValueError(
            f"rows and columns need one size of 1 or more per block, got {rows} and {columns}."
        )
    check_at_least_one(rank=rank)
    shape = (sum(rows), sum(columns))
    target = rescaled(low_rank(key, shape, rank), frobenius_norm)
    owners = [np.repeat(np.arange(len(sizes)), sizes) for sizes in (rows, columns)]
    indices = np.argwhere(owners[0][:, None] == owners[1][None, :])
    values = target[tuple(indices.T)]
    return Completion(shape, indices, values, target, normalization=normalization, room=room)


@own_settings()
def connected_completion_problem(
    key: RandomKey,
    shape: tuple[int, int] = (6, 5),
    rank: int = 1,
    n_observed: int = 10,
    *,
    frobenius_norm: float | None = None,
    normalization: str = "half_sum",
    room: int | None = None,
) -> Completion:
    r"""Completion of a random low-rank matrix whose observations form a connected graph.

    Entries are put in random order. Those that join two parts of the graph (rows and columns are
    vertices, observed entries edges) are observed first: a spanning tree of $d_1 + d_2 - 1$
    entries. The others follow, in the same order.

    **Arguments:**

    - `key`: a JAX random key.
    - `shape`: rows and columns.
    - `n_observed`: number of observed entries, `rows + columns - 1` or more.
    - `rank`, `frobenius_norm`, `normalization`, `room`: as for `random_low_rank_problem`.

    **Returns:** a `Completion`.

    **Raises:** `ValueError` for fewer observations than connect, and a rank below 1.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> from factorflow.reference import observation_graph
        >>> problem = ff.connected_completion_problem(jax.random.key(0), (6, 5), n_observed=10)
        >>> observation_graph(problem).connected
        True

        ```
    """
    check_key(key)
    size, least = math.prod(shape), sum(shape) - 1
    if not least <= n_observed <= size:
        raise ValueError(
            f"n_observed must be between {least}, which connect, and the {size} entries of shape "
            f"{shape}, got {n_observed}."
        )
    check_at_least_one(rank=rank)
    factor_key, entry_key = jax.random.split(key)
    target = rescaled(low_rank(factor_key, shape, rank), frobenius_norm)
    places = np.asarray(jax.random.permutation(entry_key, size)).reshape(shape)
    tree = _spanning_tree(places)
    order = np.where(tree, places - size, places).ravel()
    indices = np.stack(np.unravel_index(np.argsort(order)[:n_observed], shape), axis=-1)
    values = target[tuple(indices.T)]
    return Completion(shape, indices, values, target, normalization=normalization, room=room)


def _spanning_tree(places: np.ndarray) -> np.ndarray:
    """Which entries join two parts of the bipartite graph, the lowest places first."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    rows, columns = places.shape
    weights = np.zeros((rows + columns, rows + columns))
    weights[:rows, rows:] = places + 1  # zero stands for no edge
    return minimum_spanning_tree(csr_array(weights)).toarray()[:rows, rows:] > 0
