"""What is computed beside the flows: minima, closed forms; and the flows as curves."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from factorflow._problem import Sensing
from factorflow.experiments import Experiment
from factorflow.experiments.task import CommutingSensingTask
from factorflow.papers.gunasekar_2017.closed_form import diagonal_limit
from factorflow.reference import minimum_norm

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Curve", "curves", "derive", "hidden"]


def derive(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    """The least nuclear norm of each problem, the closed form, and the products' eigenvalues.

    Products are dropped afterwards.
    """
    first = {(experiment.task, experiment.seed): experiment for experiment in experiments}
    problems = {name: experiment.problem() for name, experiment in first.items()}
    minima = {
        name: minimum_norm(problem, "nuclear_norm", semidefinite=True)
        for name, problem in problems.items()
    }
    least, lower, truth, predicted = [], [], [], []
    for experiment in experiments:
        name = experiment.task, experiment.seed
        found, problem = minima[name], problems[name]
        least.append(found.value if found.certified else np.nan)
        lower.append(found.lower)
        truth.append(np.linalg.norm(np.asarray(problem.target), "nuc"))
        predicted.append(_predicted(experiment, problem))
    products = np.asarray(dataset["product"])[:, -1]
    symmetric = (products + products.swapaxes(1, 2)) / 2

    def column(values):
        return "run", np.asarray(values, float)

    # A run that failed has no product.
    lost = ~np.all(np.isfinite(products), axis=(1, 2))
    eigenvalues = np.linalg.eigvalsh(np.where(lost[:, None, None], 0, symmetric))
    asymmetry = np.linalg.norm(np.where(lost[:, None, None], 0, products - symmetric), axis=(1, 2))
    return dataset.drop_vars("product").assign_coords(
        least_nuclear_norm=column(least),
        least_nuclear_norm_lower=column(lower),
        truth_nuclear_norm=column(truth),
        predicted_nuclear_norm=column(predicted),
        smallest_eigenvalue=column(np.where(lost, np.nan, eigenvalues[:, 0])),
        asymmetry=column(np.where(lost, np.nan, asymmetry)),
    )


def _predicted(experiment: Experiment, problem) -> float:
    """The nuclear norm of the limit in closed form, where there is one."""
    if not isinstance(experiment.task, CommutingSensingTask):
        return np.nan
    assert isinstance(problem, Sensing)
    scale = getattr(experiment.initializer, "product_scale", None)
    assert scale is not None  # set by the settings
    return float(np.sum(diagonal_limit(problem, experiment.factorization.degree, float(scale))))


@dataclasses.dataclass(frozen=True)
class Curve:
    """One instance at one depth, over the scale of the initialization, the largest first.

    `excess` is the nuclear norm over its minimum, less 1; `predicted` that of the closed form.
    """

    depth: int
    seed: int
    scales: np.ndarray
    excess: np.ndarray
    predicted: np.ndarray
    truth: float
    smallest_eigenvalue: np.ndarray
    asymmetry: np.ndarray
    trusted: np.ndarray

    @property
    def last(self) -> int:
        """The smallest scale that is certified."""
        if not self.trusted.any():
            raise LookupError(f"no certified flow at depth {self.depth}, instance {self.seed}")
        return int(np.flatnonzero(self.trusted)[-1])


def curves(dataset: "xr.Dataset", depth: int | None = None) -> list[Curve]:
    """The curves of a depth, or of all."""
    depths = np.asarray(dataset["factorization.depth"]).astype(int)
    seeds = np.asarray(dataset["seed"]).astype(int)
    scales = np.asarray(dataset["initializer.product_scale"], float)
    found = []
    for each, seed in sorted({*zip(depths.tolist(), seeds.tolist(), strict=True)}):
        if depth not in (None, each):
            continue
        runs = np.flatnonzero((depths == each) & (seeds == seed))
        runs = runs[np.argsort(-scales[runs])]
        part = dataset.isel(run=runs)
        least = np.asarray(part["least_nuclear_norm"])
        reached = np.asarray(part["reached"])[:, -1]
        found.append(
            Curve(
                depth=each,
                seed=seed,
                scales=scales[runs],
                excess=np.asarray(part["nuclear_norm"])[:, -1] / least - 1,
                predicted=np.asarray(part["predicted_nuclear_norm"]) / least - 1,
                truth=float(part["truth_nuclear_norm"][0] / least[0] - 1),
                smallest_eigenvalue=np.asarray(part["smallest_eigenvalue"]),
                asymmetry=np.asarray(part["asymmetry"]),
                trusted=np.asarray(part["trusted[product]"])[:, -1].astype(bool) & reached,
            )
        )
    if not found:
        raise LookupError("no runs")
    return found


def hidden(dataset: "xr.Dataset") -> float:
    """What the residual at the end hides of the excess: several times its norm."""
    return 5 * float(np.sqrt(2 * np.max(np.asarray(dataset["stop.loss"]))))
