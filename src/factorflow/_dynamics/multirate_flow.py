"""Gradient flow of CP factors with several clocks: across plateaus, small components move alone."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics.base import AbstractDynamics, tree_norm, where
from factorflow._dynamics.integrators import check_tolerances
from factorflow._dynamics.multirate_phases import (
    FAST,
    Clock,
    MultirateState,
    Phases,
    columns,
    merged,
    when,
)
from factorflow._factorization import CP, AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct, Factored
from factorflow._results import RESULTS
from factorflow._types import Factors, FloatScalar, RandomKey

__all__ = ["MultirateFlow"]

# Relative tolerance per step; the absolute one is this times the size of the start's entries, so
# that small components are followed as accurately as large ones.
_RTOL = {"float64": 1e-6, "float32": 1e-3}
# Relative error of what a phase leaves out: coarser values err by percents on some problems.
_TOLERANCE = {"float64": 1e-5, "float32": 1e-2}
# For the refined flow that a run is compared with.
_REFINED = 10.0


class MultirateFlow(AbstractDynamics):
    r"""Gradient flow of a CP factorization that crosses plateaus with several clocks.

    From a small initialization of scale $\epsilon$ the components of a CP factorization of order N
    wait for times of order $\epsilon^{2-N}$ before one after the other escapes, while those that
    have escaped are at rest and make the equations stiff. Three phases follow one another:

    - *full*: all components move, as in `GradientFlow`;
    - *fast*: the large components relax alone while the small ones rest;
    - *slow*: the small components move alone, independent of each other, under the force
        $-\nabla\ell$ of the large ones at rest, until one of them escapes.

    **Error control.** Small are the components whose norms $\prod_n \|a_r^n\|$ sum to less than
    `tolerance` times the norm of the residual: in a slow phase, which ends when they no longer do,
    the force and with it their velocities err by that share. A fast phase is entered when the
    change of the force during the relaxation (estimated from how fast the loss and the gradient of
    the large components fall) would change the logarithm of a small component by less than
    `tolerance`, and left for a slow one when the force has less than `tolerance` left to change.
    `trajectory.stats["neglected"]` sums the estimates of the second kind over the run: relative
    changes of small components that fast phases have left out. As `tolerance` and `rtol` go to zero
    the full flow remains, to which tests compare. Where no phase but the full one applies (more
    than `capacity` large components), this is `GradientFlow`.

    **How accurate that is.** Both tolerances are of what is left out, and flows that leave a
    saddle amplify it. On 98 random problems (orders 3 and 4, ranks 1 to 3, factor scales 1e-3 to
    0.3) the products at given losses err by at most 1.4e-4 with the default tolerances, and times
    by at most 5e-4 but in one run (1.6e-2). With `MultirateFlow(1e-2, 1e-4)`, at half the cost, it
    is up to 4.3e-2 and 120%, most at planted rank 3. What a run amplifies shows with
    `certify="full"`: its companion has a tenth of every tolerance, and `companion_error` was half
    to three times the error in all of 36 runs at order 3.

    **Arguments:**

    - `tolerance`: in (0, 1), relative error allowed to what is left out; 1e-5 in double precision,
        1e-2 in single.
    - `rtol`: relative tolerance per step; 1e-6 in double precision, 1e-3 in single.
    - `atol`: absolute tolerance per step, by default `rtol` times the root mean square of the
        entries of the factors at the start.
    - `capacity`: largest number of large components that are followed alone.

    Levels and times are hit exactly within a phase.

    **Raises:** `ValueError` for anything but a `CP` factorization of order 3 or more whose product
    fits in memory.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> problem = ff.random_low_rank_problem(
        ...     jax.random.key(0), (5, 5, 5), rank=1, n_observed=100, frobenius_norm=1.0)
        >>> fz = ff.CP((5, 5, 5), rank=10)
        >>> factors = ff.Gaussian(factor_scale=1e-3)(fz, jax.random.key(1))
        >>> trajectory = ff.simulate(
        ...     problem, fz, ff.MultirateFlow(), factors,
        ...     observe=ff.AtEnd(), stop=ff.Stop(loss=1e-12), measures=["reconstruction_error"])
        >>> bool(trajectory.measures["reconstruction_error"][0] < 1e-4)
        True

        ```
    """

    tolerance: float | None = None
    rtol: float | None = None
    atol: float | None = None
    capacity: int = eqx.field(static=True, default=16)

    continuous: ClassVar[bool] = True
    alone: ClassVar[bool] = True

    def __check_init__(self):
        check_tolerances(self.rtol, None)
        if isinstance(self.tolerance, int | float) and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie in (0, 1), got {self.tolerance}.")
        if isinstance(self.atol, int | float) and not self.atol > 0:
            raise ValueError(f"atol must be positive, got {self.atol}.")
        if self.capacity < 1:
            raise ValueError(f"capacity must be 1 or more, got {self.capacity}.")

    @property
    def integrator_name(self) -> str:
        return "multirate"

    def refined(self) -> "MultirateFlow":
        finer = self.tolerance / _REFINED, self.rtol / _REFINED, self.atol / _REFINED  # pyright: ignore[reportOptionalOperand]
        return eqx.tree_at(lambda flow: (flow.tolerance, flow.rtol, flow.atol), self, finer)

    def resolve(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> "MultirateFlow":
        if not isinstance(factorization, CP) or len(factorization.shape) < 3:
            raise ValueError(
                "MultirateFlow follows a CP factorization of order 3 or more, got "
                f"{type(factorization).__name__} of shape {factorization.shape}; use GradientFlow."
            )
        if getattr(problem, "masked", ()) is None:
            raise ValueError(
                f"MultirateFlow makes the whole product, which is too large at {problem.shape}, or "
                "entries are observed more than once; use GradientFlow."
            )
        dtype = factors[0].dtype
        rtol = _RTOL[dtype.name] if self.rtol is None else self.rtol
        tolerance = _TOLERANCE[dtype.name] if self.tolerance is None else self.tolerance
        size = np.sqrt(np.mean(np.concatenate([np.ravel(factor) for factor in factors]) ** 2))
        atol = float(rtol * size) if self.atol is None else self.atol
        return MultirateFlow(tolerance, rtol, atol, self.capacity)

    def keeps_time(self, factors: Factors) -> bool:
        del factors
        return True

    def init(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        factors: Factors,
        key: RandomKey,
    ) -> MultirateState:
        del key
        parts = Phases(self, problem, factorization)
        every = parts.all(None).init(factors)
        zero, none = jnp.zeros_like(every.loss), jnp.zeros((), jnp.int32)
        chosen = jnp.arange(parts.capacity, dtype=jnp.int32)
        apart = parts.compose(factors)
        # Begun by the first fast phase; until then nothing looks at its numbers.
        few = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(parts.large(apart).init, columns(factors, chosen, none)),
        )
        # The first step is one of all components: what is large shows after it.
        return MultirateState(
            step=none,
            time=zero,
            loss=every.loss,
            result=RESULTS.successful,  # pyright: ignore[reportArgumentType]
            phase=none,
            following=none,
            every=every,
            few=few,
            chosen=chosen,
            count=none,
            separate=jnp.asarray(False),
            apart=apart,
            began=zero,
            ended=zero,
            early=jnp.asarray(False),
            clock=Clock(zero, zero, zero, zero, every.loss, zero),
            neglected=zero,
            slow_steps=none,
            fast_steps=none,
        )

    def advance(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: MultirateState,
        active: jax.Array,
    ) -> MultirateState:
        parts = Phases(self, problem, factorization)
        state = when(active & (state.following != state.phase), parts.switch, state)
        # In a batch, a phase that no lane is in costs nothing.
        fast = state.phase == FAST
        state = when(active & ~fast, parts.step_all, state)
        return when(active & fast, parts.step_large, state)

    def gradient_norm(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: MultirateState,
    ) -> FloatScalar:
        parts = Phases(self, problem, factorization)
        return tree_norm(parts.velocity(self.factors(problem, factorization, state)))

    def product(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: MultirateState,
    ) -> AbstractProduct:
        return Factored(factorization, self.factors(problem, factorization, state))

    def factors(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: MultirateState,
    ) -> Factors:
        return where(state.phase == FAST, merged(state), state.every.y)

    def locate(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: MultirateState,
        *,
        time: FloatScalar | None = None,
        loss: FloatScalar | None = None,
    ) -> MultirateState:
        parts = Phases(self, problem, factorization)

        def of_all(state):
            every = parts.all(state).locate(state.every, time=time, loss=loss)
            now = jnp.maximum(every.time, jnp.minimum(state.ended, state.time))
            return eqx.tree_at(lambda s: (s.every, s.time, s.loss), state, (every, now, every.loss))

        def of_large(state):
            local = None if time is None else time - state.began
            few = parts.large(state.apart).locate(state.few, time=local, loss=loss)
            now = state.began + few.time
            return eqx.tree_at(lambda s: (s.few, s.time, s.loss), state, (few, now, few.loss))

        fast = state.phase == FAST
        return when(fast, of_large, when(~fast, of_all, state))
