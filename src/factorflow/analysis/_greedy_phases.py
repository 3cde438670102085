"""What greedy low-rank learning found: phases, and the curve they make."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["GreedyPhase", "GreedyTrajectory"]

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class GreedyPhase:
    r"""The flow of one rank, from the critical point of the rank below to its own.

    **Attributes:**

    - `rank`: of the factors that move.
    - `values`: singular values of $-\nabla \ell$ where the phase starts, descending; eigenvalues of
        its symmetric part for `symmetric=True`.
    - `gap`: the second value over the first, 0 if it is negative: the smaller, the faster flows
        approach the curve as their initialization shrinks.
    - `tied`: whether the first value is not simple. Then the direction of the phase, and with it
        the rest of the trajectory, is an arbitrary choice among equals.
    - `times`, `products`, `losses`: rows of the phase, shapes `(rows,)`, `(rows, m, n)` and
        `(rows,)`, evenly spaced along the curve. Times count from the start of the phase; how long
        the escape takes depends on `seed_scale`, the curve does not.
    - `result`: how its flow ended. `converged` where that was at the loss or the gradient norm
        asked for; the last row is a critical point only then.
    - `verdict`: of the flow's certificate.
    - `interpolation_error`: estimate of the distance between rows and the solver's curve.
    """

    rank: int
    values: Array
    gap: float
    tied: bool
    times: Array
    products: Array
    losses: Array
    result: str
    verdict: str
    interpolation_error: float

    @property
    def converged(self) -> bool:
        """Whether the flow ended at the loss or the gradient norm asked for."""
        return self.result in ("loss_reached", "gradient_norm_reached")


@dataclasses.dataclass(frozen=True)
class GreedyTrajectory:
    """The phases of greedy low-rank learning, one after another.

    **Attributes:**

    - `depth`, `symmetric`: as asked for.
    - `phases`: rank 1, 2, ...; empty if nothing leaves zero.
    - `ending`: `"loss"` (reached), `"stationary"` (no direction descends from the last critical
        point), `"max_rank"`, or `"unfinished"` (the last phase did not converge).
    """

    shape: tuple[int, int]
    depth: int
    symmetric: bool
    phases: tuple[GreedyPhase, ...]
    loss_at_zero: float
    ending: str

    @property
    def products(self) -> Array:
        """The rows of all phases, after the zero matrix: shape `(1 + rows, m, n)`."""
        return np.concatenate([np.zeros((1, *self.shape)), *(p.products for p in self.phases)])

    @property
    def ranks(self) -> NDArray[np.intp]:
        """The phase's rank for each of `products`, 0 for the zero matrix."""
        counts = [np.full(len(p.losses), p.rank) for p in self.phases]
        return np.concatenate([np.zeros(1, np.intp), *counts]).astype(np.intp)

    @property
    def losses(self) -> Array:
        """The loss of each of `products`."""
        return np.concatenate([[self.loss_at_zero], *(p.losses for p in self.phases)])

    @property
    def tied(self) -> bool:
        """Whether the direction of any phase was an arbitrary choice."""
        return any(phase.tied for phase in self.phases)
