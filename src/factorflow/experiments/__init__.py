"""Experiments: runs described by names and numbers, repeated by the thousand, and kept."""

from factorflow.experiments.experiment import Experiment as Experiment
from factorflow.experiments.experiment import sweep as sweep
from factorflow.experiments.run import run as run
from factorflow.experiments.store import Store as Store
from factorflow.experiments.task import AbstractTask as AbstractTask
from factorflow.experiments.task import BlockCompletionTask as BlockCompletionTask
from factorflow.experiments.task import CommutingSensingTask as CommutingSensingTask
from factorflow.experiments.task import ConnectedCompletionTask as ConnectedCompletionTask
from factorflow.experiments.task import RandomLowRankTask as RandomLowRankTask
from factorflow.experiments.task import RandomSensingTask as RandomSensingTask
from factorflow.experiments.task import RazinCohenTask as RazinCohenTask
