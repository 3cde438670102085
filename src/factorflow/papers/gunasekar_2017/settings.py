"""The problems, initializations and runs of both experiments."""

from factorflow._dynamics import GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import Identity
from factorflow._observe import AtLosses, Stop
from factorflow.experiments import AbstractTask, Experiment
from factorflow.experiments.task import CommutingSensingTask, RandomSensingTask

__all__ = [
    "COMMUTING_LOSS",
    "DEPTHS",
    "RANDOM_LOSS",
    "SOURCE",
    "commuting_experiments",
    "random_experiments",
]

SOURCE = "Gunasekar, Woodworth, Bhojanapalli, Neyshabur & Srebro 2017"

DIM = 8
DEPTHS = (2, 3)
# Few measurements: the ground truth, of rank 3, is mostly not the solution of least nuclear norm,
# which three measurements give at most rank 3.
COMMUTING = CommutingSensingTask(dim=DIM, rank=3, n_measurements=3, frobenius_norm=1.0)
# Twice as many as a matrix of rank 1 has numbers: mostly it has the least nuclear norm.
RANDOM = RandomSensingTask(
    shape=(DIM, DIM), rank=1, n_measurements=16, semidefinite=True, frobenius_norm=1.0
)

# By depth. At depth 2 what is left above the minimum falls slowly; smaller scales are lost to
# rounding. With Gaussian measurements the last certified ones are larger.
COMMUTING_SCALES = {
    "quick": {2: (1e-1, 1e-2, 1e-4, 1e-8, 1e-12), 3: (1e-1, 1e-2, 1e-4, 1e-6)},
    "paper": {
        2: (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12),
        3: (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8),
    },
}
RANDOM_SCALES = {
    scale: {depth: (1e-1, 1e-2, 1e-4, 1e-6) for depth in DEPTHS} for scale in ("quick", "paper")
}
for each in (COMMUTING_SCALES, RANDOM_SCALES):
    each["beyond"] = each["paper"]
# A seed is an instance. Seeds 0 and 4 of the commuting one are so badly conditioned that a flow
# takes ten times as long as the others.
COMMUTING_SEEDS = {"quick": (5, 6, 7), "paper": (5, 6, 7, 8), "beyond": tuple(range(10))}
RANDOM_SEEDS = {"quick": (0,), "paper": tuple(range(4)), "beyond": tuple(range(20))}

# The ground truth has norm 1: measurements are off by 1e-6 and 1e-4. With Gaussian measurements
# the last digits take most of the time.
COMMUTING_LOSS, RANDOM_LOSS = 1e-12, 1e-8
FLOW = GradientFlow("Stabilized", rtol=1e-8)
MAX_STEPS = 20_000


def commuting_experiments(scale: str) -> list[Experiment]:
    """Flows from multiples of the identity, measured by commuting matrices."""
    return _experiments(COMMUTING, COMMUTING_SEEDS[scale], COMMUTING_SCALES[scale], COMMUTING_LOSS)


def random_experiments(scale: str) -> list[Experiment]:
    """The same with Gaussian measurements, which do not commute."""
    return _experiments(RANDOM, RANDOM_SEEDS[scale], RANDOM_SCALES[scale], RANDOM_LOSS)


def _experiments(
    task: AbstractTask,
    seeds: tuple[int, ...],
    product_scales: dict[int, tuple[float, ...]],
    loss: float,
) -> list[Experiment]:
    return [
        Experiment(
            task=task,
            factorization=DeepMatrix((DIM, DIM), depth),
            initializer=Identity(product_scale=product_scale),
            dynamics=FLOW,
            observe=AtLosses([loss]),
            stop=Stop(loss=loss, max_steps=MAX_STEPS),
            measures=["loss", "nuclear_norm", "product"],
            seed=seed,
            certify="full",
        )
        for depth in DEPTHS
        for seed in seeds
        for product_scale in product_scales[depth]
    ]
