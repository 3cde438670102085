"""The problems, initializations and runs of the comparison with greedy low-rank learning."""

from factorflow._dynamics import AbstractDynamics, GradientDescent, GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import Balanced
from factorflow._observe import AtSteps, Stop
from factorflow.experiments import AbstractTask, Experiment, RandomLowRankTask, RazinCohenTask

__all__ = ["SOURCE", "experiments", "tied_experiments"]

SOURCE = "Li, Luo & Lyu 2021"

# By scale: side, rank, observed entries, depths, initializations and seeds. A seed draws the
# problem and the initialization.
SETTINGS = {
    "quick": (12, 2, 115, (2, 3), (1e-2, 1e-4, 1e-6, 1e-8), range(3)),
    "paper": (12, 2, 115, (2, 3, 4), (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), range(10)),
    "beyond": (20, 2, 240, (2, 3, 4), (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), range(10)),
}
TIED_INITS = (1e-2, 1e-4, 1e-6, 1e-8)

# Of a problem whose ground truth has Frobenius norm 1 and a loss of about 0.4 at zero: ten times
# below, the products of flow and greedy learning move by 1% of that norm.
LOSS = 1e-5
# Between the loss of one settled direction, 0.5, and that of both. Solutions with positive
# determinant lie at infinity, and near them distances measure the way there.
TIED_LOSS = 0.25

# The solver's own steps are close where flow leaves a plateau, which no times or losses chosen in
# advance are. Runs take 100 to 1400. Descent is as close to flow as its rate is small: from 1e-8 it
# takes 2000 steps.
FLOW = {"dynamics": GradientFlow("Stabilized"), "every": 4, "max_steps": 2000}
DESCENT = {"dynamics": GradientDescent(1e-2), "every": 10, "max_steps": 5000}


def experiments(scale: str) -> list[Experiment]:
    """Flows of random completion problems, by depth, seed and initialization."""
    side, rank, n_observed, depths, inits, seeds = SETTINGS[scale]
    task = RandomLowRankTask((side, side), rank, n_observed, frobenius_norm=1.0)
    return [
        _experiment(
            task,
            DeepMatrix((side, side), depth),
            Balanced(product_scale=init),
            LOSS,
            seed,
            **FLOW,
        )
        for depth in depths
        for seed in seeds
        for init in inits
    ]


def tied_experiments(scale: str) -> list[Experiment]:
    """Descents on the 2x2 problem, at whose zero both directions of descent are equally steep."""
    del scale  # small enough for all
    return [
        _experiment(
            RazinCohenTask(),
            DeepMatrix((2, 2), 2),
            Balanced(product_scale=init, determinant="positive"),
            TIED_LOSS,
            seed,
            **DESCENT,
        )
        for seed in range(2)
        for init in TIED_INITS
    ]


def _experiment(
    task: AbstractTask,
    factorization: DeepMatrix,
    initializer: Balanced,
    loss: float,
    seed: int,
    *,
    dynamics: AbstractDynamics,
    every: int,
    max_steps: int,
) -> Experiment:
    return Experiment(
        task=task,
        factorization=factorization,
        initializer=initializer,
        dynamics=dynamics,
        observe=AtSteps(range(0, max_steps, every)),
        stop=Stop(loss=loss, max_steps=max_steps),
        measures=["loss", "product"],
        seed=seed,
    )
