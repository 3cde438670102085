"""Factorizations: how factors compose into a product."""

from factorflow._factorization.base import AbstractFactorization as AbstractFactorization
from factorflow._factorization.cp import CP as CP
from factorflow._factorization.deep_matrix import DeepMatrix as DeepMatrix
from factorflow._factorization.deep_matrix import balanced_factors as balanced_factors
from factorflow._factorization.deep_matrix import (
    balanced_from_spectrum as balanced_from_spectrum,
)
from factorflow._factorization.tensor_train import TensorTrain as TensorTrain
from factorflow._factorization.tucker import Tucker as Tucker
