"""Following a small stiff flow to high accuracy, by collocation in charts."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from factorflow._dynamics.base import AbstractDynamics, AbstractState, where
from factorflow._dynamics.charts.base import AbstractCharts, Position
from factorflow._dynamics.solver.radau import Radau
from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct
from factorflow._results import RESULTS
from factorflow._types import BoolScalar, Factors, FloatArray, FloatScalar, IntScalar, RandomKey

__all__ = ["CollocationFlow", "CollocationState"]

# Halvings of a step until a level is located to rounding.
_BISECTIONS = 60
# Bounds on the ratio of two steps: after an accepted one, after an error that is too large, and
# after Newton's method has failed.
_ACCEPTED, _REJECTED, _DIVERGED = (0.3, 2.5), (0.2, 0.7), 0.3
# A prediction over more than this multiple of the last step is worse than none.
_LONGEST_PREDICTION = 2.6
_FIRST_STEP = 1e-2
# The companion's tolerance, as a multiple: with seven stages its steps are 2.7 times longer. Where
# that would be too coarse to say anything, beyond these tolerances, the companion is the finer one.
_COMPANION, _FINER = 1e3, 1e-2
# Where a companion does not agree, a second one is finer than the run, but no finer than rounding.
_REFINED, _FINEST_ULPS = 0.1, 64.0
_COARSEST = {"float64": 1e-6, "float32": 1e-2}


class CollocationState(AbstractState):
    """The position, and the collocation polynomial of the step that led to it."""

    step: IntScalar
    time: FloatScalar
    loss: FloatScalar
    result: RESULTS
    position: Position
    previous: Position
    previous_time: FloatScalar
    # The length of that step, and what the sum of all lengths has lost to rounding: after a plateau
    # of 1e20 units of time, steps of length one still lead on.
    span: FloatScalar
    part: FloatScalar  # of that length, up to here
    lost: FloatScalar
    stages: FloatArray
    predictable: BoolScalar
    size: FloatScalar  # of the next step; the first, of no length, measures the velocity
    rejected: IntScalar
    iterations: IntScalar
    energy_defect: FloatScalar

    def elapsed(self, before: AbstractState) -> FloatScalar:
        assert isinstance(before, CollocationState)
        return self.part - jnp.where(self.step == before.step, before.part, 0)

    def stats(self) -> dict[str, Any]:
        return {
            "num_steps": self.step,
            "num_rejected": self.rejected,
            "num_newton_iterations": self.iterations,
            "energy_defect": self.energy_defect,
        }


class CollocationFlow(AbstractDynamics):
    """Gradient flow through Radau collocation in the given charts.

    **Arguments:**

    - `charts`: the coordinates.
    - `tolerance`: of a step, relative to the natural size of every coordinate.
    - `stages`: of the collocation.
    """

    charts: AbstractCharts
    tolerance: float
    stages: int = eqx.field(default=7, static=True)

    continuous: ClassVar[bool] = True

    @property
    def integrator_name(self) -> str:
        return self.charts.name

    @property
    def balanced(self) -> bool:
        return self.charts.balanced

    def companion(self) -> "CollocationFlow":
        coarser = self.tolerance * _COMPANION
        limit = _COARSEST[jnp.asarray(self.tolerance).dtype.name] * 1.001
        other = coarser if coarser <= limit else self.tolerance * _FINER
        return eqx.tree_at(lambda flow: flow.tolerance, self, other)

    def refined(self) -> "CollocationFlow":
        dtype = jnp.asarray(self.tolerance).dtype
        finest = _FINEST_ULPS * float(jnp.finfo(dtype).eps)
        finer = jnp.maximum(jnp.asarray(self.tolerance) * _REFINED, jnp.asarray(finest, dtype))
        return eqx.tree_at(lambda flow: flow.tolerance, self, finer)

    def keeps_time(self, factors: Factors) -> bool:
        del factors
        return True

    def resolve(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> "CollocationFlow":
        del problem, factorization, factors  # whoever chose the charts has looked
        return self

    def init(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        factors: Factors,
        key: RandomKey,
    ) -> CollocationState:
        del key
        charts = self.charts
        position = charts.start(factorization, factors)
        frame = position.frame
        loss = charts.on(
            position.kind,
            lambda chart, y: chart.loss(problem, factorization, y, frame),
            position.y,
        )
        zero, none = jnp.zeros_like(loss), jnp.zeros((), jnp.int32)
        return CollocationState(
            step=none,
            time=zero,
            loss=loss,
            result=RESULTS.successful,  # pyright: ignore[reportArgumentType]
            position=position,
            previous=position,
            previous_time=zero,
            span=zero,
            part=zero,
            lost=zero,
            stages=jnp.broadcast_to(position.y, (self.stages, *position.y.shape)),
            predictable=jnp.asarray(False),
            size=zero,
            rejected=none,
            iterations=none,
            energy_defect=zero,
        )

    def advance(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: CollocationState,
        active: jax.Array,
    ) -> CollocationState:
        charts, solver = self.charts, Radau(self.stages)
        start, kind, frame = state.position.y, state.position.kind, state.position.frame
        tolerance = jnp.asarray(self.tolerance, state.loss.dtype)

        def fields(stages):
            def of(chart, stages):
                def field(y):
                    value = chart.field(problem, factorization, y, frame)
                    return value, value

                jacobians, values = jax.vmap(jax.jacfwd(field, has_aux=True))(stages)
                return values, jacobians

            return charts.on(kind, of, stages)

        scale = charts.on(
            kind, lambda chart, y: chart.scale(problem, factorization, y, frame), start
        )
        ratio = state.size / jnp.where(state.span > 0, state.span, 1)
        constant = jnp.broadcast_to(start, state.stages.shape)
        predicted = solver.predict(state.previous.y, state.stages, ratio)
        # Predictions across a change of charts are not used.
        predicted = charts.reexpressed(factorization, predicted, state.previous, frame)
        good = state.predictable & (ratio < _LONGEST_PREDICTION)
        guess = jnp.where(good, predicted, constant)
        step = solver.step(fields, start, state.size, guess, scale, tolerance, active)

        smooth = jnp.maximum(step.error, jnp.finfo(scale.dtype).tiny)
        factor = 0.9 * (tolerance / smooth) ** (1 / self.stages)
        first = (state.size <= 0) & (state.rejected == 0)
        keep = step.converged & (step.error <= 10 * tolerance) & ~first
        refused = jnp.where(step.converged, jnp.clip(factor, *_REJECTED), _DIVERGED)
        size = state.size * jnp.where(keep, jnp.clip(factor, *_ACCEPTED), refused)
        size = jnp.where(first, _FIRST_STEP / jnp.where(step.rate > 0, step.rate, 1), size)
        gained = state.size + state.lost
        time = state.time + gained
        # Whoever follows the run sees to it that it is not refused for ever.
        stuck = ~jnp.isfinite(size) | (size <= 0)

        # The identity dl/dt = -|gradient|^2 over the step, relative to the loss.
        def arrive(chart, stages):
            there, end = (problem, factorization), stages[-1]
            return (
                jax.vmap(lambda y: chart.dissipation(*there, y, frame))(stages),
                chart.loss(*there, end, frame),
                charts.leave(chart, *there, end, frame),
                charts.rests(chart, *there, end, frame),
            )

        rates, loss, position, rests = charts.on(kind, arrive, step.stages)
        spent = state.size * solver.quadrature(rates)
        defect = jnp.abs(spent - (state.loss - loss)) / state.loss
        moved = CollocationState(
            step=state.step + 1,
            time=time,
            loss=loss,
            result=RESULTS.where(rests, RESULTS.wrong_branch, state.result),
            position=position,
            previous=state.position,
            previous_time=state.time,
            span=state.size,
            part=state.size,
            lost=gained - (time - state.time),
            stages=step.stages,
            predictable=position.kind == kind,
            size=size,
            rejected=state.rejected,
            iterations=state.iterations + step.iterations,
            energy_defect=jnp.maximum(state.energy_defect, defect),
        )
        rejected = state.rejected + jnp.where(first, 0, 1).astype(jnp.int32)
        stayed = eqx.tree_at(
            lambda s: (s.size, s.rejected, s.iterations, s.predictable),
            state,
            (size, rejected, moved.iterations, state.predictable & step.converged),
        )
        following = where(keep, moved, stayed)
        result = RESULTS.where(stuck, RESULTS.step_size_underflow, following.result)
        result = RESULTS.where(keep & jnp.isinf(size), RESULTS.came_to_rest, result)
        following = eqx.tree_at(lambda s: s.result, following, result)
        return where(active, following, state)

    def gradient_norm(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: CollocationState,
    ) -> FloatScalar:
        return jnp.sqrt(self._here(problem, factorization, state.position, "dissipation"))

    def product(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: CollocationState,
    ) -> AbstractProduct:
        return self._here(problem, factorization, state.position, "product")

    def factors(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: CollocationState,
    ) -> Factors:
        return self._here(problem, factorization, state.position, "factors")

    def locate(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: CollocationState,
        *,
        time: FloatScalar | None = None,
        loss: FloatScalar | None = None,
    ) -> CollocationState:
        solver, before = Radau(self.stages), state.previous
        span = state.span

        def at(share) -> Position:
            y = solver.interpolate(before.y, state.stages, share)
            return Position(y, before.kind, before.frame)

        if time is not None:
            share = (time - state.previous_time) / jnp.where(span > 0, span, 1)
            share = jnp.clip(share, 0, 1)
            found = self._here(problem, factorization, at(share), "loss")
        elif loss is not None:

            def halve(_, bracket):
                low, high, found = bracket
                middle = (low + high) / 2
                new = self._here(problem, factorization, at(middle), "loss")
                above = new > loss
                return (
                    jnp.where(above, middle, low),
                    jnp.where(above, high, middle),
                    jnp.where(above, found, new),
                )

            ends = jnp.zeros_like(span), jnp.ones_like(span), state.loss
            _, share, found = lax.fori_loop(0, _BISECTIONS, halve, ends)
        else:
            return state
        # The ends themselves are states, in charts of their own.
        beginning, end = share <= 0, share >= 1
        position = at(share)
        there = eqx.tree_at(
            lambda s: (s.time, s.part, s.loss, s.position),
            state,
            (
                jnp.where(beginning, state.previous_time, state.previous_time + share * span),
                share * span,
                found,
                position,
            ),
        )
        return where(end | (span <= 0), state, there)

    def _here(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        position: Position,
        what: str,
    ) -> Any:
        return self.charts.on(
            position.kind,
            lambda chart, y: getattr(chart, what)(problem, factorization, y, position.frame),
            position.y,
        )
