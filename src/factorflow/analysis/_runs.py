"""The certified flows behind `what_is_minimized`: one per scale and seed."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from factorflow._certify import follow_certified
from factorflow._dynamics import AbstractDynamics, GradientFlow
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._initializer import AbstractInitializer, Balanced
from factorflow._initializer.base import Sign
from factorflow._observe import AtLosses, Stop
from factorflow._problem import AbstractProblem
from factorflow._product import Dense
from factorflow._spec import RunSpec, as_arrays, prepare
from factorflow._trajectory import Trajectory

__all__ = ["Runs", "at_scale", "certified_runs", "default_initializer"]

# Rows per decade of loss; the first at a tenth of the loss of the zero matrix.
_PER_DECADE = 4
# Up to this size flows are followed in coordinates of their own, all in one batch: a lane costs
# nothing beside a step. Beyond it these coordinates cost more than all else.
_SMALL = 3
# For factors of moderate size, tighter than the default: small singular values are certified only
# as long as they are above the drift of the balance.
_MODERATE, _RTOL, _LOOSE = 12, 1e-10, 1e-8
_MAX_STEPS = 20_000
# How far off balance, in multiples of the drift, and by what share products may move then.
_SHAKEN, _INSENSITIVE = 30.0, 3e-4
# A limit is read off well before the last rows, which are the first that cannot be certified.
_SPARE_DECADES = 3


class Runs(NamedTuple):
    """What was recorded, with leading axes (scale, seed).

    `losses` has shape (rows,), `log_singular_values` (..., rows, values), `trusted` (..., rows):
    rows that were reached and are certified; `usable` are these, and those that can be off by the
    drift of the balance only and do not move when the flow starts off balance by much more.
    """

    losses: NDArray[np.float64]
    log_singular_values: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    products: NDArray[np.float64]
    verdicts: NDArray[np.str_]
    results: NDArray[np.str_]
    explanations: NDArray[np.str_]
    integrators: NDArray[np.str_]

    def followed_by(self, others: "Runs") -> "Runs":
        """With the runs from further scales."""
        pairs: Any = zip(self[1:], others[1:], strict=True)
        return Runs(self.losses, *(np.concatenate(pair) for pair in pairs))

    @property
    def certified(self) -> NDArray[np.bool_]:
        """Runs that are certified down to the end, but for a few decades of loss at most.

        Shape `(scales, seeds)`. Scales below one that is not do not count either: what could not be
        followed at that one is harder still at them.
        """
        enough = self.usable.shape[-1] - _SPARE_DECADES * _PER_DECADE
        down_to = np.all(self.usable[..., : max(enough, 1)], axis=-1)
        return np.cumprod(down_to, axis=0).astype(bool)


def default_initializer(factorization: AbstractFactorization, sign: Sign | None) -> Balanced:
    """Balanced starts whose determinant, where there is one, has that sign."""
    if not isinstance(factorization, DeepMatrix):
        raise ValueError(
            f"Balanced starts need a DeepMatrix, got {type(factorization).__name__}; give "
            "`initializer=`, e.g. Gaussian(product_scale=1e-3)."
        )
    rows, columns = factorization.shape
    signed = rows == columns and min(factorization.widths) >= rows
    return Balanced(product_scale=1.0, determinant=sign if signed else None)


def certified_runs(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    initializer: AbstractInitializer,
    scales: Sequence[float],
    seeds: Sequence[int],
    *,
    dynamics: AbstractDynamics | None,
    loss_ratio: float,
    say: Callable[[str], None],
) -> Runs:
    """Flows from every scale and seed down to `loss_ratio` of the loss of the zero matrix."""
    problem = as_arrays(problem, jnp.float64)
    start = float(problem.loss(Dense(jnp.zeros(problem.shape))))
    rows = 1 + round(-_PER_DECADE * np.log10(loss_ratio) - _PER_DECADE)
    losses = start * np.logspace(-1, np.log10(loss_ratio), rows)

    def spec(scale: float, seed: int) -> RunSpec:
        factors = at_scale(initializer, scale)(factorization, jax.random.key(seed))
        return prepare(
            problem,
            factorization,
            dynamics or _flow(problem, factors),
            factors,
            observe=AtLosses(losses),
            stop=Stop(loss=float(losses[-1]), max_steps=_MAX_STEPS),
            measures=["log_singular_values", "product"],
        )

    places = [(scale, seed) for scale in scales for seed in seeds]
    specs = [spec(*place) for place in places]
    found = _followed(specs, say)
    usable = _usable(specs, found, say)
    shape = (len(scales), len(seeds))

    def stacked(value: Callable[[Trajectory], Any]) -> NDArray:
        values = np.array([value(run) for run in found])
        return values.reshape(*shape, *values.shape[1:])

    return Runs(
        losses=losses,
        log_singular_values=stacked(lambda run: run.measures["log_singular_values"]),
        trusted=stacked(_trusted),
        usable=np.array(usable).reshape(*shape, -1),
        products=stacked(lambda run: run.measures["product"][-1]),
        verdicts=stacked(lambda run: run.certificate.verdict),
        results=stacked(lambda run: run.result_name),
        explanations=stacked(lambda run: run.certificate.explanation),
        integrators=stacked(lambda run: run.integrator),
    )


def _flow(problem: AbstractProblem, factors: Any) -> GradientFlow:
    size = max(problem.shape)
    if size <= _SMALL:
        return GradientFlow()
    rtol = _RTOL if size <= _MODERATE else _LOOSE
    # Small factors must grow as accurately as large ones, whatever their scale.
    entries = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(factors)]
    smallest = float(np.sqrt(np.mean(np.concatenate(entries) ** 2)))
    return GradientFlow("Stabilized", rtol=rtol, atol=rtol * smallest)


def at_scale(initializer: AbstractInitializer, scale: float) -> AbstractInitializer:
    """The initializer with this product scale; a given product is multiplied by it."""
    if not hasattr(initializer, "product_scale"):
        raise ValueError(
            f"{type(initializer).__name__} has no product_scale to shrink; use Balanced, Gaussian, "
            "Identity or Orthogonal."
        )
    product = getattr(initializer, "product", None)
    if product is not None:
        scaled = tuple(tuple(scale * entry for entry in row) for row in product)
        return eqx.tree_at(lambda i: i.product, initializer, scaled)
    none = {"is_leaf": lambda leaf: leaf is None}
    if getattr(initializer, "factor_scale", None) is not None:
        initializer = eqx.tree_at(lambda i: i.factor_scale, initializer, None, **none)
    return eqx.tree_at(lambda i: i.product_scale, initializer, float(scale), **none)


def _followed(specs: list[RunSpec], say: Callable[[str], None]) -> list[Trajectory]:
    """Each run with all its companions."""
    name = specs[0].dynamics.integrator_name
    say(f"{len(specs)} flows ({name}), each against a second discretization")
    return _each(specs, "full")


def _each(specs: list[RunSpec], certify: str) -> list[Trajectory]:
    """The runs, on all cores; the first compiles for the others."""
    if max(specs[0].problem.shape) <= _SMALL:
        batch = follow_certified(specs, len(specs), certify)
        return [_lane(batch, i) for i in range(len(specs))]

    def alone(spec: RunSpec) -> Trajectory:
        with jax.enable_x64(True):  # threads do not inherit it
            return _lane(follow_certified([spec], 1, certify), 0)

    first = alone(specs[0])
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        return [first, *pool.map(alone, specs[1:])]


def _lane(batch: Trajectory, lane: int) -> Trajectory:
    return jax.tree.map(lambda leaf: np.asarray(leaf[lane]), batch)


def _trusted(run: Trajectory) -> NDArray[np.bool_]:
    # The product alone counts here: times are not read, nor single vanishing singular values.
    return np.asarray(run.reached) & run.certificate.trusted_measures["product"]


def _usable(
    specs: list[RunSpec], runs: list[Trajectory], say: Callable[[str], None]
) -> list[NDArray[np.bool_]]:
    """Rows of every run that can be used."""
    certified = [_trusted(run) for run in runs]
    drifted = [
        np.asarray(run.reached) & (np.asarray(run.certificate.doubts) == "drift") for run in runs
    ]
    doubtful = [i for i, rows in enumerate(drifted) if np.any(rows)]
    if doubtful:
        say(f"{len(doubtful)} flows once more, from further off balance than they have drifted")
        shaken = [_off_balance(specs[i], _drift(runs[i])) for i in doubtful]
        for i, other in zip(doubtful, _each(shaken, "cheap"), strict=True):
            products, moved = (run.measures["product"] for run in (runs[i], other))
            distance = np.linalg.norm(products - moved, axis=(-2, -1))
            stays = distance <= _INSENSITIVE * np.linalg.norm(products, axis=(-2, -1))
            certified[i] = certified[i] | (drifted[i] & np.asarray(other.reached) & stays)
    return certified


def _drift(run: Trajectory) -> float:
    return float(run.certificate.evidence["balancedness_drift"])


def _off_balance(spec: RunSpec, drift: float) -> RunSpec:
    """The run from factors moved at random, off balance by a multiple of what it drifted."""
    gap = _SHAKEN * drift
    keys = jax.random.split(jax.random.key(0), len(spec.factors))

    def moved(factor, key):
        noise = jax.random.normal(key, factor.shape, factor.dtype)
        size, unit = jnp.linalg.norm(factor, 2), jnp.linalg.norm(noise, 2)
        return factor + noise * ((jnp.sqrt(size**2 + gap) - size) / unit)

    factors = tuple(moved(*pair) for pair in zip(spec.factors, keys, strict=True))
    return eqx.tree_at(lambda s: s.factors, spec, factors)
