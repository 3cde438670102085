r"""Whether observed entries allow a matrix of rank one, attained or in the limit: decided exactly.

For rank one, $\log |w_{ij}| = a_i + b_j$: along the nonzero observations of a connected component
one row's $a$ fixes all others, every cycle is a test, and an observed zero demands a sum that
tends to minus infinity. That leaves a system of differences between components.
"""

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ["RankOne", "rank_one"]

# Components between which zeros are compared: the work grows with the cube of their number.
_MOST_COMPONENTS = 400


@dataclass(frozen=True, eq=False)
class RankOne:
    """What rank one can and cannot do on observed entries.

    **Attributes:**

    - `out_of_reach`: proof that no matrix of rank one has a residual of at most `delta`.
    - `unattained`: proof that none fits exactly.
    - `left_logs`, `right_logs`, `left_signs`, `right_signs`: factors that fit the nonzero entries
        along a spanning forest; sign 0 is a factor of zero.
    - `left_levels`, `right_levels`: powers of a growing number that send the observed zeros to
        zero; all 0 where they already are.
    """

    out_of_reach: bool
    unattained: bool
    left_logs: NDArray[np.float64]
    right_logs: NDArray[np.float64]
    left_signs: NDArray[np.float64]
    right_signs: NDArray[np.float64]
    left_levels: NDArray[np.float64]
    right_levels: NDArray[np.float64]

    @property
    def moves(self) -> bool:
        """Whether the family depends on its parameter."""
        return bool(np.any(self.left_levels) or np.any(self.right_levels))

    def factors(self, parameter: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Columns `u`, `v` at the parameter; the limit to infinity sends the zeros to zero."""
        log = np.log(parameter)
        left = self.left_signs * np.exp(self.left_logs + log * self.left_levels)
        right = self.right_signs * np.exp(self.right_logs + log * self.right_levels)
        return left[:, None], right[:, None]


def rank_one(mask: NDArray[np.bool_], values: NDArray[np.float64], delta: float) -> RankOne:
    """Decide rank one for entries `values` where `mask`, against a residual norm `delta` > 0."""
    firm = mask & (np.abs(values) > delta)
    forest = _Forest(firm, values, delta)
    nonzero = mask & (values != 0)
    busy = np.ix_(np.any(nonzero, axis=1), np.any(nonzero, axis=0))
    # An exact zero needs a zero factor, and neither factor can be zero.
    clash = bool(np.any((mask & (values == 0))[busy]))
    out_of_reach = forest.contradicts(mask, firm, values, delta)
    exact = _Forest(nonzero, values, 0.0)
    left_levels, right_levels = exact.levels(mask & (values == 0))
    rows = mask.shape[0]
    signs = np.where(exact.alone, 0.0, exact.signs)
    return RankOne(
        out_of_reach,
        out_of_reach or clash,
        exact.logs[:rows],
        exact.logs[rows:],
        signs[:rows],
        signs[rows:],
        left_levels,
        right_levels,
    )


class _Forest:
    """Factors along a spanning forest of the graph of given entries, with their uncertainty."""

    def __init__(self, edges: NDArray[np.bool_], values: NDArray[np.float64], delta: float):
        rows, columns = edges.shape
        self.rows, self.size = rows, rows + columns
        self.logs, self.slack = np.zeros(self.size), np.zeros(self.size)
        self.signs, self.labels = np.ones(self.size), np.full(self.size, -1)
        starts, ends = np.nonzero(edges)
        graph = scipy.sparse.coo_array(
            (np.ones(starts.size), (starts, rows + ends)), shape=(self.size,) * 2
        )
        graph = graph.tocsr()
        self.alone = np.append(~np.any(edges, axis=1), ~np.any(edges, axis=0))
        self.count = 0
        for root in range(self.size):
            if self.labels[root] >= 0:
                continue
            order, parents = scipy.sparse.csgraph.breadth_first_order(graph, root, directed=False)
            for vertex in order:
                self.labels[vertex] = self.count
                if vertex == root:
                    continue
                parent = parents[vertex]
                row, column = min(vertex, parent), max(vertex, parent) - rows
                entry = values[row, column]
                self.logs[vertex] = np.log(abs(entry)) - self.logs[parent]
                self.signs[vertex] = np.sign(entry) * self.signs[parent]
                self.slack[vertex] = self.slack[parent] - np.log1p(-delta / abs(entry))
            self._center(order)
            self.count += 1

    def _center(self, members: NDArray) -> None:
        """Split the size of a component evenly, so that neither factor overflows."""
        left, right = members[members < self.rows], members[members >= self.rows]
        if left.size and right.size:
            shift = (np.mean(self.logs[right]) - np.mean(self.logs[left])) / 2
            self.logs[left] += shift
            self.logs[right] -= shift

    def contradicts(
        self,
        mask: NDArray[np.bool_],
        firm: NDArray[np.bool_],
        values: NDArray[np.float64],
        delta: float,
    ) -> bool:
        """Whether no rank-one matrix is within `delta` of every entry."""
        left, right = np.nonzero(mask)
        logs = self.logs[left] + self.logs[self.rows + right]
        # Rounding of sums of logarithms along paths, generously.
        slack = self.slack[left] + self.slack[self.rows + right] + 1e-12 * (1 + np.abs(logs))
        sizes, solid = np.abs(values[left, right]), firm[left, right]
        signs = self.signs[left] * self.signs[self.rows + right]
        if np.any(signs[solid] != np.sign(values[left, right][solid])):
            return True
        own = -np.log1p(-delta / sizes[solid])
        if np.any(np.abs(np.log(sizes[solid]) - logs[solid]) > slack[solid] + own):
            return True
        # A faint entry bounds the difference of its components: x_c - x_d <= room. No solution
        # exists exactly if the rooms around some cycle add up to less than nothing.
        faint = ~solid
        room = np.log(sizes[faint] + delta) - logs[faint] + slack[faint]
        tails, heads = self.labels[left[faint]], self.labels[self.rows + right[faint]]
        if np.any(room[tails == heads] < 0):
            return True
        busy = np.unique(np.concatenate([tails, heads]))
        if busy.size < 2 or busy.size > _MOST_COMPONENTS:
            return False
        rooms = np.full((busy.size, busy.size), np.inf)
        np.minimum.at(rooms, (np.searchsorted(busy, tails), np.searchsorted(busy, heads)), room)
        np.fill_diagonal(rooms, np.inf)
        try:
            scipy.sparse.csgraph.floyd_warshall(rooms)
        except scipy.sparse.csgraph.NegativeCycleError:
            return True
        return False

    def levels(self, zeros: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Powers per row and column: the longest chains of zeros between busy components."""
        left, right = np.nonzero(zeros)
        kept = ~self.alone[left] & ~self.alone[self.rows + right]
        tails, heads = self.labels[left[kept]], self.labels[self.rows + right[kept]]
        powers = np.zeros(self.count)
        for _ in range(self.count):
            raised = powers.copy()
            np.maximum.at(raised, heads, powers[tails] + 1)
            if np.array_equal(raised, powers):
                break
            powers = raised
        else:
            # A cycle of zeros: no powers do it.
            powers[:] = 0
        of = powers[self.labels]
        return of[: self.rows], -of[self.rows :]
