"""The settings all figures of the paper share."""

import numpy as np

from factorflow._dynamics import AbstractDynamics, GradientDescent, GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import AbstractInitializer, Balanced, Gaussian
from factorflow._initializer.base import Sign
from factorflow._observe import AtLosses, Stop
from factorflow.experiments import Experiment, RazinCohenTask

__all__ = [
    "MARKER_LOSSES",
    "NORMS",
    "SOURCE",
    "experiment",
    "flow",
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
    """The flow beside the descent curves.

    At a relative tolerance of 1e-7 per step its entry is within 1e-8 of the high-precision
    reference at depth 3; the line drawn is a thousand times thicker.
    """
    return GradientFlow("RKC2", rtol=1e-7, atol=1e-9)


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
) -> Experiment:
    """One run with the paper's stopping rule; flows end at the loss itself."""
    task = task or RazinCohenTask()
    every = CHECK_EVERY if isinstance(dynamics, GradientDescent) else 1
    return Experiment(
        task=task,
        factorization=DeepMatrix((task.dim, task.dim), depth),
        initializer=initializer,
        dynamics=dynamics,
        observe=AtLosses(levels(final_loss)),
        stop=Stop(loss=final_loss, max_steps=max_steps, every=every),
        measures=measures(task.dim),
        seed=seed,
        dtype=dtype,
    )


def unique(experiments: list[Experiment]) -> list[Experiment]:
    """The experiments without repetitions: two parts of a figure may ask for the same run."""
    return list({experiment.key(): experiment for experiment in experiments}.values())
