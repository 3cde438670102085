"""Optimizers: optax transformations by name, and the papers' own."""

import inspect
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from factorflow._names import named
from factorflow._types import FloatScalar

__all__ = [
    "OPTIMIZERS",
    "GroupRmspropState",
    "Optimizer",
    "by_name",
    "effective_step_size",
    "group_rmsprop",
]


class GroupRmspropState(NamedTuple):
    """`step_size` is the effective step size that the last update used."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mean_square: jax.Array
    step_size: jax.Array


def group_rmsprop(
    learning_rate: float | FloatScalar,
    decay: float | FloatScalar = 0.99,
    eps: float | FloatScalar = 1e-6,
) -> optax.GradientTransformation:
    r"""One global step size from the running mean of the squared gradient norm.

    $$v_t = \beta v_{t-1} + (1-\beta) \|g_t\|^2, \qquad
      \theta_{t+1} = \theta_t - \frac{\eta}{\sqrt{v_t / (1-\beta^t)} + \varepsilon} g_t$$

    All factors share the step, so the path is that of gradient descent with an adaptive rate.

    **Arguments:**

    - `learning_rate`: $\eta > 0$.
    - `decay`: $\beta$ in [0, 1).
    - `eps`: $\varepsilon \ge 0$, added to the root. It bounds the step on plateaus, where the
        gradient is tiny: 1e-6 is the papers' value, 1e-9 leaves plateaus sooner.

    **Returns:** an optax `GradientTransformation`.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> dynamics = ff.GradientDescent(ff.group_rmsprop(1e-2))

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

    def init(params):
        dtype = jax.tree.leaves(params)[0].dtype
        zero = jnp.zeros((), dtype)
        return GroupRmspropState(jnp.zeros((), jnp.int32), zero, zero)

    def update(updates, state, params=None):
        del params
        dtype = state.mean_square.dtype
        beta, rate, floor = (jnp.asarray(x, dtype) for x in (decay, learning_rate, eps))
        count = state.count + 1
        square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(updates))
        mean_square = beta * state.mean_square + (1 - beta) * square
        unbiased = mean_square / (1 - beta ** count.astype(dtype))
        step_size = rate / (jnp.sqrt(unbiased) + floor)
        updates = jax.tree.map(lambda leaf: -step_size * leaf, updates)
        return updates, GroupRmspropState(count, mean_square, step_size)

    parameters = {"learning_rate": learning_rate, "decay": decay, "eps": eps}
    return _Named.of("group_rmsprop", parameters, init, update)


class _Named(optax.GradientTransformation):
    """A transformation that also an `Optimizer` of this name and these parameters builds."""

    name: str
    parameters: dict[str, Any]

    @classmethod
    def of(cls, name: str, parameters: dict[str, Any], init: Any, update: Any) -> "_Named":
        made = cls(init, update)
        made.name, made.parameters = name, parameters
        return made


def by_name(transformation: optax.GradientTransformation) -> "Optimizer | None":
    """The `Optimizer` that builds this transformation, or `None` where none is known to."""
    if isinstance(transformation, _Named):
        return Optimizer(transformation.name, transformation.parameters)
    return None


def _momentum(learning_rate, decay=0.9, nesterov=False):
    """Gradient descent with heavy-ball or Nesterov momentum."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=nesterov)


OPTIMIZERS = {
    "adam": optax.adam,
    "adagrad": optax.adagrad,
    "group_rmsprop": group_rmsprop,
    "momentum": _momentum,
    "rmsprop": optax.rmsprop,
}


class Optimizer(eqx.Module):
    """An optax transformation by name and numbers, so that experiments can be stored and batched.

    **Arguments:**

    - `name`: one of `OPTIMIZERS`: `"adam"`, `"adagrad"`, `"group_rmsprop"`, `"momentum"`,
        `"rmsprop"`.
    - `parameters`: its numeric arguments by keyword, e.g. `{"learning_rate": 1e-3}`. They are
        traced: a sweep over them compiles once.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> adam = ff.Optimizer("adam", {"learning_rate": 1e-3})
        >>> dynamics = ff.GradientDescent(adam)

        ```
    """

    name: str = eqx.field(static=True)
    parameters: dict[str, float]

    def __check_init__(self):
        named("optimizer", self.name, OPTIMIZERS)
        known = inspect.signature(OPTIMIZERS[self.name]).parameters
        for parameter in self.parameters:
            named(f"parameter of {self.name}", parameter, known)
        for parameter, declared in known.items():
            if declared.default is inspect.Parameter.empty and parameter not in self.parameters:
                raise ValueError(f"Optimizer {self.name!r} needs {parameter!r} in its parameters.")
        rate = self.parameters.get("learning_rate")
        if isinstance(rate, int | float) and not 0 < rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {rate}.")

    def build(self) -> optax.GradientTransformation:
        """The transformation; called inside the trace, where parameters are arrays."""
        return OPTIMIZERS[self.name](**self.parameters)


def effective_step_size(optimizer_state: Any, dtype) -> FloatScalar:
    """The scalar step that the last update took, or NaN where it was no scalar."""
    if isinstance(optimizer_state, GroupRmspropState):
        return optimizer_state.step_size
    return jnp.full((), jnp.nan, dtype)
