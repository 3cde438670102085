"""Anderson extrapolation of a fixed-point iteration, with a way back."""

import numpy as np

__all__ = ["Extrapolation"]

# How many slow directions are removed at once: each costs the memory of one iterate.
_MEMORY = 8


class Extrapolation:
    """Where to apply a nonexpansive map next, given where it was applied and what came out.

    The next point is the affine combination of the last results whose moves, combined alike,
    cancel best. Near a solution, where the map is nearly affine, that removes the slowest
    directions. Elsewhere it may lead astray: a point from which the map moves further than from
    the one before is given up for the plain result, and the memory with it. So the iteration
    converges as without.
    """

    def __init__(self):
        self._moves: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._least = np.inf

    def restart(self) -> None:
        """Forget, as the map has changed."""
        self.__init__()

    def following(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The next point, after the map took `start` to `end`."""
        move = (end - start).ravel()
        size = float(np.linalg.norm(move))
        if self._moves and size > self._least:
            plain = self._ends[-1]
            self._moves, self._ends = [], []
            return plain
        self._least = size
        self._moves = [*self._moves[-_MEMORY:], move]
        self._ends = [*self._ends[-_MEMORY:], end]
        if len(self._moves) == 1:
            return end
        moves = np.diff(np.stack(self._moves, axis=1), axis=1)
        shares = np.linalg.lstsq(moves, move, rcond=1e-10)[0]
        ends = np.diff(np.stack(self._ends, axis=0), axis=0)
        return end - np.tensordot(shares, ends, axes=1)
