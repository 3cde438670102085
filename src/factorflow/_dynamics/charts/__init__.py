"""Coordinates for flows."""

from factorflow._dynamics.charts.balanced_2x2 import Balanced2x2 as Balanced2x2
from factorflow._dynamics.charts.balanced_square import BalancedSquare as BalancedSquare
from factorflow._dynamics.charts.balanced_square import balanced_spectrum as balanced_spectrum
from factorflow._dynamics.charts.base import AbstractCharts as AbstractCharts
from factorflow._dynamics.charts.base import Position as Position
from factorflow._dynamics.charts.factor_space import FactorSpace as FactorSpace
