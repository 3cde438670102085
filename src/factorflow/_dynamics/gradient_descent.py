"""Gradient descent, plain or through any optax transformation."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from factorflow._dynamics.base import AbstractDynamics, AbstractState, tree_norm, where
from factorflow._dynamics.optimizers import (
    GroupRmspropState,
    Optimizer,
    by_name,
    effective_step_size,
)
from factorflow._dynamics.parametric import Parametric
from factorflow._factorization import AbstractFactorization
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct, Factored
from factorflow._results import RESULTS
from factorflow._types import Factors, FloatScalar, IntScalar, RandomKey

__all__ = ["GradientDescent"]


class _DescentState(AbstractState):
    step: IntScalar
    time: FloatScalar
    loss: FloatScalar
    result: RESULTS
    # Position, and the gradient there: one evaluation per step serves loss, limits and update.
    factors: Factors
    gradient: Factors
    optimizer_state: Any
    key: RandomKey | None

    def stats(self) -> dict[str, Any]:
        return {"num_steps": self.step, "num_gradients": self.step + 1}


class GradientDescent(AbstractDynamics):
    r"""Gradient descent on the factors, $\theta_{t+1} = \theta_t - \eta \nabla\ell(\theta_t)$.

    **Arguments:**

    - `optimizer`: a learning rate $\eta > 0$, an `Optimizer` (an optax transformation by name), or
        any optax transformation. Those that ask for it are given `value`, `grad` and `value_fn`.
        An optimizer at other numbers does not compile again, as long as all it depends on lies in
        closures, as with `optax.adam(1e-3)`, and its code takes no decisions by these numbers; an
        `Optimizer` never does.
    - `batch_size`: number of observations drawn without replacement for each step, or `None` for
        all of them.
    - `label_noise`: standard deviation of Gaussian noise added to the observed values, drawn anew
        for each step, or `None`.

    `time` accumulates the effective step size: $\eta$ per step, the global step of
    `group_rmsprop`, NaN for optimizers without a scalar step. The recorded loss is always that of
    all observations, without noise.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=2)
        >>> trajectory = ff.simulate(
        ...     problem, fz, ff.GradientDescent(1e-2), ff.Identity(product_scale=1e-2)(fz),
        ...     observe=ff.AtLosses([1e-1]), stop=ff.Stop(loss=1e-1), measures=["entry[0,0]"])
        >>> bool(trajectory.reached[0])
        True

        ```
    """

    optimizer: Any
    batch_size: int | None = eqx.field(static=True, default=None)
    label_noise: float | None = None

    continuous: ClassVar[bool] = False

    def __check_init__(self):
        rate = self.optimizer
        if isinstance(rate, str):
            raise ValueError(
                f"An optimizer by name needs its numbers: GradientDescent(Optimizer({rate!r}, "
                '{"learning_rate": 1e-3})).'
            )
        kinds = int | float | np.number | jax.Array | Optimizer | Parametric
        if not isinstance(rate, kinds | optax.GradientTransformation):
            raise ValueError(
                "GradientDescent takes a learning rate, an Optimizer or an optax transformation "
                f"(`optax.adam(1e-3)`, not `optax.adam`), got {rate!r}."
            )
        if isinstance(rate, int | float | np.number) and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"The learning rate must be positive and finite, got {rate}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}.")
        noise = self.label_noise
        if isinstance(noise, int | float) and not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"label_noise must be finite and not negative, got {noise}.")

    @property
    def integrator_name(self) -> str:
        return "descent"

    def resolve(
        self, problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
    ) -> "GradientDescent":
        count = getattr(problem, "values", jnp.zeros(0)).shape[-1]
        if self.batch_size is not None and self.batch_size > count:
            raise ValueError(
                f"batch_size={self.batch_size} exceeds the {count} observations of the problem."
            )
        if not isinstance(self.optimizer, optax.GradientTransformation):
            return self
        optimizer = by_name(self.optimizer)
        if optimizer is None:
            parametric = Parametric.of(self.optimizer)
            if parametric is None or not parametric.traceable(factors, _one_update):
                return self
            optimizer = parametric
        return eqx.tree_at(
            lambda descent: descent.optimizer,
            self,
            optimizer,
            is_leaf=lambda leaf: isinstance(leaf, optax.GradientTransformation),
        )

    def refined(self) -> "GradientDescent | None":
        stochastic = self.batch_size is not None or self.label_noise is not None
        rate: Any = self.optimizer
        # Only these follow the path of the gradient; others have paths of their own.
        if stochastic or isinstance(rate, optax.GradientTransformation | Parametric):
            return None
        if isinstance(rate, Optimizer):
            if rate.name != "group_rmsprop":
                return None
            numbers = rate.parameters
            halved = {**numbers, "learning_rate": numbers["learning_rate"] / 2}
            return eqx.tree_at(lambda descent: descent.optimizer.parameters, self, halved)
        return eqx.tree_at(lambda descent: descent.optimizer, self, rate / 2)

    def keeps_time(self, factors: Factors) -> bool:
        if self._plain:
            return True
        return isinstance(self._transformation().init(factors), GroupRmspropState)

    def init(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        factors: Factors,
        key: RandomKey,
    ) -> _DescentState:
        loss, gradient = _loss_and_gradient(problem, factorization, factors)
        return _DescentState(
            step=jnp.zeros((), jnp.int32),
            time=jnp.zeros_like(loss),
            loss=loss,
            result=RESULTS.successful,  # pyright: ignore[reportArgumentType]
            factors=factors,
            gradient=gradient,
            optimizer_state=None if self._plain else self._transformation().init(factors),
            key=key if self._stochastic else None,
        )

    def advance(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: _DescentState,
        active: jax.Array,
    ) -> _DescentState:
        key, loss, gradient, sampled = state.key, state.loss, state.gradient, problem
        if key is not None:
            key, sample_key = jax.random.split(key)
            noise = None if self.label_noise is None else jnp.asarray(self.label_noise)
            sampled = problem.resample(sample_key, batch_size=self.batch_size, label_noise=noise)
            loss, gradient = _loss_and_gradient(sampled, factorization, state.factors)
        # Inactive lanes take no step: loss and gradient, computed anew, are then those they had.
        if self._plain:
            optimizer_state, step_size = None, self.optimizer
            moved = jax.tree.map(lambda w, g: w - step_size * g, state.factors, gradient)
        else:
            # optax raises Python floats to the power of integer counts, for one.
            with jax.numpy_dtype_promotion("standard"):
                moved, optimizer_state = _updated(
                    self._transformation(),
                    state.optimizer_state,
                    state.factors,
                    loss,
                    gradient,
                    lambda f: sampled.loss(Factored(factorization, f)),
                )
            optimizer_state = where(active, optimizer_state, state.optimizer_state)
            step_size = effective_step_size(optimizer_state, state.time.dtype)
        # Not a step of size zero: the gradient of a lane that has failed is infinite.
        factors = where(active, moved, state.factors)
        loss, gradient = _loss_and_gradient(problem, factorization, factors)
        step = state.step + active.astype(state.step.dtype)
        if self._plain:
            # A million additions of a rate would round away a percent of the time in float32.
            time = self.optimizer * step.astype(state.time.dtype)
        else:
            time = jnp.where(active, state.time + step_size, state.time)
        return _DescentState(
            step=step,
            time=time,
            loss=loss,
            result=state.result,
            factors=factors,
            gradient=gradient,
            optimizer_state=optimizer_state,
            key=where(active, key, state.key),
        )

    def gradient_norm(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: _DescentState,
    ) -> FloatScalar:
        return tree_norm(state.gradient)

    def product(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: _DescentState
    ) -> AbstractProduct:
        return Factored(factorization, state.factors)

    def factors(
        self, problem: AbstractProblem, factorization: AbstractFactorization, state: _DescentState
    ) -> Factors:
        return state.factors

    def locate(
        self,
        problem: AbstractProblem,
        factorization: AbstractFactorization,
        state: _DescentState,
        *,
        time: FloatScalar | None = None,
        loss: FloatScalar | None = None,
    ) -> _DescentState:
        return state

    @property
    def _plain(self) -> bool:
        by_optax = Optimizer | Parametric | optax.GradientTransformation
        return not isinstance(self.optimizer, by_optax)

    @property
    def _stochastic(self) -> bool:
        return self.batch_size is not None or self.label_noise is not None

    def _transformation(self) -> optax.GradientTransformation:
        if isinstance(self.optimizer, Optimizer | Parametric):
            return self.optimizer.build()
        return self.optimizer


def _updated(
    transformation: Any,
    state: Any,
    factors: Factors,
    loss: FloatScalar,
    gradient: Factors,
    loss_of: Callable[[Factors], FloatScalar],
) -> tuple[Factors, Any]:
    """Factors and state of the optimizer after one step."""
    # Line searches and steps in proportion to the loss ask for these; others must not be given any.
    asked = isinstance(transformation, optax.GradientTransformationExtraArgs)
    extra = {"value": loss, "grad": gradient, "value_fn": loss_of} if asked else {}
    updates, new = transformation.update(gradient, state, factors, **extra)
    # A loop's state keeps its dtypes; counters and scales of some optimizers start in others.
    new = jax.tree.map(lambda after, before: jnp.asarray(after, before.dtype), new, state)
    return optax.apply_updates(factors, updates), new


def _one_update(transformation: Any, factors: Factors) -> None:
    """All that a step asks of a transformation, on a loss that any factors have."""

    def loss_of(moved: Factors) -> FloatScalar:
        return tree_norm(moved) ** 2

    with jax.numpy_dtype_promotion("standard"):
        loss, gradient = jax.value_and_grad(loss_of)(factors)
        _updated(transformation, transformation.init(factors), factors, loss, gradient, loss_of)


def _loss_and_gradient(
    problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
) -> tuple[FloatScalar, Factors]:
    return jax.value_and_grad(lambda f: problem.loss(Factored(factorization, f)))(factors)
