"""What problems and measures see of a factorization: its product."""

from factorflow._product.base import AbstractProduct as AbstractProduct
from factorflow._product.dense import Dense as Dense
from factorflow._product.factored import Factored as Factored
from factorflow._product.rounding import Rounding as Rounding
from factorflow._product.singular import log_determinant as log_determinant
from factorflow._product.singular import log_singular_values as log_singular_values
from factorflow._product.singular import no_matrix as no_matrix
from factorflow._product.singular import singular_values as singular_values
from factorflow._product.spectral import Spectral as Spectral
