"""What is computed from finished runs: tensor ranks of their products, and the linear baseline."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from factorflow.experiments import Experiment
from factorflow.papers.razin_cohen_2020.tensors.settings import MSE
from factorflow.reference import RankBounds, cp_rank

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["converged", "derive"]

# Baselines are far from any low rank. At order 3 a few fits halve the interval that unfoldings and
# slices give; beyond they cost a second each and change next to nothing. Nearly all entries
# observed, the baseline's rank is that of the ground truth, which one fit finds.
BASELINE_FITS, FITS_BEYOND, FITS_OF_TRUTH = 4, 0, 1


def derive(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    """Bounds on the rank of every run's product, and error and rank of its linear baseline.

    The baseline fills in zeros for what is not observed. Products are dropped afterwards: their
    thousands of entries are in the store.
    """
    products = np.asarray(dataset["product"])[:, 0]
    first = {_data(experiment): experiment for experiment in reversed(experiments)}
    filled = {name: _baseline(experiment) for name, experiment in first.items()}
    # A run that failed has no product.
    ranks = _each(_rank, products)
    found = _each(_baseline_rank, filled.values())
    baselines = dict(zip(filled, found, strict=True))
    errors = [filled[_data(experiment)][1] for experiment in experiments]
    bounds = [baselines[_data(experiment)] for experiment in experiments]

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


def _baseline(experiment: Experiment) -> tuple[np.ndarray, float]:
    """The observed entries with zeros elsewhere, and their relative error."""
    problem: Any = experiment.problem()
    observed, target = np.asarray(problem.observed_entries()), np.asarray(problem.target)
    error = np.linalg.norm(observed - target) / np.linalg.norm(target)
    return observed, float(error)


def _rank(product: np.ndarray) -> RankBounds | None:
    # However long it takes: figures must not depend on the machine.
    return cp_rank(product, mse=MSE, time_budget=None) if np.all(np.isfinite(product)) else None


def _baseline_rank(filled: tuple[np.ndarray, float]) -> RankBounds:
    return cp_rank(filled[0], mse=MSE, max_fits=_fits(*filled), time_budget=None)


def _fits(baseline: np.ndarray, error: float) -> int:
    # The ground truths here have norm one.
    if error**2 / baseline.size < MSE:
        return FITS_OF_TRUTH
    return BASELINE_FITS if baseline.ndim == 3 else FITS_BEYOND


def _each(function: Callable, values: Iterable) -> list:
    """The function of every value, on all cores: most of it is linear algebra, which lets go."""
    # One thread per product of matrices. Set here for all: a limit that ends while another is on
    # would lift or keep that one too.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, values))
