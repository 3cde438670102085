"""The problems, initializations and runs: four kinds of completion."""

from factorflow._dynamics import GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import Balanced
from factorflow._observe import AtLosses, Stop
from factorflow.experiments import AbstractTask, Experiment
from factorflow.experiments.task import BlockCompletionTask, ConnectedCompletionTask

__all__ = ["LOSS", "SHAPE", "SOURCE", "TASKS", "experiments"]

SOURCE = "Bai, Zhao & Zhang 2024"

# Not square: a balanced flow keeps the sign of a determinant, which would be one more condition.
SHAPE = (6, 7)
_BLOCKS = (3, 3), (3, 4)

# Connected observations are padded to one number, so that both ranks share a compilation. Twelve
# entries connect the graph, and fix a matrix of rank 1; one of rank 2 has 22 numbers. The fewer
# there are beyond these, the smaller the start from which the rank shows: with 16 instead of 24,
# three instances of eight are beyond what double precision certifies.
TASKS: tuple[AbstractTask, ...] = (
    BlockCompletionTask(*_BLOCKS, rank=1, frobenius_norm=1.0),
    BlockCompletionTask(*_BLOCKS, rank=2, frobenius_norm=1.0),
    ConnectedCompletionTask(SHAPE, rank=1, n_observed=24, frobenius_norm=1.0, room=32),
    ConnectedCompletionTask(SHAPE, rank=2, n_observed=32, frobenius_norm=1.0, room=32),
)

# Connected problems forget their start slowly: at 1e-8 many are still on their way.
SCALES = {
    "quick": (1e-2, 1e-4, 1e-8, 1e-16),
    "paper": (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14, 1e-16),
}
SCALES["beyond"] = SCALES["paper"]
SEEDS = {"quick": range(2), "paper": range(8), "beyond": range(50)}

# Ground truths have norm 1: observed entries are off by 1e-5.
LOSS = 1e-10
FLOW = GradientFlow("Stabilized", rtol=1e-8)
MAX_STEPS = 20_000


def experiments(scale: str) -> list[Experiment]:
    """Flows of depth 2 from random balanced factors. A seed draws problem and start."""
    return [
        Experiment(
            task=task,
            factorization=DeepMatrix(SHAPE, depth=2),
            initializer=Balanced(product_scale=product_scale),
            dynamics=FLOW,
            observe=AtLosses([LOSS]),
            stop=Stop(loss=LOSS, max_steps=MAX_STEPS),
            measures=["loss", "nuclear_norm", "log_singular_values"],
            seed=seed,
            certify="full",
        )
        for task in TASKS
        for seed in SEEDS[scale]
        for product_scale in SCALES[scale]
    ]
