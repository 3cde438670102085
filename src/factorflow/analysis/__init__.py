"""What finished runs say: quantities computed from rows that were recorded, on NumPy arrays."""

from factorflow.analysis.staircase import Staircase as Staircase
from factorflow.analysis.staircase import escapes as escapes
