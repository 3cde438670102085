"""What is computed from finished runs: tensor ranks of their products, and the linear baseline."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.experiments import Experiment
from factorflow.papers.razin_cohen_2020.tensors.settings import MSE
from factorflow.reference import RankBounds, cp_rank

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["converged", "derive"]

# Baselines are far from any low rank: after this many fits their interval has to do.
BASELINE_FITS = 4


def derive(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    """Bounds on the rank of every run's product, and error and rank of its linear baseline.

    The baseline fills in zeros for what is not observed. Products are dropped afterwards: their
    thousands of entries are in the store.
    """
    products = np.asarray(dataset["product"])[:, 0]
    # A run that failed has no product.
    ranks = [cp_rank(p, mse=MSE) if np.all(np.isfinite(p)) else None for p in products]
    baselines: dict[tuple, tuple[float, RankBounds]] = {}
    for experiment in experiments:
        name = _data(experiment)
        if name not in baselines:
            baselines[name] = _baseline(experiment)
    errors, bounds = zip(*(baselines[_data(experiment)] for experiment in experiments), strict=True)

    def column(values):
        return "run", np.asarray(values, float)

    return dataset.drop_vars("product").assign_coords(
        rank_lower=column([np.nan if b is None else b.lower for b in ranks]),
        rank_upper=column([np.nan if b is None else b.upper for b in ranks]),
        baseline_error=column(errors),
        baseline_rank_lower=column([b.lower for b in bounds]),
        baseline_rank_upper=column([b.upper for b in bounds]),
    )


def converged(dataset: "xr.Dataset") -> np.ndarray:
    """Which runs ended because their loss was reached."""
    return np.asarray(dataset["result"]) == "loss_reached"


def _data(experiment: Experiment) -> tuple:
    return experiment.task, experiment.seed


def _baseline(experiment: Experiment) -> tuple[float, RankBounds]:
    problem = experiment.problem()
    observed, target = (np.asarray(x) for x in (problem.observed_entries(), problem.target))  # pyright: ignore[reportAttributeAccessIssue]
    error = np.linalg.norm(observed - target) / np.linalg.norm(target)
    return float(error), cp_rank(observed, mse=MSE, max_fits=BASELINE_FITS)
