"""The problems, depths and initializations of the experiments, and their runs."""

from factorflow._dynamics import GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import Balanced
from factorflow._observe import AbstractObservation, AtEnd, AtLosses, Stop
from factorflow.experiments import (
    AbstractTask,
    Experiment,
    RandomLowRankTask,
    RandomSensingTask,
)

__all__ = [
    "FEW",
    "MANY",
    "MEASUREMENTS",
    "RANK",
    "SENSED_RANK",
    "SENSED_SIDE",
    "SOURCE",
    "completions",
    "sensings",
    "watched",
]

SOURCE = "Arora, Cohen, Hu & Luo 2019"

SIDE, RANK = 100, 5
FEW, MANY = 2000, 5000
SCALES = (1e-3, 1e-4, 1e-5, 1e-6)
# Where initializations are small; see `_completion`.
SMALL = 5e-5

SENSED_SIDE, SENSED_RANK = 30, 2
MEASUREMENTS = (150, 300)

# Final loss, as a share of the loss of the zero matrix: entries have unit mean square. Errors of
# runs that recover the ground truth go on falling with the root of the loss, all others are final.
FINAL = 1e-6
# The start itself, whatever its loss; then evenly down to 2%, where singular values rise; then
# evenly in the logarithm.
SHARES = (
    2.0,
    *(1 - 0.98 * row / 35 for row in range(36)),
    *(0.02 * (FINAL / 0.02) ** (row / 10) for row in range(1, 11)),
)

# With the finer ones below, ends move by less than 1e-3 of the norm of the ground truth.
FLOW = GradientFlow("Stabilized", rtol=1e-4, atol=1e-6)
# Beside these goes a flow with a hundredth of the tolerances: both must agree to 1e-6.
CERTIFIED = GradientFlow("Stabilized", rtol=1e-9, atol=1e-11)
# Runs take up to a few thousand.
MAX_STEPS = 20_000

# All else is computed from the products.
_MEASURES = ("loss", "product")


def completions(scale: str) -> list[Experiment]:
    """Flows of balanced factors to their end, by depth, observations and initialization."""
    if scale == "quick":
        return [
            _completion(depth, n, init, 0, watch=True)
            for depth in (1, 2, 3)
            for n in (FEW, MANY)
            for init in ((1e-4, SCALES[-1]) if depth == 2 else SCALES[-1:])
        ]
    return [
        _completion(depth, n, init, seed)
        for depth in (1, 2, 3, 4)
        for n in (FEW, MANY)
        for init in SCALES
        for seed in range(3 if scale == "beyond" else 1)
    ]


def watched(scale: str) -> list[Experiment]:
    """Flows observed on their way, with their products: few observations, smallest start.

    They are certified, but for the quick ones, which `completions` has too.
    """
    if scale == "quick":
        found = [e for e in completions(scale) if e.axes()["task.n_observed"] == FEW]
        return [e for e in found if e.axes()["initializer.product_scale"] == SCALES[-1]]
    return [
        _completion(depth, FEW, SCALES[-1], 0, watch=True, certify=True) for depth in (1, 2, 3, 4)
    ]


def sensings(scale: str) -> list[Experiment]:
    """The same from Gaussian measurements of a smaller matrix."""
    quick = scale == "quick"
    return [
        _experiment(
            RandomSensingTask((SENSED_SIDE, SENSED_SIDE), SENSED_RANK, n),
            depth,
            init,
            seed,
            # A measurement has the mean square of the squared norm of the ground truth.
            size=float(n * SENSED_SIDE**2),
            observe=AtEnd(),
        )
        for n in (MEASUREMENTS[:1] if quick else MEASUREMENTS)
        for depth in ((3,) if quick else (2, 3))
        for init in ((SCALES[-1],) if quick else SCALES)
        for seed in range(3 if scale == "beyond" else 1)
    ]


def _completion(
    depth: int, n: int, init: float, seed: int, *, watch: bool = False, certify: bool = False
) -> Experiment:
    size = float(n)
    # Padded, so that both numbers of observations compile once. Runs that share a compilation step
    # side by side: large initializations take few steps of many stages, small ones the reverse, and
    # together they would take many of many. So small ones of deep factors are padded by one more.
    room = MANY + int(not watch and depth > 2 and init < SMALL)
    return _experiment(
        RandomLowRankTask((SIDE, SIDE), RANK, n, room=room),
        depth,
        init,
        seed,
        size=size,
        observe=AtLosses([share * size / 2 for share in SHARES]) if watch else AtEnd(),
        certify=certify,
    )


def _experiment(
    task: AbstractTask,
    depth: int,
    init: float,
    seed: int,
    *,
    size: float,
    observe: AbstractObservation,
    certify: bool = False,
) -> Experiment:
    side = task.shape[0]  # pyright: ignore[reportAttributeAccessIssue]
    return Experiment(
        task=task,
        factorization=DeepMatrix((side, side), depth),
        initializer=Balanced(product_scale=init),
        dynamics=CERTIFIED if certify else FLOW,
        observe=observe,
        stop=Stop(loss=FINAL * size / 2, max_steps=MAX_STEPS),
        measures=_MEASURES,
        seed=seed,
        certify="full" if certify else "cheap",
    )
