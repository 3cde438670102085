"""Problems: what is fitted. They see a product, never its factors."""

from factorflow._problem.base import AbstractProblem as AbstractProblem
from factorflow._problem.catalogue import block_completion_problem as block_completion_problem
from factorflow._problem.catalogue import (
    connected_completion_problem as connected_completion_problem,
)
from factorflow._problem.catalogue import random_low_rank_problem as random_low_rank_problem
from factorflow._problem.catalogue import razin_cohen_parameters as razin_cohen_parameters
from factorflow._problem.catalogue import razin_cohen_problem as razin_cohen_problem
from factorflow._problem.completion import Completion as Completion
from factorflow._problem.sensing import Sensing as Sensing
from factorflow._problem.sensing_catalogue import (
    commuting_sensing_problem as commuting_sensing_problem,
)
from factorflow._problem.sensing_catalogue import random_sensing_problem as random_sensing_problem
