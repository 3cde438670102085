"""Minimum norms over a solution set by splitting, until a certificate meets the accuracy."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from factorflow.reference.solutions._certified import Found, dual_bound, norm_of
from factorflow.reference.solutions._extrapolation import Extrapolation
from factorflow.reference.solutions._splitting import Affine, Steps, steps
from factorflow.reference.solutions.solution_set import SolutionSet

__all__ = ["by_splitting"]

# Steps between two looks at the certificate, and extrapolations.
_BURST = 10
# The first step size over the largest singular value of the least-squares solution: of 0.03 to 1,
# 0.1 to 0.2 needed the fewest steps on random completions.
_FIRST_STEP = 0.15
# A proven lower bound on the trace this many times the least-squares solution's: nothing is there.
_NOWHERE = 1e6


def by_splitting(
    solutions: SolutionSet,
    p: float,
    tolerance: float,
    semidefinite: bool,
    accuracy: float,
    max_iterations: int,
) -> Found:
    """Douglas-Rachford steps until the certificate meets the accuracy, p >= 1.

    **Arguments:**

    - `solutions`: those as symmetric matrices see them where `semidefinite`.
    """
    start = solutions.project(np.zeros(solutions.shape), tolerance)
    scale = float(np.linalg.norm(start, 2))
    if solutions.dimension == 0 and not semidefinite and solutions.room(tolerance) == 0:
        return Found(start, norm_of(start, p), norm_of(start, p), 0)
    kind = "nuclear" if p == 1 else "spectral" if math.isinf(p) else "power"
    with jax.enable_x64(True):
        affine = _affine(solutions, scale, tolerance)
        variable, step = jnp.asarray(start / scale), _FIRST_STEP
        power = jnp.asarray(p if math.isfinite(p) else 1.0)
        least, memory = Found(start, math.inf, 0.0, 0), Extrapolation()
        adapt, done, burst = 1, 0, 0
        while True:
            count = min(_BURST, max_iterations - done)
            state = steps(
                variable,
                jnp.asarray(step),
                power,
                affine,
                jnp.asarray(count),
                kind=kind,
                symmetric=semidefinite,
            )
            done, burst = done + count, burst + 1
            least = _better(least, solutions, state, step, scale, p, tolerance, semidefinite, done)
            fits = not semidefinite or float(state.primal_residual) <= accuracy / 10
            if (fits and least.within(accuracy)) or done >= max_iterations:
                return least
            variable = jnp.asarray(
                memory.following(np.asarray(variable), np.asarray(state.variable))
            )
            if burst == adapt:
                # Ever more rarely: convergence is known for constant steps only.
                adapt += 1 + adapt // 3
                ratio = float(state.dual_residual) / max(float(state.primal_residual), 1e-300)
                if not 0.5 < ratio < 2:
                    step *= min(max(math.sqrt(ratio), 1 / 3), 3)
                    variable = state.primal + step * state.dual
                    memory.restart()


def _affine(solutions: SolutionSet, scale: float, tolerance: float) -> Affine:
    room = jnp.asarray(solutions.room(tolerance) / scale)
    sizes, goal = solutions.sizes, solutions.goal / scale
    if solutions.basis is not None:
        return Affine(jnp.asarray(solutions.basis), jnp.asarray(sizes), jnp.asarray(goal), room)
    # Over all entries: one shape, so one compilation, for any number of observations.
    dense_sizes, dense_goal = solutions.spread(sizes), solutions.spread(goal)
    return Affine(None, jnp.asarray(dense_sizes), jnp.asarray(dense_goal), room)


def _better(
    least: Found,
    solutions: SolutionSet,
    state: Steps,
    step: float,
    scale: float,
    p: float,
    tolerance: float,
    semidefinite: bool,
    done: int,
) -> Found:
    """The best bounds so far and those of the last step."""
    primal, dual = np.asarray(state.primal), np.asarray(state.dual)
    lower = max(least.lower, dual_bound(solutions, dual, p, tolerance, semidefinite))
    if semidefinite:
        # Where the cone and the solutions do not meet, the gap between them separates the two.
        apart = np.asarray(state.variable) - primal - step * dual
        lower = max(lower, dual_bound(solutions, apart, p, tolerance, semidefinite))
        if lower > _NOWHERE * scale * solutions.shape[0]:
            raise ValueError(
                "No positive semidefinite matrix fits the observations: one would have a norm "
                f"above {lower:.3g}, by a dual certificate. Pass semidefinite=False or a tolerance."
            )
        # Not projected: that would leave the cone. The residual says how nearly it fits.
        product = scale * primal
        value = norm_of(product, p)
        return Found(product, value, lower, done)
    product = solutions.project(scale * primal, tolerance)
    value = norm_of(product, p)
    if value >= least.value:
        product, value = least.product, least.value
    return Found(product, value, min(lower, value), done)
