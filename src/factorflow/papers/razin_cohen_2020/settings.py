"""The settings all figures of the paper share."""

from collections.abc import Sequence

import numpy as np

from factorflow._dynamics import AbstractDynamics, GradientDescent, GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import AbstractInitializer, Balanced, Gaussian
from factorflow._initializer.base import Sign
from factorflow._observe import AtLosses, Stop
from factorflow.experiments import Experiment, RazinCohenTask

__all__ = [
    "FLOW_LEVELS",
    "MARKER_LOSSES",
    "MAX_STEPS",
    "NORMS",
    "SOURCE",
    "experiment",
    "flow",
    "flow_experiment",
    "initializers",
    "levels",
    "unique",
]

SOURCE = "Razin & Cohen 2020"

# Losses at which the exact frontier is known to 4 digits; the published curves touch it there.
MARKER_LOSSES = (1.3e-1, 1.3e-2, 1.3e-3, 1.3e-4)

NORMS = ("nuclear_norm", "frobenius_norm", "spectral_norm", "schatten_norm[0.5]", "max_norm")

# The paper stops when the loss is at most 1e-4, checked every 50 iterations, or after 5e6.
FINAL_LOSS = 1e-4
MAX_STEPS = 5_000_000
CHECK_EVERY = 50


def levels(final: float = FINAL_LOSS, rows: int = 61) -> list[float]:
    """Log-spaced losses from 1 to the final one, with the marker losses in their places.

    Always the same number, so that experiments with other final losses share a compilation.
    """
    markers = [loss for loss in MARKER_LOSSES if loss > final]
    grid = np.geomspace(1.0, final, rows - len(markers))
    return sorted({*grid[:-1].tolist(), *markers, final}, reverse=True)


# Five rows per decade, for every flow: they share a compilation wherever they end.
FLOW_FINAL_LOSS = 1e-12
FLOW_LEVELS = tuple(float(f"1e-{k // 5}") * 10 ** (-(k % 5) / 5) for k in range(61))


def measures(dim: int) -> list[str]:
    """Everything the figures draw and the claims check."""
    return [
        "loss",
        "entry[0,0]",
        "entry[1,1]",
        *NORMS,
        "effective_rank",
        "effective_rank_excess",
        f"distance_to_rank[{dim - 1}]",
        "determinant_sign",
        "log_abs_determinant",
        "log_singular_values",
        "balancedness_gap",
    ]


def initializers(product_scale: float, determinant: Sign) -> dict[str, AbstractInitializer]:
    """Balanced, and layer-wise Gaussian ("unbalanced"), with the product's entries at one scale."""
    return {
        "balanced": Balanced(product_scale=product_scale, determinant=determinant),
        "unbalanced": Gaussian(product_scale=product_scale, determinant=determinant),
    }


def flow() -> GradientFlow:
    """The flow, in the coordinates that suit each start."""
    return GradientFlow()


def experiment(
    depth: int,
    initializer: AbstractInitializer,
    dynamics: AbstractDynamics,
    *,
    task: RazinCohenTask | None = None,
    final_loss: float = FINAL_LOSS,
    max_steps: int = MAX_STEPS,
    seed: int = 0,
    dtype: str = "float64",
    certify: str = "cheap",
    rows: Sequence[float] | None = None,
) -> Experiment:
    """One run with the paper's stopping rule; flows end at the loss itself."""
    task = task or RazinCohenTask()
    descent = isinstance(dynamics, GradientDescent)
    every = CHECK_EVERY if descent else 1
    return Experiment(
        task=task,
        factorization=DeepMatrix((task.dim, task.dim), depth),
        initializer=initializer,
        dynamics=dynamics,
        observe=AtLosses(list(rows) if rows else levels(final_loss)),
        stop=Stop(loss=final_loss, max_steps=max_steps, every=every),
        measures=measures(task.dim),
        seed=seed,
        dtype=dtype,
        certify=certify,
    )


def flow_experiment(
    depth: int,
    initializer: AbstractInitializer,
    *,
    task: RazinCohenTask | None = None,
    final_loss: float = FLOW_FINAL_LOSS,
    seed: int = 0,
) -> Experiment:
    """A flow, with rows down to a loss of 1e-12."""
    return experiment(
        depth,
        initializer,
        flow(),
        task=task,
        final_loss=final_loss,
        max_steps=20_000,
        seed=seed,
        rows=FLOW_LEVELS,
    )


def unique(experiments: list[Experiment]) -> list[Experiment]:
    """The experiments without repetitions: two parts of a figure may ask for the same run."""
    return list({experiment.key(): experiment for experiment in experiments}.values())
