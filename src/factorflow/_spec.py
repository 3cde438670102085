"""A run with every number as an array: what is compiled, stacked and followed."""

from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from factorflow._dynamics import AbstractDynamics, is_solver
from factorflow._factorization import AbstractFactorization
from factorflow._measure import Measure, as_measures
from factorflow._observe import DEFAULT_MAX_STEPS, AbstractObservation, Stop
from factorflow._problem import AbstractProblem, Completion
from factorflow._types import Factors, RandomKey

__all__ = ["RunSpec", "as_arrays", "prepare", "structure"]


class RunSpec(eqx.Module):
    """A run with every number as an array and everything else static: what is compiled.

    Two runs with equal structure and shapes share one compilation, and can be stacked.
    """

    problem: AbstractProblem
    factorization: AbstractFactorization
    dynamics: AbstractDynamics
    factors: Factors
    levels: jax.Array
    stop: Stop
    key: RandomKey
    observed_at: str = eqx.field(static=True)
    # Whether the run goes on to a limit of `Stop` after its last row.
    limited: bool = eqx.field(static=True)
    measures: tuple[Measure, ...] = eqx.field(static=True)

    @property
    def ends_at_level(self) -> bool:
        """Whether rows are at losses and the run ends at one, the first time it is reached."""
        at_once = self.stop.every == self.stop.patience == 1
        return self.observed_at == "loss" and self.stop.loss is not None and at_once


def prepare(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    dynamics: AbstractDynamics,
    factors: Factors,
    *,
    observe: AbstractObservation,
    stop: Stop,
    measures: Any,
    key: RandomKey | None = None,
) -> RunSpec:
    """Validate a run and turn every number in it into an array of the factors' dtype."""
    for name, value, kind in (
        ("problem", problem, AbstractProblem),
        ("factorization", factorization, AbstractFactorization),
        ("dynamics", dynamics, AbstractDynamics),
        ("observe", observe, AbstractObservation),
        ("stop", stop, Stop),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}.")
    if key is not None and not jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must come from jax.random.key, got {key!r}.")
    factors = jax.tree.map(jnp.asarray, factors)
    dtype = _check_factors(problem, factorization, factors)
    dynamics = dynamics.resolve(problem, factorization, factors)
    observed_at, levels = observe.resolve(stop)
    _check_resolvable(problem, dynamics, dtype, observed_at, levels, stop)
    timed = observed_at == "time" or stop.max_time is not None
    if timed and not dynamics.keeps_time(factors):
        raise ValueError(
            "This optimizer has no scalar step size, so its runs have no time: observe at steps or "
            "losses, and stop by max_steps instead of max_time."
        )
    if key is None:
        if getattr(dynamics, "batch_size", None) or getattr(dynamics, "label_noise", None):
            raise ValueError("Minibatches and label noise are random: give simulate a `key=`.")
        key = jax.random.key(0)
    limited = any(
        limit is not None
        for limit in (stop.loss, stop.gradient_norm, stop.max_steps, stop.max_time)
    )
    if stop.max_steps is None:
        stop = eqx.tree_at(
            lambda s: s.max_steps, stop, DEFAULT_MAX_STEPS, is_leaf=lambda leaf: leaf is None
        )
    return RunSpec(
        problem=as_arrays(problem, dtype),
        factorization=factorization,
        dynamics=as_arrays(dynamics, dtype),
        factors=factors,
        levels=jnp.asarray(levels, jnp.int32 if observed_at == "step" else dtype),
        stop=as_arrays(stop, dtype),
        key=key,
        observed_at=observed_at,
        limited=limited,
        measures=as_measures(measures),
    )


def structure(spec: RunSpec) -> Hashable:
    """What two runs must share to be stacked: code, static fields, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(spec)
    return treedef, tuple(
        (leaf.shape, str(leaf.dtype)) if eqx.is_array(leaf) else leaf for leaf in leaves
    )


def as_arrays(tree: Any, dtype) -> Any:
    """Every number in a pytree as an array; floating ones in `dtype`."""

    def convert(leaf):
        if isinstance(leaf, bool) or callable(leaf):
            return leaf
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    def leaf_of(leaf):
        return convert(leaf) if eqx.is_array_like(leaf) else leaf

    # A solver's numbers are its own business: some must be Python's.
    return jax.tree.map(leaf_of, tree, is_leaf=is_solver)


def _check_resolvable(problem, dynamics, dtype, observed_at, levels, stop) -> None:
    """Refuse losses of a flow that rounding of the observed entries hides."""
    if not dynamics.continuous:
        return
    values = getattr(problem, "values", None)
    size = 1.0 if values is None else float(np.max(np.abs(values)))
    least = (float(jnp.finfo(dtype).eps) * size) ** 2 / 2
    losses = [*np.ravel(levels)] if observed_at == "loss" else []
    losses += [] if stop.loss is None else [stop.loss]
    for loss in losses:
        if 0 < loss < least:
            raise ValueError(
                f"A loss of {loss:.3g} is below {least:.1g}, what {np.dtype(dtype)} resolves near "
                f"observed entries of size {size:.3g}: ask for larger losses"
                + ("." if dtype == jnp.float64 else ", or use float64.")
            )


def _check_factors(problem, factorization, factors) -> np.dtype:
    expected = jax.tree.map(lambda struct: tuple(struct.shape), factorization.shapes())
    actual = jax.tree.map(lambda leaf: tuple(leaf.shape), factors)
    if expected != actual:
        raise ValueError(
            f"factors must have the factorization's shapes {expected}, got {actual}. Initializers "
            "give the right ones: `initializer(factorization, key)`."
        )
    if factorization.shape != problem.shape:
        raise ValueError(
            f"The factorization's product has shape {factorization.shape}, the problem's has "
            f"{problem.shape}; they must agree."
        )
    leaves = jax.tree.leaves(factors)
    dtype = leaves[0].dtype
    for leaf in leaves:
        if leaf.dtype != dtype or not jnp.issubdtype(dtype, jnp.floating):
            found = sorted({str(leaf.dtype) for leaf in leaves})
            raise ValueError(f"factors must share one floating dtype, got {found}.")
        if not np.all(np.isfinite(np.asarray(leaf))):
            raise ValueError("factors hold NaN or infinity; start from finite numbers.")
    zeros = sum(not np.any(np.asarray(leaf)) for leaf in leaves)
    if not zeros:
        size = float(_largest_entry(problem, factorization, factors))
        if size < float(jnp.finfo(dtype).tiny):
            raise ValueError(
                f"The product of these factors underflows {dtype}: its largest entry is "
                f"{size:.3g}. Use a larger initialization scale or a wider dtype."
            )
    elif zeros > 1:
        raise ValueError(
            "Two or more factors are zero, a stationary point that no dynamics leaves. Use a small "
            "positive initialization scale."
        )
    return dtype


@eqx.filter_jit
def _largest_entry(
    problem: AbstractProblem, factorization: AbstractFactorization, factors: Factors
) -> jax.Array:
    if isinstance(problem, Completion) and problem.masked is None:
        # Too large to be made; what is not observed drives nothing.
        return jnp.max(jnp.abs(factorization.entries(factors, problem.indices)))
    return jnp.max(jnp.abs(factorization.compose(factors)))
