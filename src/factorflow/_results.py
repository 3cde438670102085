"""How a run ended. Every code carries a sentence that says what to do about it."""

import functools

import diffrax
import jax

__all__ = ["LIMITS", "RESULTS", "failed", "result_name"]


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Endings of `factorflow.simulate`, a superset of `diffrax.RESULTS`.

    Limits named in `Stop` and a completed list of observations are not errors; `failed(result)`
    is true for the others. Print a result to read its sentence and remedy.
    """

    loss_reached = "The loss fell to the level given as `Stop(loss=...)`."
    gradient_norm_reached = (
        "The gradient norm fell to the level given as `Stop(gradient_norm=...)`."
    )
    observations_complete = "Every requested observation was made and no other limit was named."
    time_limit_reached = (
        "The time given as `Stop(max_time=...)` was reached. Raise it to follow the run further."
    )
    step_limit_reached = (
        "The number of steps given as `Stop(max_steps=...)` (or its default) was reached. Raise it "
        "to follow the run further, or use a larger learning rate or looser tolerance."
    )
    came_to_rest = (
        "The flow has come to rest above the loss or gradient norm given in `Stop(...)`: its steps "
        "have grown until time is too large for a number. Raise the limit, or start elsewhere."
    )
    loss_nonfinite = (
        "The loss became infinite or NaN. Lower the learning rate (stability needs it below 2 over "
        "the largest curvature), or follow the gradient flow instead. A flow itself reaches "
        "infinity in finite time where the loss has no lower bound."
    )
    step_size_underflow = (
        "The integrator's step became too small to advance the time in this precision. Loosen "
        "`rtol` and `atol`, use float64, or choose an integrator made for stiff problems."
    )
    every_step_rejected = (
        "The integrator has refused hundreds of steps in sequence, however short. Loosen `rtol` "
        "and `atol`, use float64, choose another integrator, or start from another scale."
    )
    wrong_branch = (
        "The loss cannot vanish from here: the determinant has the sign of z z' and keeps it, so "
        "w22 cannot cross zero, but it has the sign opposite to eps. The loss has come to rest at "
        "eps^2 / 2. Start with the other sign of the determinant, of eps, or from another draw."
    )


LIMITS = (
    "successful",
    "loss_reached",
    "gradient_norm_reached",
    "observations_complete",
    "time_limit_reached",
    "step_limit_reached",
)
_FAILURES = (
    "loss_nonfinite",
    "step_size_underflow",
    "every_step_rejected",
    "came_to_rest",
    "wrong_branch",
    "max_steps_reached",
    "dt_min_reached",
    "nonlinear_max_steps_reached",
    "nonlinear_divergence",
    "singular",
)


def result_name(result: RESULTS) -> str:
    """The name of one (not batched) result, e.g. `"loss_reached"`."""
    return _names().get(_code(result), "solver_failure")


@functools.cache
def _names() -> dict[int, str]:
    return {_code(getattr(RESULTS, name)): name for name in LIMITS + _FAILURES}


def _code(result: RESULTS) -> int:
    # Its only leaf. Comparing results is an operation of JAX each, which thousands of runs add up.
    (leaf,) = jax.tree.leaves(result)
    return int(leaf)


def failed(result: RESULTS) -> bool:
    """Whether one (not batched) result is an error rather than a limit that was asked for."""
    return result_name(result) not in LIMITS
