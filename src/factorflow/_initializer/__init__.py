"""Initializers: where factors start."""

from factorflow._initializer.balanced import Balanced as Balanced
from factorflow._initializer.base import AbstractInitializer as AbstractInitializer
from factorflow._initializer.gaussian import Gaussian as Gaussian
from factorflow._initializer.identity import Identity as Identity
from factorflow._initializer.imbalanced import Imbalanced as Imbalanced
from factorflow._initializer.orthogonal import Orthogonal as Orthogonal
