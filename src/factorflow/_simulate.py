"""The one numerical entry point."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from factorflow._certify import CERTIFY, Certify, follow_certified
from factorflow._dynamics import AbstractDynamics
from factorflow._factorization import AbstractFactorization
from factorflow._names import named
from factorflow._observe import AbstractObservation, Stop
from factorflow._problem import AbstractProblem
from factorflow._results import RESULTS, failed
from factorflow._settings import own_settings
from factorflow._spec import prepare
from factorflow._trajectory import Trajectory
from factorflow._types import Factors, RandomKey

__all__ = ["simulate"]


@own_settings()
def simulate(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    dynamics: AbstractDynamics,
    factors: Factors,
    *,
    observe: AbstractObservation,
    stop: Stop,
    measures: Any = ("loss",),
    key: RandomKey | None = None,
    certify: Certify = "cheap",
    throw: bool = True,
    progress_meter: Callable[[str], None] | None = None,
) -> Trajectory:
    """Follow `factors` under `dynamics` on `problem`, and observe.

    **Arguments:**

    - `problem`: what is fitted, e.g. `Completion`.
    - `factorization`: how factors compose, e.g. `DeepMatrix`.
    - `dynamics`: `GradientDescent`, `GradientFlow`, `EndToEndFlow` or `MultirateFlow`.
    - `factors`: where to start. Their dtype, float32 or float64, is the dtype of the run.
    - `observe`: `AtLosses`, `AtTimes`, `AtSteps`, `LogSpaced` or `AtEnd`; one row per slot.
    - `stop`: a `Stop`. The run also ends once every row is observed if `stop` names no limit.
    - `measures`: names, `Measure`s, or functions of a `Snapshot`.
    - `key`: a random key, needed by minibatches and label noise only.
    - `certify`: `"cheap"` checks the invariants of the run itself, and flows in coordinates of
        their own against a second discretization; `"full"` adds companion runs for all others: of
        descent with half the step, in double precision, and of the flow itself, of flows with a
        hundredth of the tolerance.
    - `throw`: raise on non-finite values, solver failure and underflow; `False` leaves the result
        code to the caller.
    - `progress_meter`: called with a line before and after the run, e.g. `print`.

    **Returns:** a `Trajectory`.

    **Raises:** `ValueError` for input that cannot be run, `RuntimeError` for a run that failed.

    A run is compiled as a whole, once per structure: `simulate` is not called under `jit`, `vmap`
    or `grad`. Many runs at once are `factorflow.experiments.run`'s; derivatives are those of a
    problem's `loss` and of measures.

    **Warns:** `UserWarning`, once per process, where JAX's default has made it a run in single
    precision; `jax.config.update("jax_enable_x64", True)` at the start of a program enables double.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=3)
        >>> trajectory = ff.simulate(
        ...     problem, fz, ff.GradientDescent(1e-2), ff.Identity(product_scale=1e-2)(fz),
        ...     observe=ff.AtLosses([1e-1, 1e-2]), stop=ff.Stop(loss=1e-2),
        ...     measures=["loss", "effective_rank"])
        >>> trajectory.result_name
        'loss_reached'

        ```
    """
    named("certify", certify, CERTIFY)
    spec = prepare(
        problem,
        factorization,
        dynamics,
        factors,
        observe=observe,
        stop=stop,
        measures=measures,
        key=key,
    )
    _say_if_single(spec.factors)
    if progress_meter is not None:
        progress_meter(f"following {len(spec.levels)} rows")
    # Arrays without dimensions, not NumPy scalars, which an enumeration cannot read.
    trajectory = jax.tree.map(
        lambda leaf: np.asarray(leaf[0]), follow_certified([spec], 1, certify)
    )
    if progress_meter is not None:
        progress_meter(f"ended: {trajectory.result_name}")
    if throw and failed(trajectory.result):
        steps, time, loss = (trajectory.stats[name] for name in ("num_steps", "time", "loss"))
        raise RuntimeError(
            f"{RESULTS[trajectory.result]} It ended after {int(steps)} steps at time "
            f"{float(time):.6g} with loss {float(loss):.6g}; `throw=False` returns the rows so far."
        )
    return trajectory


@functools.cache  # once per process
def _warn_of_single() -> None:
    warnings.warn(
        "This run is in single precision, JAX's default: about seven digits, and certificates to "
        "1e-2 instead of 1e-6. For double precision put "
        'jax.config.update("jax_enable_x64", True) before the first array.',
        stacklevel=4,
    )


def _say_if_single(factors: Factors) -> None:
    if not jax.config.jax_enable_x64 and jax.tree.leaves(factors)[0].dtype == "float32":  # pyright: ignore[reportAttributeAccessIssue]
        _warn_of_single()
