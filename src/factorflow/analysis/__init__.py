"""What finished runs say, and runs made to answer a question about a problem."""

from factorflow.analysis.minimized import Minimized as Minimized
from factorflow.analysis.minimized import what_is_minimized as what_is_minimized
from factorflow.analysis.staircase import Staircase as Staircase
from factorflow.analysis.staircase import escapes as escapes
