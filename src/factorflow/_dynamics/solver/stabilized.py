"""Tsit5 while accuracy limits the step, RKC2 once stability would: explicit, for a real spectrum.

Gradient flow from a small initialization grows exponentially before it contracts. Errors of the
growth are amplified and call for a high order, on a problem that is not stiff yet; afterwards the
problem is stiff, errors are forgotten, and a large step matters more than its order.
"""

import functools
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from factorflow._dynamics.solver.rkc2 import RKC2, RKC2State, Scalar, chebyshev_stages, flat

__all__ = ["Stabilized"]

# Tsit5 is stable for h * rho up to this, on the negative real axis.
_INTERVAL = 3.3
_STAGES = 6
# What the controller does with an error: the safety factor, and the limits on the change of a step.
_SAFETY, _SHORTEST, _LONGEST = 0.9, 0.2, 10.0
# RKC2's pace is judged after the steps in which the controller lets it grow.
_LONGEST_SWITCH = 50.0
# The least error of a refused step, which must not be kept, and the largest of one that must be.
_REFUSED, _KEPT = 1.1, 0.95
# How much cheaper per time the other method must look: switching has a cost of its own.
_CHEAPER = 1.2


class _StabilizedState(eqx.Module):
    common: RKC2State
    stiff: Bool[Array, ""]  # whether the next step is RKC2's
    was_stiff: Bool[Array, ""]  # whether the last one was

    @property
    def num_evaluations(self) -> Any:
        return self.common.num_evaluations

    @property
    def derivative(self) -> Float[Array, " n"]:
        """The field at the end of the last step that was kept, as one vector."""
        return self.common.derivative

    def rejected(self, attempted: "_StabilizedState") -> "_StabilizedState":
        """The state after a rejected attempt."""
        return eqx.tree_at(lambda s: s.common, self, self.common.rejected(attempted.common))


class Stabilized(dfx.AbstractAdaptiveSolver):
    r"""The Runge-Kutta method of Tsitouras where it is stable, and `RKC2` where that pays.

    A step of Tsit5 costs 6 evaluations and is stable for $h \rho \le 3.3$, with the spectral radius
    $\rho$ of the Jacobian. While its error allows longer steps than that, the error of an `RKC2`
    step over the same $h$ (known without further evaluations) predicts what `RKC2` would cost per
    unit of time, and the cheaper method goes on.

    The two have different orders, and a `diffrax` controller knows one. The solver therefore
    measures the error itself, with the controller's tolerances, and hands it on as the error of a
    third-order estimate that leads to the step it wants: the exponent $3/5$ for Tsit5, no less than
    what ends at the stability limit. A step of Tsit5 beyond that limit is refused at no cost, with
    `y1 = y0`; as in `RKC2`, `RESULTS.dt_min_reached` ends the solve if a controller keeps it.

    **Arguments:**

    - `rtol`, `atol`: those of the controller.
    - `rkc2`: the method for stiff steps, with its estimate of the spectral radius.

    !!! example

        ```python
        >>> import diffrax, jax.numpy as jnp
        >>> from factorflow._dynamics.solver import Stabilized
        >>> term = diffrax.ODETerm(lambda t, y, args: -jnp.array([1.0, 1e4]) * y)
        >>> solver = Stabilized(rtol=1e-5, atol=1e-8)
        >>> control = diffrax.PIDController(rtol=1e-5, atol=1e-8)
        >>> solution = diffrax.diffeqsolve(
        ...     term, solver, 0.0, 1.0, None, jnp.ones(2), stepsize_controller=control)
        >>> print(solution.ys[0, 0].round(3))
        0.368

        ```

    ??? cite "Reference"

        `RKC2` gives that of the stiff method.

        ```bibtex
        @article{tsitouras2011runge,
          title={Runge--{K}utta pairs of order 5(4) satisfying only the first column simplifying
                 assumption},
          author={Tsitouras, Ch.},
          journal={Computers \& Mathematics with Applications},
          volume={62}, number={2}, pages={770--775},
          year={2011}, doi={10.1016/j.camwa.2011.06.002}
        }
        ```
    """

    rtol: Any = 1e-8
    atol: Any = 1e-10
    rkc2: RKC2 = RKC2()

    term_structure: ClassVar = dfx.ODETerm
    interpolation_cls: ClassVar = dfx.ThirdOrderHermitePolynomialInterpolation

    def order(self, terms: dfx.AbstractTerm) -> int:
        return 2

    def error_order(self, terms: dfx.AbstractTerm) -> int:
        return 3

    def func(self, terms: dfx.AbstractTerm, t0: Scalar, y0: PyTree, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)

    def init(
        self, terms: dfx.AbstractTerm, t0: Scalar, t1: Scalar, y0: PyTree, args: Any
    ) -> _StabilizedState:
        no = jnp.asarray(False)
        return _StabilizedState(self.rkc2.init(terms, t0, t1, y0, args), no, no)

    def retake(
        self,
        terms: dfx.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: Any,
        state: _StabilizedState,
    ) -> PyTree:
        """As `RKC2.retake`: by the method of the last step."""
        y, field, restore = flat(terms, y0, args)
        h = jnp.asarray(terms.contr(t0, t1)).astype(y.dtype)
        f0, stages = field(t0, y), jnp.where(state.was_stiff, state.common.last_stages, 0)
        y1, f1 = chebyshev_stages(field, t0, t1, y, f0, h, stages)
        y1, _, _ = _tsit5(field, t0, t1, h, ~state.was_stiff, (y, f0, y1, f1))
        return restore(jnp.where(jnp.all(jnp.isfinite(y1)), y1, y))

    def step(
        self,
        terms: dfx.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: Any,
        solver_state: _StabilizedState,
        made_jump: Scalar,
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], _StabilizedState, dfx.RESULTS]:
        start = self.rkc2.begin(terms, t0, t1, y0, args, solver_state.common, made_jump)
        y, h, f0, stiff = start.y, start.h, start.derivative, solver_state.stiff
        size, rho = jnp.abs(h), start.spectral_radius
        needed = self.rkc2.stages(size, rho)
        # Negated so that a spectral radius that is not finite is refused too.
        refused = ~jnp.where(stiff, needed <= self.rkc2.max_stages, size * rho <= _INTERVAL)
        stages = jnp.where(stiff & ~refused, needed, 0).astype(jnp.int32)
        y1, f1 = chebyshev_stages(start.field, t0, t1, y, f0, h, stages)
        y1, f1, fifth = _tsit5(start.field, t0, t1, h, ~stiff & ~refused, (y, f0, y1, f1))

        # diffrax would make a step of NaN of a state that is not finite.
        finite = jnp.all(jnp.isfinite(y1)) & jnp.all(jnp.isfinite(f1))
        y1, f1 = jnp.where(finite, y1, y), jnp.where(finite, f1, f0)
        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(y), jnp.abs(y1))
        of_tsit5 = _rms(fifth / scale)
        of_rkc2 = _rms((0.8 * (y - y1) + 0.4 * h * (f0 + f1)) / scale)
        # What each method would do next.
        limit = jnp.where(rho > 0, _INTERVAL / (self.rkc2.safety * rho), jnp.inf)
        longest = jnp.where(stiff, _LONGEST, _LONGEST_SWITCH)
        accurate = size * _change(of_tsit5, 5, _LONGEST)
        next_rkc2 = size * _change(of_rkc2, 3, longest)
        next_tsit5 = jnp.where(stiff, limit, jnp.minimum(accurate, limit))
        rkc2_pace = next_rkc2 / self.rkc2.stages(next_rkc2, rho)
        tsit5_pace = next_tsit5 / _STAGES
        limited = accurate > _SAFETY * limit
        following = jnp.where(
            stiff, _CHEAPER * rkc2_pace > tsit5_pace, limited & (rkc2_pace > _CHEAPER * tsit5_pace)
        )

        # The error with which the controller takes that step.
        ends_at = jnp.where(following, next_rkc2, next_tsit5)
        wanted = (_SAFETY * size / ends_at) ** 3
        of_tsit5 = jnp.where(of_tsit5 > 1, of_tsit5**0.6, jnp.minimum(wanted, _KEPT))
        beyond = jnp.maximum((_SAFETY * size / limit) ** 3, _REFUSED)
        refusal = jnp.where(stiff | ~jnp.isfinite(rho), jnp.inf, beyond)
        error = jnp.where(refused, refusal, jnp.where(stiff, of_rkc2, of_tsit5))
        error = jnp.where(finite & jnp.isfinite(error), error * scale, jnp.inf)

        cost = jnp.where(stiff | refused, stages, _STAGES).astype(jnp.int32)
        state = _StabilizedState(start.following(f1, stages, cost), following, stiff)
        restore = start.restore
        dense_info = dict(y0=y0, y1=restore(y1), k0=restore(h * f0), k1=restore(h * f1))
        result = dfx.RESULTS.where(refused, dfx.RESULTS.dt_min_reached, dfx.RESULTS.successful)
        return restore(y1), restore(error), dense_info, state, result


def _tsit5(
    field, t0: Scalar, t1: Scalar, h: Float[Array, ""], wanted: Bool[Array, ""], known: Any
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """State, derivative and error after a step, if wanted; else those known, and no error."""
    y, f0, otherwise, slope = known
    t0, t1 = (jnp.asarray(t, jnp.result_type(t0, t1, float)) for t in (t0, t1))
    nodes, rows, weights = _tableau(t0.dtype, y.dtype)
    # Accelerators would otherwise round single precision further in products of matrices.
    exactly = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def compute(carry):
        _, y, _, _, _ = carry

        # A loop, though its length is known: the field is compiled once instead of six times.
        def stage(number, carry):
            slopes, _ = carry
            y1 = y + h * exactly(rows[number], slopes)
            slope = field(t0 + nodes[number] * (t1 - t0), y1)
            return slopes.at[number + 1].set(slope), y1

        slopes = jnp.zeros((_STAGES + 1, *y.shape), y.dtype).at[0].set(f0)
        slopes, y1 = lax.fori_loop(0, _STAGES, stage, (slopes, y))
        # As in `RKC2.begin`: a loop of length 0 or 1, through which `y` goes and changes.
        return jnp.asarray(False), jnp.zeros_like(y), y1, slopes[-1], h * exactly(weights, slopes)

    start = wanted, y, otherwise, slope, jnp.zeros_like(y)
    _, _, y1, f1, error = lax.while_loop(lambda carry: carry[0], compute, start)
    return y1, f1, error


def _tableau(time_dtype: Any, dtype: Any) -> tuple[Array, Array, Array]:
    """Nodes, rows of the matrix filled up with zeros, and weights of the error."""
    tableau = dfx.Tsit5.tableau
    rows = [np.pad(row, (0, _STAGES + 1 - len(row))) for row in tableau.a_lower]
    return (
        jnp.asarray(tableau.c, time_dtype),
        jnp.asarray(np.stack(rows), dtype),
        jnp.asarray(tableau.b_error, dtype),
    )


def _rms(values: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(values)))


def _change(error: Float[Array, ""], order: int, longest: Any) -> Float[Array, ""]:
    tiny = jnp.finfo(error.dtype).tiny
    change = _SAFETY * jnp.maximum(error, tiny) ** (-1 / order)
    return jnp.clip(change, _SHORTEST, longest)
