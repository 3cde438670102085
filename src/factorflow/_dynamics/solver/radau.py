"""Radau IIA collocation with any number of stages, for small stiff systems to high accuracy."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from factorflow._linalg import solve

__all__ = ["CollocationStep", "Radau"]

_MAX_ITERATIONS = 9
# Newton's last correction, and the largest one that is still accepted if it does not shrink
# further (rounding), both as shares of the tolerance of the step.
_CONVERGED, _ACCEPTABLE = 1e-3, 0.3


class CollocationStep(eqx.Module):
    """The collocation polynomial over one attempted step, and how it was found."""

    start: Float[Array, " n"]
    stages: Float[Array, "s n"]
    error: Float[Array, ""]  # largest scaled last Legendre coefficient
    rate: Float[Array, ""]  # largest scaled velocity where the last iteration began
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


class Radau(eqx.Module):
    r"""Radau IIA: the polynomial that satisfies $\dot y = f(y)$ at the $s$ Radau points of a step.

    Order $2s - 1$ at the end of the step and $s$ along it; L-stable and stiffly accurate, the last
    stage is the new state. All stages are solved for together by Newton's method with the exact
    Jacobian at every stage. The size of the last Legendre coefficient of the polynomial measures
    what its degree could not represent, and serves as error estimate.

    **Arguments:**

    - `stages`: number of stages $s \ge 2$.

    ??? cite "Reference"

        ```bibtex
        @book{hairer1996solving,
          title={Solving Ordinary Differential Equations {II}: Stiff and
                 Differential-Algebraic Problems},
          author={Hairer, Ernst and Wanner, Gerhard},
          edition={2}, publisher={Springer}, year={1996}
        }
        ```
    """

    stages: int = eqx.field(default=7, static=True)

    def __check_init__(self):
        if self.stages < 2:
            raise ValueError(f"`stages` must be at least 2, got {self.stages}.")

    def step(
        self,
        fields: Callable,
        y: Float[Array, " n"],
        h: Float[Array, ""],
        guess: Float[Array, "s n"],
        scale: Float[Array, " n"],
        tolerance: Float[Array, ""],
        wanted: Bool[Array, ""],
    ) -> CollocationStep:
        """Solve for the stages of one step; nothing is solved, or promised, where not wanted.

        `fields` maps stages `(s, n)` to the field `(s, n)` and its Jacobian `(s, n, n)` there;
        `scale` is the natural size of every component.
        """
        table = _table(self.stages)
        weights = jnp.asarray(table.weights, y.dtype)
        s, n = guess.shape
        scales = jnp.tile(scale, s)

        def correct(carry):
            stages, iteration, size, _, _ = carry
            values, jacobians = fields(stages)
            rate = jnp.max(jnp.abs(values) / scale)
            residual = (y + h * weights @ values - stages).reshape(-1) / scales
            coupled = weights[:, None, :, None] * jnp.moveaxis(jacobians, 0, 1)[None]
            matrix = jnp.eye(s * n, dtype=y.dtype) - h * coupled.reshape(s * n, s * n)
            matrix = matrix * scales[None, :] / scales[:, None]
            # Stiff rows are up to 1e22 times larger than others: without equilibration the pivots
            # of the elimination are chosen among incomparable numbers, and Newton stalls.
            rows = 1 / jnp.max(jnp.abs(matrix), axis=1)
            # Lanes that have converged, or that wait for others, cost no elimination.
            change = solve(matrix * rows[:, None], residual * rows, unfinished(carry))
            stages = stages + (change * scales).reshape(s, n)
            return stages, iteration + 1, jnp.max(jnp.abs(change)), size, rate

        def unfinished(carry):
            _, iteration, size, before, _ = carry
            stalled = (iteration > 3) & (size > before / 2) & (size < _ACCEPTABLE * tolerance)
            more = (size > _CONVERGED * tolerance) & jnp.isfinite(size)
            return wanted & (iteration < _MAX_ITERATIONS) & more & ~stalled

        large = jnp.asarray(1e9, y.dtype)
        start = (guess, jnp.zeros((), jnp.int32), large, 2 * large, jnp.zeros_like(h))
        stages, iterations, size, _, rate = lax.while_loop(unfinished, correct, start)
        finite = jnp.isfinite(size) & jnp.all(jnp.isfinite(stages))
        tail = jnp.asarray(table.tail, y.dtype) @ jnp.concatenate([y[None], stages])
        return CollocationStep(
            start=y,
            stages=stages,
            error=jnp.where(finite, jnp.max(jnp.abs(tail) / scale), jnp.inf),
            rate=rate,
            converged=(size <= _ACCEPTABLE * tolerance) & finite,
            iterations=iterations,
        )

    def interpolate(
        self, start: Float[Array, " n"], stages: Float[Array, "s n"], share: Float[Array, ""]
    ) -> Float[Array, " n"]:
        """The polynomial at a share of the step in [0, 1], or beyond it as a prediction."""
        table = _table(self.stages)
        values = jnp.concatenate([start[None], stages])
        distances = share - jnp.asarray(table.points, start.dtype)
        tiny = jnp.finfo(start.dtype).tiny
        weights = jnp.asarray(table.barycentric, start.dtype)
        weights = weights / jnp.where(distances == 0, tiny, distances)
        # At a point itself the weight overflows; the value there is the answer.
        at = jnp.argmin(jnp.abs(distances))
        return jnp.where(distances[at] == 0, values[at], weights @ values / jnp.sum(weights))

    def predict(
        self,
        start: Float[Array, " n"],
        stages: Float[Array, "s n"],
        ratio: Float[Array, ""],
    ) -> Float[Array, "s n"]:
        """Stages of the following step, `ratio` times as long, by extrapolation."""
        nodes = jnp.asarray(_table(self.stages).points[1:], start.dtype)
        return jax.vmap(lambda node: self.interpolate(start, stages, 1 + node * ratio))(nodes)

    def quadrature(self, values: Float[Array, " s"]) -> Float[Array, ""]:
        """Integral over a unit step of what takes these values at the stages."""
        return jnp.asarray(_table(self.stages).weights[-1], values.dtype) @ values


class _Table:
    """Nodes, weights and what follows from them, in double precision."""

    def __init__(self, stages: int):
        legendre = np.polynomial.legendre
        # Right Radau points: the zeros of P_s - P_{s-1} on [-1, 1], polished by Newton's method.
        coefficients = np.zeros(stages + 1)
        coefficients[stages - 1 :] = -1, 1
        polynomial = legendre.Legendre(coefficients)
        slope = polynomial.deriv()
        nodes = np.sort(legendre.legroots(coefficients).real)
        nodes[-1] = 1
        for _ in range(3):
            nodes[:-1] -= polynomial(nodes[:-1]) / slope(nodes[:-1])
        nodes = (nodes + 1) / 2
        gauss, gauss_weights = legendre.leggauss(stages + 2)

        def lagrange(at):
            return np.stack(
                [
                    np.prod([(at - other) / (node - other) for other in nodes if other != node], 0)
                    for node in nodes
                ],
                -1,
            )

        self.weights = np.stack(
            [
                (lagrange(n * (gauss + 1) / 2) * (gauss_weights * n / 2)[:, None]).sum(0)
                for n in nodes
            ]
        )
        self.points = np.concatenate([[0.0], nodes])
        differences = self.points[:, None] - self.points + np.eye(stages + 1)
        self.barycentric = 1 / np.prod(differences, axis=1)
        highest = np.zeros(stages + 1)
        highest[-1] = 1
        leading = legendre.leg2poly(highest)[-1] * 2.0**stages
        self.tail = self.barycentric / leading


@functools.cache
def _table(stages: int) -> _Table:
    return _Table(stages)
