"""What is computed beside the flows: graphs, least norms and lowest ranks; the flows as curves."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from factorflow.experiments import Experiment
from factorflow.reference import minimum_norm, observation_graph, solution_ranks

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LEAST", "Curve", "curves", "derive", "kinds"]

# Share of the largest singular value from which another one counts towards the rank.
LEAST = 1e-3


def derive(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    """Graph, least nuclear norm and infimal rank of each run's problem."""
    first = {(experiment.task, experiment.seed): experiment for experiment in experiments}
    known = {name: _reference(experiment) for name, experiment in first.items()}
    rows = [known[experiment.task, experiment.seed] for experiment in experiments]
    return dataset.assign(
        mask=(("run", "matrix_row", "matrix_column"), np.array([row.mask for row in rows]))
    ).assign_coords(
        {
            name: ("run", np.array([getattr(row, name) for row in rows]))
            for name in ("connected", "complete", "least_nuclear_norm", "lower_rank", "upper_rank")
        }
    )


@dataclasses.dataclass(frozen=True)
class _Reference:
    """What is known of a problem; the interval holds its infimal rank."""

    mask: np.ndarray
    connected: bool
    complete: bool
    least_nuclear_norm: float
    lower_rank: int
    upper_rank: int


def _reference(experiment: Experiment) -> _Reference:
    problem = experiment.problem()
    graph = observation_graph(problem)
    least, ranks = minimum_norm(problem, "nuclear_norm"), solution_ranks(problem)
    return _Reference(
        graph.mask,
        graph.connected,
        graph.disconnected_complete,
        least.value if least.certified else np.nan,
        ranks.infimal_lower,
        ranks.infimal_upper,
    )


@dataclasses.dataclass(frozen=True)
class Curve:
    """One instance over the scale of the initialization, the largest first.

    `excess` is the nuclear norm over its minimum, less 1; `shares` the singular values over the
    largest, shape (scales, values); `infimal` the infimal rank, 0 where it is not known.
    """

    kind: str
    seed: int
    connected: bool
    complete: bool
    mask: np.ndarray
    infimal: int
    scales: np.ndarray
    excess: np.ndarray
    shares: np.ndarray
    trusted: np.ndarray

    @property
    def last(self) -> int:
        """The smallest scale that is certified."""
        if not self.trusted.any():
            raise LookupError(f"no certified flow: {self.kind}, instance {self.seed}")
        return int(np.flatnonzero(self.trusted)[-1])

    @property
    def rank(self) -> int:
        """The rank of the limit from there."""
        return int(np.sum(self.shares[self.last] >= LEAST))

    @property
    def next(self) -> np.ndarray:
        """The largest singular value beyond the infimal rank, as a share, by scale."""
        if not self.infimal:
            raise LookupError(f"infimal rank not known: {self.kind}, instance {self.seed}")
        return self.shares[:, self.infimal]


def curves(dataset: "xr.Dataset", **which: object) -> list[Curve]:
    """The curves whose attributes have these values; at least one."""
    names = [_kind(dataset, run) for run in range(dataset.sizes["run"])]
    seeds = np.asarray(dataset["seed"]).astype(int).tolist()
    owners = list(zip(names, seeds, strict=True))
    found = []
    for owner in dict.fromkeys(owners):
        runs = np.flatnonzero([other == owner for other in owners])
        curve = _read(owner[0], dataset.isel(run=runs))
        if all(getattr(curve, name) == value for name, value in which.items()):
            found.append(curve)
    if not found:
        raise LookupError("no runs")
    return found


def kinds(found: list[Curve]) -> list[str]:
    """The kinds of problems there are."""
    return list(dict.fromkeys(curve.kind for curve in found))


def _kind(dataset: "xr.Dataset", run: int) -> str:
    one = dataset.isel(run=run)
    graph = "connected" if bool(one["connected"]) else "disconnected"
    return f"{graph}, rank {int(one['task.rank'])}"


def _read(kind: str, part: "xr.Dataset") -> Curve:
    scales = np.asarray(part["initializer.product_scale"], float)
    part = part.isel(run=np.argsort(-scales))
    logs = np.asarray(part["log_singular_values"])[:, -1]
    lower, upper = int(part["lower_rank"][0]), int(part["upper_rank"][0])
    least = np.asarray(part["least_nuclear_norm"])
    reached = np.asarray(part["reached"])[:, -1].astype(bool)
    return Curve(
        kind=kind,
        seed=int(part["seed"][0]),
        connected=bool(part["connected"][0]),
        complete=bool(part["complete"][0]),
        mask=np.asarray(part["mask"])[0],
        infimal=lower if lower == upper else 0,
        scales=-np.sort(-scales),
        excess=np.asarray(part["nuclear_norm"])[:, -1] / least - 1,
        shares=np.exp(logs - logs[:, :1]),
        trusted=np.asarray(part["trusted[nuclear_norm]"])[:, -1].astype(bool) & reached,
    )
