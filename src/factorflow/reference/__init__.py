"""What to hold experiments against: bounds, the loss frontier, asymptotic laws, tensor ranks.

Nothing here simulates anything, and nothing here depends on the rest of factorflow.
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
from factorflow.reference.tensor_rank import RankBounds as RankBounds
from factorflow.reference.tensor_rank import cp_rank as cp_rank
from factorflow.reference.trajectories import REFERENCE_FLOWS as REFERENCE_FLOWS
from factorflow.reference.trajectories import ReferenceFlow as ReferenceFlow
