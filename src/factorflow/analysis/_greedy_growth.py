"""How greedy low-rank learning grows: directions, seeds, and the flow of each rank."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from factorflow._certify import Certify
from factorflow._dynamics import GradientFlow
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._factorization.deep_matrix import balanced_from_spectrum
from factorflow._measure import Measure, Snapshot
from factorflow._observe import AtSteps, Stop
from factorflow._problem import AbstractProblem
from factorflow._product import Dense, Factored
from factorflow._simulate import simulate
from factorflow._trajectory import Trajectory
from factorflow._types import Factors, FloatArray
from factorflow.analysis._greedy_curves import interpolation_error, resampled
from factorflow.analysis._greedy_mirrored import MirroredMatrix
from factorflow.analysis._greedy_phases import GreedyPhase, GreedyTrajectory

__all__ = ["Growth"]

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Growth:
    """What all phases share; see `greedy_low_rank` for the fields."""

    problem: AbstractProblem
    deep: DeepMatrix
    symmetric: bool
    seed_scale: float
    gradient_norm: float
    tie_tolerance: float
    rows: int
    max_steps: int
    dynamics: GradientFlow
    certify: Certify

    def grow(self, loss: float | None) -> GreedyTrajectory:
        """All phases, from zero on."""
        shape, depth, max_rank = self.deep.shape, self.deep.depth, self.deep.hidden_widths[0]
        product = np.zeros(shape)
        at_zero = float(self.losses(product[None])[0])
        goal = max(1e-8 * at_zero, np.finfo(float).tiny) if loss is None else loss
        phases: list[GreedyPhase] = []
        unit = 0.0
        ending = "loss" if at_zero <= goal else "max_rank"
        while ending == "max_rank" and len(phases) < max_rank:
            values, left, right = self._directions(self.descent(product))
            unit = unit or float(values[0])
            if not values[0] > 10 * self.gradient_norm * unit:
                ending = "stationary"
                break
            # The size of a solution: exact where all entries are observed and its rank is 1.
            size = 2 * at_zero / unit
            seed = self.seed_scale * size
            power = 1 - 1 / depth
            # The seed's own gradient must not count as none.
            stationary = min(self.gradient_norm * unit * size**power, 0.1 * values[0] * seed**power)
            factors = self._factors(product + seed * np.outer(left, right), len(phases) + 1)
            trajectory = self._flow(factors, goal, float(stationary))
            phases.append(self._phase(len(phases) + 1, values, trajectory))
            product = phases[-1].products[-1]
            if phases[-1].result == "loss_reached":
                ending = "loss"
            elif not phases[-1].converged:
                ending = "unfinished"
        return GreedyTrajectory(shape, depth, self.symmetric, tuple(phases), at_zero, ending)

    def descent(self, product: Array) -> Array:
        """The negative gradient of the loss at a product."""
        descent = -np.asarray(self._compiled[0](jnp.asarray(product)))
        return (descent + descent.T) / 2 if self.symmetric else descent

    def losses(self, products: Array) -> Array:
        """The loss of each product."""
        return np.asarray(self._compiled[1](jnp.asarray(products)))

    @cached_property
    def _compiled(self) -> tuple[Any, Any]:
        def loss(array):
            return self.problem.loss(Dense(array))

        return jax.jit(jax.grad(loss)), jax.jit(jax.vmap(loss))

    def _directions(self, descent: Array) -> tuple[Array, Array, Array]:
        """Values, descending, and the leading left and right vectors."""
        if self.symmetric:
            values, vectors = np.linalg.eigh(descent)
            return values[::-1], vectors[:, -1], vectors[:, -1]
        left, values, right = np.linalg.svd(descent)
        return values, left[:, 0], right[0]

    def _factors(self, product: Array, rank: int) -> tuple[jax.Array, ...]:
        """Balanced factors of a product of this rank, zero beyond it."""
        room = self.deep.hidden_widths[0]
        if isinstance(self.factorization, MirroredMatrix):
            values, vectors = np.linalg.eigh(product)
            kept = np.append(values[::-1][:rank], np.zeros(room - rank))
            return self.factorization.balanced(
                jnp.asarray(vectors[:, ::-1][:, :room]), jnp.asarray(kept)
            )
        left, values, right = np.linalg.svd(product)
        logs = np.full(room, -np.inf)
        logs[:rank] = np.log(values[:rank])
        arrays = left[:, :room], logs, right[:room]
        return balanced_from_spectrum(self.deep, *(jnp.asarray(array) for array in arrays))

    @cached_property
    def factorization(self) -> DeepMatrix | MirroredMatrix:
        """What the flow's factors belong to."""
        return MirroredMatrix(self.deep) if self.symmetric else self.deep

    def _flow(self, factors: Factors, goal: float, stationary: float) -> Trajectory:
        return simulate(
            self.problem,
            self.factorization,
            self.dynamics,
            factors,
            # The solver's own steps are close where the curve bends.
            observe=AtSteps(range(self.max_steps + 1)),
            stop=Stop(loss=goal, gradient_norm=stationary, max_steps=self.max_steps),
            measures=(_FACTORS,),
            certify=self.certify,
            throw=False,
        )

    def _phase(self, rank: int, values: Array, trajectory: Trajectory) -> GreedyPhase:
        times, products, velocities = self._steps(trajectory)
        moments, points = resampled(times, products, velocities, self.rows)
        second = float(values[1]) if len(values) > 1 else 0.0
        gap = max(second, 0.0) / float(values[0])
        return GreedyPhase(
            rank=rank,
            values=values,
            gap=gap,
            tied=gap >= 1 - self.tie_tolerance,
            times=moments,
            products=points,
            losses=self.losses(points),
            result=trajectory.result_name,
            verdict=trajectory.certificate.verdict,
            interpolation_error=interpolation_error(times, products, velocities),
        )

    def _steps(self, trajectory: Trajectory) -> tuple[Array, Array, Array]:
        """Times, products and velocities of the steps, and of the end within the last one."""
        end = float(trajectory.stats["time"])
        # A loss is reached within a step.
        reached = np.asarray(trajectory.reached) & (np.asarray(trajectory.times) < end)
        last, unravel = ravel_pytree(trajectory.factors)
        # Every slot, reached or not: one shape, one compilation for all phases.
        rows = np.concatenate([trajectory.measures[_FACTORS.name], np.asarray(last)[None]])
        moving = eqx.filter_jit(eqx.filter_vmap(_moving, in_axes=(None, None, None, 0)))
        kept = np.append(reached, True) & np.all(np.isfinite(rows), axis=1)
        products, velocities = (
            np.asarray(array)[kept]
            for array in moving(self.problem, self.factorization, unravel, jnp.asarray(rows))
        )
        return np.append(np.asarray(trajectory.times), end)[kept], products, velocities


def _flattened(snapshot: Snapshot) -> FloatArray:
    return ravel_pytree(snapshot.factors)[0]


# Products and velocities follow from them outside of the flow, whose compilation is the slowest.
_FACTORS = Measure("factors", _flattened, ("parameter",))


def _moving(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    unravel: Callable[[FloatArray], Factors],
    flattened: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The product, and how fast gradient flow of the factors moves it."""
    factors = unravel(flattened)
    gradient = jax.grad(lambda y: problem.loss(Factored(factorization, y)))(factors)
    return jax.jvp(factorization.compose, (factors,), (jax.tree.map(jnp.negative, gradient),))
