"""The public contract: names resolve lazily, and importing the package costs nothing."""

import subprocess
import sys

import pytest

import factorflow as ff

CONTRACT = [
    "AtEnd",
    "AtLosses",
    "AtSteps",
    "AtTimes",
    "Balanced",
    "CP",
    "Completion",
    "DeepMatrix",
    "EndToEndFlow",
    "Gaussian",
    "GradientDescent",
    "GradientFlow",
    "Identity",
    "Imbalanced",
    "LogSpaced",
    "MultirateFlow",
    "Orthogonal",
    "RESULTS",
    "Sensing",
    "Stop",
    "TensorTrain",
    "Trajectory",
    "Tucker",
    "balanced_factors",
    "entry",
    "experiments",
    "group_rmsprop",
    "random_low_rank_problem",
    "razin_cohen_problem",
    "schatten_norm",
    "simulate",
]


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_is_kept(name):
    assert getattr(ff, name) is getattr(ff, name)
    assert name in dir(ff)


@pytest.mark.parametrize("name", ff.__all__)
def test_every_listed_name_resolves(name):
    assert getattr(ff, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = ff.simulat


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert ff.__version__ == version("factorflow")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, factorflow\n"
        "heavy = {'jax', 'numpy', 'xarray', 'matplotlib', 'polars'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
