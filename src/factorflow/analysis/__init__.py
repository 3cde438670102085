"""What finished runs say, and runs made to answer a question about a problem."""

from factorflow.analysis.greedy import DistanceFromGreedy as DistanceFromGreedy
from factorflow.analysis.greedy import GreedyPhase as GreedyPhase
from factorflow.analysis.greedy import GreedyTrajectory as GreedyTrajectory
from factorflow.analysis.greedy import distance_from_greedy as distance_from_greedy
from factorflow.analysis.greedy import greedy_low_rank as greedy_low_rank
from factorflow.analysis.minimized import Minimized as Minimized
from factorflow.analysis.minimized import what_is_minimized as what_is_minimized
from factorflow.analysis.staircase import Staircase as Staircase
from factorflow.analysis.staircase import escapes as escapes
