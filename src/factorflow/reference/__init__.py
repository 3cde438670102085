"""What to hold experiments against: bounds, laws, closed forms, least solutions, tensor ranks.

Nothing here simulates anything, and nothing here depends on more of factorflow than problems.
"""

from factorflow.reference._bound import BIBTEX as BIBTEX
from factorflow.reference._bound import Bound as Bound
from factorflow.reference.bounds import bounds_for as bounds_for
from factorflow.reference.entry import entry_bound as entry_bound
from factorflow.reference.entry import entry_infimum as entry_infimum
from factorflow.reference.entry import perturbed_entry_bound as perturbed_entry_bound
from factorflow.reference.frontier import frontier_entry as frontier_entry
from factorflow.reference.frontier import frontier_loss as frontier_loss
from factorflow.reference.norms import norm_bound as norm_bound
from factorflow.reference.norms import schatten_bound as schatten_bound
from factorflow.reference.ranks import distance_bound as distance_bound
from factorflow.reference.ranks import effective_rank_dxd_bound as effective_rank_dxd_bound
from factorflow.reference.ranks import effective_rank_sqrt_bound as effective_rank_sqrt_bound
from factorflow.reference.ranks import effective_rank_supremum as effective_rank_supremum
from factorflow.reference.slow_manifold import escape_horizon as escape_horizon
from factorflow.reference.slow_manifold import perturbed_entry_limit as perturbed_entry_limit
from factorflow.reference.slow_manifold import slow_manifold_entry as slow_manifold_entry
from factorflow.reference.slow_manifold import slow_manifold_log_sigma2 as slow_manifold_log_sigma2
from factorflow.reference.slow_manifold import slow_manifold_time as slow_manifold_time
from factorflow.reference.solutions import EffectiveRankBounds as EffectiveRankBounds
from factorflow.reference.solutions import LocalUniqueness as LocalUniqueness
from factorflow.reference.solutions import MinimumNorm as MinimumNorm
from factorflow.reference.solutions import ObservationGraph as ObservationGraph
from factorflow.reference.solutions import SolutionRanks as SolutionRanks
from factorflow.reference.solutions import SolutionSet as SolutionSet
from factorflow.reference.solutions import infimal_effective_rank as infimal_effective_rank
from factorflow.reference.solutions import local_uniqueness as local_uniqueness
from factorflow.reference.solutions import lowest_semidefinite_rank as lowest_semidefinite_rank
from factorflow.reference.solutions import minimum_norm as minimum_norm
from factorflow.reference.solutions import observation_graph as observation_graph
from factorflow.reference.solutions import require_solutions as require_solutions
from factorflow.reference.solutions import solution_ranks as solution_ranks
from factorflow.reference.tensor_rank import RankBounds as RankBounds
from factorflow.reference.tensor_rank import cp_rank as cp_rank
from factorflow.reference.trajectories import REFERENCE_FLOWS as REFERENCE_FLOWS
from factorflow.reference.trajectories import ReferenceFlow as ReferenceFlow
from factorflow.reference.unbalanced import lambda_balanced_flow as lambda_balanced_flow
