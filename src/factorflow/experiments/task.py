"""Tasks: problems by name and numbers, built from a key."""

import abc

import equinox as eqx

from factorflow._problem import AbstractProblem, random_low_rank_problem, razin_cohen_problem
from factorflow._types import RandomKey

__all__ = ["TASKS", "AbstractTask", "RandomLowRankTask", "RazinCohenTask"]


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


TASKS = (RazinCohenTask, RandomLowRankTask)
