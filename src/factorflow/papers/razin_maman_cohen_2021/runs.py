"""Finished runs as curves: what figures and claims read off the dataset."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from factorflow.analysis import Staircase, escapes
from factorflow.papers.razin_maman_cohen_2021.settings import KEPT, LOSSES, ORDER

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LEAST", "Run", "inits", "losses", "runs_of", "unfinished"]

# Share of the largest norm from which a component belongs to the result. Those of a ground truth of
# few Gaussian components are within a factor of 4 of each other.
LEAST = 0.1


@dataclasses.dataclass(frozen=True)
class Run:
    """One run in units of the ground truth's Frobenius norm; the rows are those it reached."""

    loss_name: str
    init: float
    rank: int
    converged: bool
    steps: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    norms: np.ndarray

    @cached_property
    def staircase(self) -> Staircase:
        # Up to half of the final norm: until later components arrive, one rests below its final
        # norm, at 60% to 90%, and the time from there on is that of a plateau.
        return escapes(self.steps, self.norms, high=0.5, least=LEAST)


def runs_of(dataset: "xr.Dataset", *, loss: str | None = None, init: float | None = None):
    """The runs of a loss and an initialization, or of all."""
    found = []
    for index in range(dataset.sizes["run"]):
        run = _read(dataset.isel(run=index))
        if loss in (None, run.loss_name) and init in (None, run.init):
            found.append(run)
    return found


def _read(run: "xr.Dataset") -> Run:
    reached = np.asarray(run["reached"])
    if not reached.any():
        raise LookupError("a run without rows")
    size = float(run["task.frobenius_norm"])
    return Run(
        loss_name=str(run["task.loss"].item()),
        # To 12 digits: it was multiplied by the same power before.
        init=float(f"{float(run['initializer.factor_scale']) / size ** (1 / ORDER):.12g}"),
        rank=int(run["task.rank"]),
        converged=str(run["result"].item()) == "loss_reached",
        steps=np.asarray(run["step"])[reached],
        loss=np.asarray(run["loss"])[reached],
        error=np.asarray(run["reconstruction_error"])[reached],
        norms=np.asarray(run[f"largest_component_norms[{KEPT}]"])[reached] / size,
    )


def losses(runs: list[Run]) -> list[str]:
    """The losses there are, in the paper's order."""
    present = {run.loss_name for run in runs}
    return [loss for loss in LOSSES if loss in present]


def inits(runs: list[Run]) -> list[float]:
    """The initializations there are, the largest first."""
    return sorted({run.init for run in runs}, reverse=True)


def unfinished(runs: list[Run]) -> str:
    """How many runs ended at their limit of steps, in words."""
    count = sum(not run.converged for run in runs)
    return "all converged" if not count else f"{count} of {len(runs)} did not converge"
