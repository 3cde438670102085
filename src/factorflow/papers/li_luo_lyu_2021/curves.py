"""What is computed beside the flows: greedy low-rank learning, and their distance from it."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from factorflow.analysis.greedy import (
    DistanceFromGreedy,
    GreedyTrajectory,
    distance_from_greedy,
    greedy_low_rank,
)
from factorflow.experiments import Experiment

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["KEPT", "derive", "select"]

# Singular values of flows and greedy curves that are kept.
KEPT = 4


def derive(dataset: "xr.Dataset", experiments: list[Experiment]) -> "xr.Dataset":
    """Every run's distance from the greedy curve of its problem and depth, and singular values.

    Distances are in units of the largest norm on the greedy curve. Products are dropped.
    """
    curves = _curves(experiments)
    products, reached = np.asarray(dataset["product"]), np.asarray(dataset["reached"])
    away = np.full(reached.shape, np.nan)
    values = np.full((*reached.shape, KEPT), np.nan)
    found: list[DistanceFromGreedy | None] = []
    for run, curve in enumerate(curves):
        rows = reached[run] & np.all(np.isfinite(products[run]), axis=(1, 2))
        values[run, rows] = _singular_values(products[run, rows])
        found.append(distance_from_greedy(products[run, rows], curve) if rows.any() else None)
        if found[-1] is not None:
            away[run, rows] = found[-1].distances * (found[-1].relative / found[-1].maximum)

    def column(values):
        return "run", np.asarray(values)

    phases = max(len(curve.phases) for curve in curves)
    return (
        dataset.drop_vars("product")
        .assign(
            away=(("run", "row"), away),
            singular_values=(("run", "row", "value"), values),
            greedy_loss=(("run", "greedy_row"), _padded([curve.losses for curve in curves])),
            greedy_values=(
                ("run", "greedy_row", "value"),
                _padded([_greedy_values(curve) for curve in curves]),
            ),
            gap=(("run", "phase"), _per_phase(curves, phases, lambda phase: phase.gap)),
            plateau=(("run", "phase"), _per_phase(curves, phases, lambda phase: phase.losses[-1])),
        )
        .assign_coords(
            distance=column([np.nan if one is None else one.relative for one in found]),
            greedy_rank=column([len(curve.phases) for curve in curves]),
            greedy_ending=column([curve.ending for curve in curves]),
            tied=column([curve.tied for curve in curves]),
        )
    )


def _curves(experiments: list[Experiment]) -> list[GreedyTrajectory]:
    """The greedy curve of each experiment; those of different structure compile side by side."""
    wanted = [
        (experiment.task, experiment.seed, experiment.factorization, experiment.stop)
        for experiment in experiments
    ]
    first = {}
    for experiment, name in zip(experiments, wanted, strict=True):
        first.setdefault(name, experiment)
    structures: dict[object, list[tuple]] = {}
    for name in first:
        structures.setdefault(name[2], []).append(name)
    with ThreadPoolExecutor() as pool:
        groups = pool.map(
            lambda names: [_curve(first[name].to_json()) for name in names], structures.values()
        )
        curves = {
            name: curve
            for names, group in zip(structures.values(), groups, strict=True)
            for name, curve in zip(names, group, strict=True)
        }
    return [curves[name] for name in wanted]


# Figures share their runs, and claims of one process are tested many times.
@lru_cache(maxsize=256)
def _curve(text: str) -> GreedyTrajectory:
    experiment = Experiment.from_json(text)
    loss = experiment.stop.loss
    assert loss is not None  # set by `experiments`
    problem = experiment.problem()
    # One more than should be needed, so that needing more shows.
    rank = getattr(experiment.task, "rank", min(problem.shape)) + 1
    return greedy_low_rank(
        problem,
        depth=experiment.factorization.degree,
        max_rank=min(rank, *problem.shape),
        loss=float(loss),
    )


def _singular_values(products: np.ndarray) -> np.ndarray:
    values = np.linalg.svd(products, compute_uv=False)[:, :KEPT]
    return np.pad(values, ((0, 0), (0, KEPT - values.shape[1])))


def _greedy_values(curve: GreedyTrajectory) -> np.ndarray:
    values = _singular_values(curve.products)
    # Beyond the rank of the phase there is nothing but the error of interpolation.
    values[np.arange(KEPT) >= curve.ranks[:, None]] = np.nan
    return values


def _padded(arrays: list[np.ndarray]) -> np.ndarray:
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), np.nan)
    for place, array in zip(out, arrays, strict=True):
        place[: len(array)] = array
    return out


def _per_phase(curves: list[GreedyTrajectory], phases: int, number) -> np.ndarray:
    out = np.full((len(curves), phases), np.nan)
    for place, curve in zip(out, curves, strict=True):
        place[: len(curve.phases)] = [number(phase) for phase in curve.phases]
    return out


def select(dataset: "xr.Dataset", **axes: object) -> "xr.Dataset":
    """The runs with these values of `depth`, `seed` and `init`, larger initializations first."""
    keep = np.ones(dataset.sizes["run"], bool)
    for name, value in axes.items():
        keep &= np.asarray(dataset[_NAMES[name]]) == value
    runs = np.flatnonzero(keep)
    order = np.argsort(-np.asarray(dataset[_NAMES["init"]])[runs], kind="stable")
    return dataset.isel(run=runs[order])


_NAMES = {
    "depth": "factorization.depth",
    "seed": "seed",
    "init": "initializer.product_scale",
}
