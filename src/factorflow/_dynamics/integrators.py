"""Which diffrax solver follows a flow, and with which step-size control."""

import diffrax
import equinox as eqx
import jax.numpy as jnp

from factorflow._dynamics.solver import RKC2, Stabilized
from factorflow._names import named

__all__ = [
    "INTEGRATORS",
    "check_tolerances",
    "choose_integrator",
    "default_tolerances",
    "is_solver",
    "with_tolerances",
]

INTEGRATORS = {
    "Tsit5": diffrax.Tsit5,
    "Dopri5": diffrax.Dopri5,
    "Dopri8": diffrax.Dopri8,
    "Kvaerno3": diffrax.Kvaerno3,
    "Kvaerno5": diffrax.Kvaerno5,
    "RKC2": RKC2,
    "Stabilized": Stabilized,
}

# Of a step. At 1e-8 the errors of explicit flows at their end reached 1e-6, which is what
# certificates promise.
_TOLERANCES = {"float64": (1e-9, 1e-11), "float32": (1e-4, 1e-6)}


def choose_integrator(integrator) -> diffrax.AbstractSolver:
    """A diffrax solver from a solver, a name, or `None` for `Stabilized`.

    Gradient flow has a symmetric Jacobian, which is what stabilized explicit methods are made for,
    once the growth of small factors is over. Compared by gradients against error with RKC2, RKL2,
    ROCK2, ROCK4 and two-step RKC on completions of 20x20 and 100x100 matrices at depth 3 and of an
    8x8x8 tensor: `Stabilized` needs a half of what ROCK4 does, next best, and an eighth of RKC2.
    """
    if integrator is None:
        integrator = "Stabilized"
    if isinstance(integrator, str):
        return INTEGRATORS[named("integrator", integrator, INTEGRATORS)]()
    if isinstance(integrator, diffrax.AbstractSolver):
        if integrator.term_structure is not diffrax.AbstractTerm:
            raise ValueError(
                f"{type(integrator).__name__} is not made for a single ordinary differential "
                f"equation; names of solvers that are: {', '.join(INTEGRATORS)}."
            )
        if not isinstance(integrator, diffrax.AbstractAdaptiveSolver):
            raise ValueError(
                f"{type(integrator).__name__} does not estimate its error, which tolerances need; "
                f"give `diffrax.HalfSolver({type(integrator).__name__}())` or a name: "
                f"{', '.join(INTEGRATORS)}."
            )
        return integrator
    raise ValueError(
        f"integrator must be a diffrax solver, a name or None, got {integrator!r}. Names: "
        f"{', '.join(INTEGRATORS)}."
    )


def default_tolerances(dtype) -> tuple[float, float]:
    """Relative and absolute tolerance per step in a dtype."""
    return _TOLERANCES.get(jnp.dtype(dtype).name, _TOLERANCES["float32"])


def with_tolerances(
    solver: diffrax.AbstractSolver, rtol, atol, dtype
) -> tuple[diffrax.AbstractSolver, diffrax.AbstractStepSizeController]:
    """Solver and step-size controller at the given tolerances, or at the dtype's defaults."""
    defaults = default_tolerances(dtype)
    rtol = jnp.asarray(defaults[0] if rtol is None else rtol, dtype)
    atol = jnp.asarray(defaults[1] if atol is None else atol, dtype)
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    if isinstance(solver, Stabilized):
        solver = eqx.tree_at(lambda s: (s.rtol, s.atol), solver, (rtol, atol))
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        # `diffeqsolve` hands the controller's tolerances to Newton's method; stepping by hand must.
        solver = eqx.tree_at(
            lambda s: (s.root_finder.rtol, s.root_finder.atol, s.root_finder.norm),
            solver,
            (rtol, atol, controller.norm),
        )
    return solver, controller


def is_solver(value) -> bool:
    """Whether this is a diffrax solver object."""
    return isinstance(value, diffrax.AbstractSolver)


def check_tolerances(rtol: float | None, atol: float | None) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, int | float) and not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value}.")
