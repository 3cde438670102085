"""The solutions of a matrix problem: those of least norm, and the lowest ranks among them."""

from factorflow.reference.solutions.graph import LocalUniqueness as LocalUniqueness
from factorflow.reference.solutions.graph import ObservationGraph as ObservationGraph
from factorflow.reference.solutions.graph import local_uniqueness as local_uniqueness
from factorflow.reference.solutions.graph import observation_graph as observation_graph
from factorflow.reference.solutions.norms import MinimumNorm as MinimumNorm
from factorflow.reference.solutions.norms import minimum_norm as minimum_norm
from factorflow.reference.solutions.ranks import EffectiveRankBounds as EffectiveRankBounds
from factorflow.reference.solutions.ranks import SolutionRanks as SolutionRanks
from factorflow.reference.solutions.ranks import (
    infimal_effective_rank as infimal_effective_rank,
)
from factorflow.reference.solutions.ranks import solution_ranks as solution_ranks
from factorflow.reference.solutions.semidefinite import (
    lowest_semidefinite_rank as lowest_semidefinite_rank,
)
from factorflow.reference.solutions.solution_set import SolutionSet as SolutionSet
from factorflow.reference.solutions.solution_set import require_solutions as require_solutions
