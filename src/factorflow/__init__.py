"""factorflow: what gradient flow and gradient descent over factorizations implicitly minimize.

Names are loaded on first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from factorflow._certificate import Certificate as Certificate
    from factorflow._dynamics import EndToEndFlow as EndToEndFlow
    from factorflow._dynamics import GradientDescent as GradientDescent
    from factorflow._dynamics import GradientFlow as GradientFlow
    from factorflow._dynamics import MultirateFlow as MultirateFlow
    from factorflow._dynamics import Optimizer as Optimizer
    from factorflow._dynamics import group_rmsprop as group_rmsprop
    from factorflow._factorization import CP as CP
    from factorflow._factorization import DeepMatrix as DeepMatrix
    from factorflow._factorization import TensorTrain as TensorTrain
    from factorflow._factorization import Tucker as Tucker
    from factorflow._factorization import balanced_factors as balanced_factors
    from factorflow._initializer import Balanced as Balanced
    from factorflow._initializer import Gaussian as Gaussian
    from factorflow._initializer import Identity as Identity
    from factorflow._initializer import Imbalanced as Imbalanced
    from factorflow._initializer import Orthogonal as Orthogonal
    from factorflow._measure import Measure as Measure
    from factorflow._measure import Snapshot as Snapshot
    from factorflow._measure import distance_to_rank as distance_to_rank
    from factorflow._measure import entry as entry
    from factorflow._measure import entrywise_norm as entrywise_norm
    from factorflow._measure import ky_fan_norm as ky_fan_norm
    from factorflow._measure import largest_component_norms as largest_component_norms
    from factorflow._measure import measure as measure
    from factorflow._measure import multilinear_rank as multilinear_rank
    from factorflow._measure import rank as rank
    from factorflow._measure import schatten_norm as schatten_norm
    from factorflow._observe import AtEnd as AtEnd
    from factorflow._observe import AtLosses as AtLosses
    from factorflow._observe import AtSteps as AtSteps
    from factorflow._observe import AtTimes as AtTimes
    from factorflow._observe import LogSpaced as LogSpaced
    from factorflow._observe import Stop as Stop
    from factorflow._problem import Completion as Completion
    from factorflow._problem import Sensing as Sensing
    from factorflow._problem import block_completion_problem as block_completion_problem
    from factorflow._problem import commuting_sensing_problem as commuting_sensing_problem
    from factorflow._problem import connected_completion_problem as connected_completion_problem
    from factorflow._problem import random_low_rank_problem as random_low_rank_problem
    from factorflow._problem import random_sensing_problem as random_sensing_problem
    from factorflow._problem import razin_cohen_problem as razin_cohen_problem
    from factorflow._product import Dense as Dense
    from factorflow._product import Factored as Factored
    from factorflow._results import RESULTS as RESULTS
    from factorflow._simulate import simulate as simulate
    from factorflow._trajectory import Trajectory as Trajectory
    from factorflow.analysis import Minimized as Minimized
    from factorflow.analysis import what_is_minimized as what_is_minimized
    from factorflow.reference import RankBounds as RankBounds
    from factorflow.reference import cp_rank as cp_rank
    from factorflow.reference import minimum_norm as minimum_norm
    from factorflow.reference import observation_graph as observation_graph
    from factorflow.reference import solution_ranks as solution_ranks

_HOMES = {
    "_certificate": ("Certificate",),
    "_dynamics": (
        "EndToEndFlow",
        "GradientDescent",
        "GradientFlow",
        "MultirateFlow",
        "Optimizer",
        "group_rmsprop",
    ),
    "_factorization": ("CP", "DeepMatrix", "TensorTrain", "Tucker", "balanced_factors"),
    "_initializer": ("Balanced", "Gaussian", "Identity", "Imbalanced", "Orthogonal"),
    "_measure": (
        "Measure",
        "Snapshot",
        "distance_to_rank",
        "entry",
        "entrywise_norm",
        "ky_fan_norm",
        "largest_component_norms",
        "measure",
        "multilinear_rank",
        "rank",
        "schatten_norm",
    ),
    "_observe": ("AtEnd", "AtLosses", "AtSteps", "AtTimes", "LogSpaced", "Stop"),
    "_problem": (
        "Completion",
        "Sensing",
        "block_completion_problem",
        "commuting_sensing_problem",
        "connected_completion_problem",
        "random_low_rank_problem",
        "random_sensing_problem",
        "razin_cohen_problem",
    ),
    "_product": ("Dense", "Factored"),
    "_results": ("RESULTS",),
    "_simulate": ("simulate",),
    "_trajectory": ("Trajectory",),
    "analysis": ("Minimized", "what_is_minimized"),
    "reference": (
        "RankBounds",
        "cp_rank",
        "minimum_norm",
        "observation_graph",
        "solution_ranks",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBPACKAGES = ("analysis", "experiments", "papers", "reference", "report", "drawing")

__all__ = sorted([*_HOME_OF, *_SUBPACKAGES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("factorflow")
    if name in _SUBPACKAGES:
        return importlib.import_module(f"factorflow.{name}")
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"factorflow.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'factorflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
