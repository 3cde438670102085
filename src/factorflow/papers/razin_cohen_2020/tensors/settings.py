"""The settings of the tensor experiments, and their runs."""

from factorflow._dynamics import GradientDescent, MultirateFlow, Optimizer
from factorflow._factorization import CP
from factorflow._initializer import Gaussian
from factorflow._observe import AtEnd, Stop
from factorflow.experiments import Experiment, RandomLowRankTask

__all__ = ["DIM", "MSE", "tensor_experiments"]

DIM = 8
# Ranks are those at this mean squared error, the paper's.
MSE = 1e-6
MAX_STEPS = 1_000_000
REPETITIONS = 5

# The paper's optimizer; `eps` is theirs too, and makes plateaus last tens of thousands of steps.
DESCENT = Optimizer("group_rmsprop", {"learning_rate": 1e-2, "decay": 0.99, "eps": 1e-6})
# Errors of 1e-3 per step are far below what the draw of the data changes. At order 4 the loss must
# fall further than the paper's 1e-6, which allows an error of 6%.
FLOW = MultirateFlow(tolerance=1e-2, rtol=1e-3)
FLOW_LOSS = 1e-12
FLOW_STEPS = 300
# So few observations are fitted by many tensors: some runs follow flat valleys without end. They
# are ended early, and shown.
FEW_OBSERVED, FEW_LOSS, FEW_STEPS = 100, 1e-10, 100

OBSERVED = {
    3: (50, 100, 150, 200, 250, 300, 350, 400, 450, 511),
    4: (100, 500, 1000, 1500, 2000, 2500, 3000, 3500, 4095),
    5: (1000, 4000, 8000, 16000, 32767),
}
# At 500 observations and rank 3, runs take long.
QUICK_OBSERVED = {
    (3, 1): (200, 300, 511),
    (3, 3): (200, 300, 511),
    (4, 1): (500, 1000, 4095),
    (4, 3): (1000, 4095),
}
INITS = (1e-2, 1e-3)


def tensor_experiments(order: int, rank: int, scale: str) -> list[Experiment]:
    """Runs from Gaussian factors to the end: descent at order 3, the multirate flow beyond.

    Runs with equal numbers of observations are neighbours, and share batches: they take alike.
    """
    observed, inits, repetitions = OBSERVED[order], INITS, REPETITIONS
    if scale == "quick":
        observed, repetitions = QUICK_OBSERVED.get((order, rank), ()), 3 if order == 3 else 1
        inits = INITS if order == 3 else INITS[1:]
    elif scale == "beyond":
        inits, repetitions = (1e-1, 1e-2, 1e-3, 1e-4), 50
    elif order > 4:
        return []
    shape = (DIM,) * order
    return [
        Experiment(
            task=RandomLowRankTask(
                shape=shape,
                rank=rank,
                n_observed=n_observed,
                frobenius_norm=1.0,
                normalization="mean",
                room=DIM**order,
            ),
            factorization=CP(shape),
            initializer=Gaussian(factor_scale=factor_scale),
            dynamics=GradientDescent(DESCENT) if order == 3 else FLOW,
            observe=AtEnd(),
            stop=_stop(order, n_observed),
            measures=["loss", "reconstruction_error", "largest_component_norms[10]", "product"],
            seed=seed,
        )
        for n_observed in observed
        for factor_scale in inits
        for seed in range(repetitions)
    ]


def _stop(order: int, n_observed: int) -> Stop:
    if order == 3:
        # The paper validates every 100 iterations, and stops at the third success in a row.
        return Stop(loss=MSE, every=100, patience=3, max_steps=MAX_STEPS)
    few = n_observed <= FEW_OBSERVED
    loss, steps = (FEW_LOSS, FEW_STEPS) if few else (FLOW_LOSS, FLOW_STEPS)
    # Twice, so that the end need not be located: nothing is read off there but its limit.
    return Stop(loss=loss, patience=2, max_steps=steps)
