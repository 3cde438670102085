"""Second-order Runge-Kutta-Chebyshev: an explicit method for stiff problems with a real spectrum.

Gradient flow has a symmetric Jacobian: its stiffness lies on the negative real axis, where $s$
stages are stable for $h \\rho \\le 0.65 (s^2 - 1)$. Cost grows with the square root of stiffness.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

__all__ = ["RKC2", "RKC2State", "Scalar", "chebyshev_stages", "flat"]

Scalar = float | int | Array | np.ndarray

_DAMPING = 2 / 13  # stiff modes shrink by 5% per step or more, for 2% of the stability interval
_INTERVAL = 1.54  # s stages are stable for h * rho <= (s^2 - 1) / 1.54, whatever s is
_COLD_ITERATIONS = 32  # of the first power iteration: cheaper than a handful of steps
_JVP_COST = 2  # in gradients: a Jacobian-vector product computes the gradient as well
_UNKNOWN = -1  # the age of a spectral radius that was never estimated


class RKC2State(eqx.Module):
    derivative: Float[Array, " n"]  # the last evaluation of one step is the first of the next
    begun: Bool[Array, ""]  # whether that is so: not before the first step
    eigenvector: Float[Array, " n"]  # where the next power iteration starts
    spectral_radius: Float[Array, ""]
    age: Int[Array, ""]  # steps since it was estimated
    previous_step: Float[Array, ""]
    last_stages: Int[Array, ""]  # of the step that led here
    num_evaluations: Int[Array, ""]  # cost so far, in gradients

    def rejected(self, attempted: "RKC2State") -> "RKC2State":
        """The state after a rejected attempt: as before, but for what that has found out."""
        unknown = self.age == _UNKNOWN
        return eqx.tree_at(
            lambda s: (s.eigenvector, s.spectral_radius, s.age, s.num_evaluations),
            self,
            (
                jnp.where(unknown, attempted.eigenvector, self.eigenvector),
                jnp.where(unknown, attempted.spectral_radius, self.spectral_radius),
                jnp.where(unknown, 0, self.age),
                attempted.num_evaluations,
            ),
        )


class RKC2(dfx.AbstractAdaptiveSolver):
    r"""Second-order Runge-Kutta-Chebyshev method, matrix-free, for gradient flow and diffusion.

    A step of $s$ stages multiplies the mode of an eigenvalue $\lambda = z / h$ of the Jacobian by

    $$P_s(z) = 1 - b_s T_s(w_0) + b_s T_s(w_0 + w_1 z), \quad w_0 = 1 + \frac{2}{13 s^2}, \quad
    w_1 = \frac{T_s'(w_0)}{T_s''(w_0)}, \quad b_s = \frac{T_s''(w_0)}{T_s'(w_0)^2},$$

    with the Chebyshev polynomial $T_s$: $P_s(z) = 1 + z + z^2 / 2 + O(z^3)$, and $|P_s| < 1$ for
    $-(s^2 - 1) / 1.54 \le z < 0$. Each step takes the smallest $s$ that is stable for the spectral
    radius $\rho$ of the Jacobian, found by power iteration on `jax.jvp`. The estimate of the local
    error is $\frac{4}{5} (y_0 - y_1) + \frac{2}{5} h (f_0 + f_1)$, dense output is cubic Hermite.

    A step that needs more than `max_stages` is refused before it costs a stage: `y1 = y0` with
    `y_error = inf` makes an adaptive controller shrink it, and `RESULTS.dt_min_reached` ends the
    solve if a controller keeps it all the same (`diffrax` reads the result of kept steps only).

    `diffrax` drops the solver state of a rejected step. The solver recognises a rejection by a step
    shorter than the last accepted one; its `num_evaluations` cannot include it. Only forward-mode
    differentiation works, because the number of stages depends on the data.

    **Arguments:**

    - `max_stages`: bounds the cost of a rejected step; 1000 allow $h \rho \le 5 \cdot 10^5$.
    - `safety`: factor on the spectral radius, which power iteration approaches from below.
    - `refresh_every`: accepted steps between two estimates of the spectral radius, which is also
      estimated anew after a rejected step and after a jump.
    - `power_iterations`: Jacobian-vector products per estimate (the first one takes 32, and under
      `diffrax`, which drops what a rejected step has found out, so does every one before a step is
      accepted).

    !!! example

        ```python
        >>> import diffrax, jax.numpy as jnp
        >>> from factorflow._dynamics.solver import RKC2
        >>> term = diffrax.ODETerm(lambda t, y, args: -jnp.array([1.0, 1e4]) * y)
        >>> control = diffrax.PIDController(rtol=1e-5, atol=1e-8)
        >>> solution = diffrax.diffeqsolve(
        ...     term, RKC2(), 0.0, 1.0, None, jnp.ones(2), stepsize_controller=control)
        >>> print(solution.ys[0, 0].round(3))
        0.368

        ```

    ??? cite "Reference"

        ```bibtex
        @article{sommeijer1998rkc,
          title={{RKC}: An explicit solver for parabolic {PDE}s},
          author={Sommeijer, B. P. and Shampine, L. F. and Verwer, J. G.},
          journal={Journal of Computational and Applied Mathematics},
          volume={88}, number={2}, pages={315--326},
          year={1998}, doi={10.1016/S0377-0427(97)00219-7}
        }
        ```
    """

    max_stages: int = eqx.field(default=1000, static=True)
    safety: float = 1.2
    refresh_every: int = 20
    power_iterations: int = 3

    term_structure: ClassVar = dfx.ODETerm
    interpolation_cls: ClassVar = dfx.ThirdOrderHermitePolynomialInterpolation

    def __check_init__(self):
        if self.max_stages < 2:
            raise ValueError(f"`max_stages` must be at least 2, got {self.max_stages}.")

    def order(self, terms: dfx.AbstractTerm) -> int:
        return 2

    def error_order(self, terms: dfx.AbstractTerm) -> int:
        return 3  # of the second-order result itself, not of an embedded first-order one

    def func(self, terms: dfx.AbstractTerm, t0: Scalar, y0: PyTree, args: Any) -> PyTree:
        return terms.vf(t0, y0, args)

    def init(
        self, terms: dfx.AbstractTerm, t0: Scalar, t1: Scalar, y0: PyTree, args: Any
    ) -> RKC2State:
        for leaf in jax.tree.leaves(y0):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(f"`RKC2` needs real arrays, got {jnp.result_type(leaf)}.")
        y, _, _ = flat(terms, y0, args)
        # The first step evaluates and estimates: its code would only be compiled twice.
        return RKC2State(
            derivative=jnp.zeros_like(y),
            begun=jnp.asarray(False),
            eigenvector=_scrambled(y),
            spectral_radius=jnp.zeros((), y.dtype),
            age=jnp.asarray(_UNKNOWN, jnp.int32),
            previous_step=jnp.abs(jnp.asarray(terms.contr(t0, t1)).astype(y.dtype)),
            last_stages=jnp.zeros((), jnp.int32),
            num_evaluations=jnp.zeros((), jnp.int32),
        )

    def step(
        self,
        terms: dfx.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: Any,
        solver_state: RKC2State,
        made_jump: Scalar,
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], RKC2State, dfx.RESULTS]:
        start = self.begin(terms, t0, t1, y0, args, solver_state, made_jump)
        y, h, f0 = start.y, start.h, start.derivative
        needed = self.stages(jnp.abs(h), start.spectral_radius)
        refused = ~(needed <= self.max_stages)  # also if the spectral radius is not finite
        stages = jnp.where(refused, 0, needed).astype(jnp.int32)
        y1, f1 = chebyshev_stages(start.field, t0, t1, y, f0, h, stages)

        restore = start.restore
        # diffrax would make a step of NaN of a state that is not finite.
        finite = jnp.all(jnp.isfinite(y1)) & jnp.all(jnp.isfinite(f1))
        y1, f1 = jnp.where(finite, y1, y), jnp.where(finite, f1, f0)
        error = 0.8 * (y - y1) + 0.4 * h * (f0 + f1)  # not finite if the step was unstable
        error = restore(jnp.where(refused | ~finite | ~jnp.isfinite(error), jnp.inf, error))
        dense_info = dict(y0=y0, y1=restore(y1), k0=restore(h * f0), k1=restore(h * f1))
        state = start.following(f1, stages, stages)
        result = dfx.RESULTS.where(refused, dfx.RESULTS.dt_min_reached, dfx.RESULTS.successful)
        return restore(y1), error, dense_info, state, result

    def retake(
        self,
        terms: dfx.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: Any,
        state: RKC2State,
    ) -> PyTree:
        """The end of the step that led to `state`, from `y0`, taken again but only to `t1`.

        It has the stages it had, whatever is left of it: as a function of its length it is smooth.
        """
        y, field, restore = flat(terms, y0, args)
        h = jnp.asarray(terms.contr(t0, t1)).astype(y.dtype)
        y1, _ = chebyshev_stages(field, t0, t1, y, field(t0, y), h, state.last_stages)
        return restore(jnp.where(jnp.all(jnp.isfinite(y1)), y1, y))

    def stages(self, h: Float[Array, ""], spectral_radius: Float[Array, ""]) -> Float[Array, ""]:
        """How many stages a step needs."""
        stiffness = self.safety * h * spectral_radius
        return jnp.maximum(jnp.ceil(jnp.sqrt(1 + _INTERVAL * stiffness)), 2)

    def begin(
        self,
        terms: dfx.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree,
        args: Any,
        solver_state: RKC2State,
        made_jump: Scalar,
    ) -> "Start":
        """The derivative and the spectral radius at the beginning of a step."""
        y, field, restore = flat(terms, y0, args)
        # Signed: diffrax integrates backwards in time by negating the control.
        h = jnp.asarray(terms.contr(t0, t1)).astype(y.dtype)
        anew = ~solver_state.begun | made_jump
        # A loop of length 0 or 1 and not a `lax.cond`, which under `vmap` pays for both sides. `y`
        # goes through it and changes: what a loop does not change is moved out of it, and would be
        # computed in any case.
        _, _, f0 = lax.while_loop(
            lambda carry: carry[0],
            lambda carry: (jnp.asarray(False), jnp.zeros_like(carry[1]), field(t0, carry[1])),
            (anew, y, solver_state.derivative),
        )

        # Controllers shrink a step by 10% or more if they reject it and never otherwise, except to
        # end at a given time, where a new estimate does no harm. 5% leaves room for rounding.
        shrunk = jnp.abs(h) < 0.95 * solver_state.previous_step
        unknown = solver_state.age == _UNKNOWN
        refresh = anew | shrunk | (solver_state.age >= self.refresh_every)
        iterations = jnp.where(unknown, _COLD_ITERATIONS, self.power_iterations)
        iterations = jnp.where(refresh, iterations, 0).astype(jnp.int32)
        guess = solver_state.eigenvector, solver_state.spectral_radius
        eigenvector, radius = _power_iteration(partial(field, t0), y, f0, guess, iterations)
        cost = _JVP_COST * iterations + anew.astype(jnp.int32)
        return Start(
            y=y,
            h=h,
            derivative=f0,
            eigenvector=eigenvector,
            spectral_radius=radius,
            age=jnp.where(refresh, 0, solver_state.age),
            num_evaluations=solver_state.num_evaluations + cost,
            field=field,
            restore=restore,
        )


class Start(NamedTuple):
    """What is known at the beginning of a step, on vectors."""

    y: Float[Array, " n"]
    h: Float[Array, ""]
    derivative: Float[Array, " n"]
    eigenvector: Float[Array, " n"]
    spectral_radius: Float[Array, ""]
    age: Int[Array, ""]
    num_evaluations: Int[Array, ""]
    field: Callable
    restore: Callable

    def following(
        self, derivative: Float[Array, " n"], stages: Int[Array, ""], cost: Int[Array, ""]
    ) -> RKC2State:
        """The solver's state after a step of so many stages, for so many evaluations."""
        return RKC2State(
            derivative=derivative,
            begun=jnp.asarray(True),
            eigenvector=self.eigenvector,
            spectral_radius=self.spectral_radius,
            age=self.age + 1,
            previous_step=jnp.abs(self.h),
            last_stages=stages,
            num_evaluations=self.num_evaluations + cost,
        )


def chebyshev_stages(field, t0, t1, y0, f0, h, stages):
    """The new state and its derivative; without any evaluation `y0` and `f0` if `stages` is 0."""
    zero, one, s = jnp.zeros_like(h), jnp.ones_like(h), jnp.maximum(stages, 2).astype(h.dtype)
    excess = _DAMPING / s**2
    w0 = 1 + excess
    # T_s' / T_s'' at w0 = cosh(theta), from T_s = cosh(s theta).
    sinh = jnp.sqrt(excess * (2 + excess))
    w1 = sinh**2 / (s * sinh / jnp.tanh(s * jnp.log1p(excess + sinh)) - w0)
    b_start = 1 / (4 * w0**2)
    t0, t1 = (jnp.asarray(t, jnp.result_type(t0, t1, float)) for t in (t0, t1))

    def body(carry):
        j, chebyshev, increments, b_before, b_last, z_before, z_last, _, f = carry
        first = j == 1
        value, slope, bend = chebyshev
        b = jnp.where(first, b_start, bend / slope**2)
        mu, nu = 2 * b * w0 / b_last, -b / b_before
        mu_tilde = jnp.where(first, b * w1, 2 * b * w1 / b_last)
        gamma_tilde = jnp.where(first, 0, -(1 - b_last * (value - increments[0])) * mu_tilde)
        # A stage is kept as an increment on y0: the recurrence amplifies rounding errors, which
        # then are relative to the increment and not to the state.
        z = mu * z_last + nu * z_before + h * (mu_tilde * f + gamma_tilde * f0)
        share = w1 * jnp.where(first, b_start, bend / slope)  # of the step, in time; 1 at the end
        y = y0 + z
        f = field(t0 + share.astype(t0.dtype) * (t1 - t0), y)
        # T_{j+1} = 2 w0 T_j - T_{j-1} and its derivatives, written for increments so that only
        # positive numbers are added: w0 is nearly 1, and the differences would cancel.
        increments = increments + 2 * excess * chebyshev + jnp.stack([zero, 2 * value, 4 * slope])
        return j + 1, chebyshev + increments, increments, b_last, b, z_last, z, y, f

    # T_1 with its two derivatives, and what they have grown by since T_0.
    chebyshev, increments = jnp.stack([w0, one, zero]), jnp.stack([excess, one, zero])
    z = jnp.zeros_like(y0)
    start = (jnp.ones_like(stages), chebyshev, increments, b_start, b_start, z, z, y0, f0)
    *_, y1, f1 = lax.while_loop(lambda carry: carry[0] <= stages, body, start)
    return y1, f1


def _power_iteration(field, y, derivative, guess, iterations):
    """Refines the leading eigenvector of the Jacobian and the spectral radius."""
    vector, radius = guess
    # The derivative joins the start because there a mode shows that has just become the stiffest:
    # in the old eigenvector it may be lost, down to the last bit. The sign rules out cancellation.
    derivative = jnp.where(jnp.vdot(vector, derivative) < 0, -1, 1) * _unit(derivative)
    vector = jnp.where(iterations > 0, _unit(vector + derivative), vector)

    def body(carry):
        i, vector, _ = carry
        image = jax.jvp(field, (y,), (vector,))[1]
        radius = jnp.linalg.norm(image)
        usable = (radius > 0) & jnp.isfinite(radius)
        vector = jnp.where(usable, image / jnp.where(usable, radius, 1), vector)
        return i + 1, vector, lax.stop_gradient(radius)

    start = (jnp.zeros((), jnp.int32), vector, radius)
    return lax.while_loop(lambda carry: carry[0] < iterations, body, start)[1:]


def _unit(vector):
    # Scaled first, because squares underflow: in single precision those of 1e-19.
    tiny = jnp.finfo(vector.dtype).tiny
    vector = vector / jnp.maximum(jnp.max(jnp.abs(vector), initial=0), tiny)
    return vector / jnp.maximum(jnp.linalg.norm(vector), tiny)


def _scrambled(y):
    """A fixed direction that shares no symmetry with the problem: a hash of each position."""
    bits = jnp.arange(1, y.size + 1, dtype=jnp.uint32)
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(multiplier)
    return _unit(bits.astype(y.dtype) / 2.0**32 - 0.5)


def flat(terms, y0, args):
    """The state as one vector in its widest dtype, the vector field on it, and the way back."""
    ravel = jax.numpy_dtype_promotion("standard")(ravel_pytree)
    y, restore = ravel(y0)
    return y, lambda t, v: ravel(terms.vf(t, restore(v), args))[0], restore
