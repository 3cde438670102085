"""Tasks: problems by name and numbers, built from a key."""

import abc

import equinox as eqx

from factorflow._problem import (
    AbstractProblem,
    block_completion_problem,
    commuting_sensing_problem,
    connected_completion_problem,
    random_low_rank_problem,
    random_sensing_problem,
    razin_cohen_problem,
)
from factorflow._types import RandomKey

__all__ = [
    "TASKS",
    "AbstractTask",
    "BlockCompletionTask",
    "CommutingSensingTask",
    "ConnectedCompletionTask",
    "RandomLowRankTask",
    "RandomSensingTask",
    "RazinCohenTask",
]


class AbstractTask(eqx.Module):
    """A recipe for a problem. To add one, subclass, implement `build`, and list it in `TASKS`."""

    @abc.abstractmethod
    def build(self, key: RandomKey) -> AbstractProblem:
        """The problem; random ones draw everything from `key`."""


class RazinCohenTask(AbstractTask):
    """2x2 or d x d completion on which every norm diverges: `razin_cohen_problem`."""

    dim: int = eqx.field(static=True, default=2)
    z: float = 1.0
    z_prime: float = 1.0
    eps: float = 0.0

    def build(self, key: RandomKey) -> AbstractProblem:
        del key
        return razin_cohen_problem(self.dim, self.z, self.z_prime, self.eps)


class RandomLowRankTask(AbstractTask):
    """Completion of a random low-rank matrix or tensor: `random_low_rank_problem`.

    With `room`, to which observations are padded, a sweep over `n_observed` compiles once.
    """

    shape: tuple[int, ...] = eqx.field(static=True, default=(100, 100))
    rank: int = eqx.field(static=True, default=5)
    n_observed: int = eqx.field(static=True, default=2000)
    frobenius_norm: float | None = None
    normalization: str = eqx.field(static=True, default="half_sum")
    loss: str = eqx.field(static=True, default="squared")
    room: int | None = eqx.field(static=True, default=None)

    def build(self, key: RandomKey) -> AbstractProblem:
        return random_low_rank_problem(
            key,
            tuple(self.shape),
            self.rank,
            self.n_observed,
            frobenius_norm=self.frobenius_norm,
            normalization=self.normalization,
            loss=self.loss,
            room=self.room,
        )


class BlockCompletionTask(AbstractTask):
    """Completion with blocks on the diagonal observed: `block_completion_problem`."""

    rows: tuple[int, ...] = eqx.field(static=True, default=(3, 3))
    columns: tuple[int, ...] = eqx.field(static=True, default=(3, 3))
    rank: int = eqx.field(static=True, default=1)
    frobenius_norm: float | None = None
    normalization: str = eqx.field(static=True, default="half_sum")
    room: int | None = eqx.field(static=True, default=None)

    def build(self, key: RandomKey) -> AbstractProblem:
        return block_completion_problem(
            key,
            tuple(self.rows),
            tuple(self.columns),
            self.rank,
            frobenius_norm=self.frobenius_norm,
            normalization=self.normalization,
            room=self.room,
        )


class ConnectedCompletionTask(AbstractTask):
    """Completion with a connected graph of observations: `connected_completion_problem`."""

    shape: tuple[int, int] = eqx.field(static=True, default=(6, 5))
    rank: int = eqx.field(static=True, default=1)
    n_observed: int = eqx.field(static=True, default=10)
    frobenius_norm: float | None = None
    normalization: str = eqx.field(static=True, default="half_sum")
    room: int | None = eqx.field(static=True, default=None)

    def build(self, key: RandomKey) -> AbstractProblem:
        rows, columns = self.shape
        return connected_completion_problem(
            key,
            (rows, columns),
            self.rank,
            self.n_observed,
            frobenius_norm=self.frobenius_norm,
            normalization=self.normalization,
            room=self.room,
        )


class RandomSensingTask(AbstractTask):
    """Gaussian measurements of a random low-rank matrix or tensor: `random_sensing_problem`."""

    shape: tuple[int, ...] = eqx.field(static=True, default=(10, 10))
    rank: int = eqx.field(static=True, default=2)
    n_measurements: int = eqx.field(static=True, default=60)
    semidefinite: bool = eqx.field(static=True, default=False)
    frobenius_norm: float | None = None
    normalization: str = eqx.field(static=True, default="half_sum")

    def build(self, key: RandomKey) -> AbstractProblem:
        return random_sensing_problem(
            key,
            tuple(self.shape),
            self.rank,
            self.n_measurements,
            semidefinite=self.semidefinite,
            frobenius_norm=self.frobenius_norm,
            normalization=self.normalization,
        )


class CommutingSensingTask(AbstractTask):
    """Commuting measurements of a semidefinite matrix: `commuting_sensing_problem`.

    With `basis="random"` they commute up to rounding only, which tiny starts do not survive.
    """

    dim: int = eqx.field(static=True, default=10)
    rank: int = eqx.field(static=True, default=2)
    n_measurements: int = eqx.field(static=True, default=5)
    basis: str = eqx.field(static=True, default="identity")
    frobenius_norm: float | None = None
    normalization: str = eqx.field(static=True, default="half_sum")

    def build(self, key: RandomKey) -> AbstractProblem:
        return commuting_sensing_problem(
            key,
            self.dim,
            self.rank,
            self.n_measurements,
            basis=self.basis,
            frobenius_norm=self.frobenius_norm,
            normalization=self.normalization,
        )


TASKS = (
    RazinCohenTask,
    RandomLowRankTask,
    BlockCompletionTask,
    ConnectedCompletionTask,
    RandomSensingTask,
    CommutingSensingTask,
)
