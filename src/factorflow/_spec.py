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
from factorflow._numbers import refuse_masked, refuse_traced
from factorflow._observe import DEFAULT_MAX_STEPS, AbstractObservation, Stop
from factorflow._problem import AbstractProblem, Completion
from factorflow._random import check_key
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
    # Whether there is a limit of `Stop` to go on to after the last row, and whether the run does:
    # companions end with their rows.
    limited: bool = eqx.field(static=True)
    goes_on: jax.Array
    measures: tuple[Measure, ...] = eqx.field(static=True)
    # Rounding that is added to the product before it is measured, as a share of its largest entry:
    # none but in companions, which show what rounding decides, such as vanishing singular values.
    # Of each entry where it is known to its own digits, and of the largest all the same.
    rounding: jax.Array

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
    for name, value, kind, examples in (
        ("problem", problem, AbstractProblem, "a problem, such as Completion or Sensing"),
        ("factorization", factorization, AbstractFactorization, "a factorization, as DeepMatrix"),
        ("dynamics", dynamics, AbstractDynamics, "a dynamics, as GradientFlow or GradientDescent"),
        ("observe", observe, AbstractObservation, "an observation, such as AtLosses or AtSteps"),
        ("stop", stop, Stop, "a Stop"),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be {examples}, got {value!r}.")
    refuse_traced(problem, dynamics, factors, observe, stop, key)
    if key is not None:
        check_key(key)
    factors = jax.tree.map(_as_factor, factors)
    dtype = _check_factors(problem, factorization, factors)
    _check_precision(problem, dtype)
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
        goes_on=jnp.asarray(limited),
        measures=as_measures(measures),
        rounding=jnp.zeros(2, dtype),
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
    least = np.square(float(jnp.finfo(dtype).eps) * min(size, _largest_square(dtype))) / 2
    losses = [*np.ravel(levels)] if observed_at == "loss" else []
    losses += [] if stop.loss is None else [stop.loss]
    for loss in losses:
        if 0 < loss < least:
            raise ValueError(
                f"A loss of {loss:.3g} is below {least:.1g}, what {np.dtype(dtype)} resolves near "
                f"observed entries of size {size:.3g}: ask for larger losses"
                + ("." if dtype == jnp.float64 else ", or use float64.")
            )


def _as_factor(leaf: Any) -> jax.Array:
    refuse_masked("a factor", leaf)
    if np.iscomplexobj(leaf):
        raise ValueError("factors must be real: drop the imaginary part, `factor.real`.")
    return jnp.asarray(leaf)


def _largest_square(dtype) -> float:
    return float(jnp.finfo(dtype).max) ** 0.5


def _check_precision(problem, dtype) -> None:
    """Refuse numbers of a problem that are rounded to less than the run's precision, or too large.

    JAX rounds what it is given to single precision until x64 is enabled.
    """
    for leaf in jax.tree.leaves(problem):
        if eqx.is_inexact_array(leaf) and leaf.dtype.itemsize < dtype.itemsize:
            raise ValueError(
                f"The problem's numbers are {leaf.dtype}, the factors {dtype}: the problem was "
                "made before double precision was enabled, and its numbers are rounded. Make it "
                'after jax.config.update("jax_enable_x64", True).'
            )
    values, squares = getattr(problem, "values", None), getattr(problem, "penalty", "squared")
    if values is None or squares != "squared":
        return
    size = float(np.max(np.abs(values)))
    if size > _largest_square(dtype):
        raise ValueError(
            f"values of size {size:.3g} have squares beyond {dtype}, so that every loss would be "
            f"infinite. Divide values by a scale: {_largest_square(dtype):.1g} is the most."
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
        if leaf.dtype != dtype or str(dtype) not in ("float32", "float64"):
            found = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
            raise ValueError(
                f"factors must share one floating dtype, float32 or float64, got {found}: convert "
                "them with `.astype`, or let an initializer make them."
            )
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
