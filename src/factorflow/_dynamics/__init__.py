"""Dynamics: how factors move."""

from factorflow._dynamics.base import AbstractDynamics as AbstractDynamics
from factorflow._dynamics.base import AbstractState as AbstractState
from factorflow._dynamics.end_to_end_flow import EndToEndFlow as EndToEndFlow
from factorflow._dynamics.gradient_descent import GradientDescent as GradientDescent
from factorflow._dynamics.gradient_flow import GradientFlow as GradientFlow
from factorflow._dynamics.integrators import is_solver as is_solver
from factorflow._dynamics.multirate_flow import MultirateFlow as MultirateFlow
from factorflow._dynamics.optimizers import OPTIMIZERS as OPTIMIZERS
from factorflow._dynamics.optimizers import Optimizer as Optimizer
from factorflow._dynamics.optimizers import group_rmsprop as group_rmsprop
