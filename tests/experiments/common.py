"""A small experiment that the tests of this folder vary."""

import factorflow as ff
from factorflow.experiments import Experiment, RazinCohenTask


def base(**changes) -> Experiment:
    """Depth 2 descent on the 2x2 problem: a few thousand steps, in either precision."""
    experiment = Experiment(
        task=RazinCohenTask(),
        factorization=ff.DeepMatrix((2, 2), depth=2),
        initializer=ff.Balanced(product_scale=1e-2, determinant="positive"),
        dynamics=ff.GradientDescent(1e-2),
        observe=ff.AtLosses([0.5, 1e-1, 3e-2]),
        stop=ff.Stop(loss=3e-2, max_steps=20_000),
        measures=["loss", "entry[0,0]", "log_singular_values"],
        dtype="float32",
    )
    return experiment.replace(**changes) if changes else experiment
