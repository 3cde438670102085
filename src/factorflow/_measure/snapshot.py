"""What a measure sees: one observed moment of a run, computed lazily."""

import functools
from typing import Any

import jax

from factorflow._factorization import AbstractFactorization
from factorflow._linalg import constant_svd
from factorflow._problem import AbstractProblem
from factorflow._product import AbstractProduct, Dense, no_matrix
from factorflow._types import Factors, FloatArray, FloatScalar, IntScalar

__all__ = ["Snapshot"]


class Snapshot:
    """A lazy view over problem, factorization and state.

    It lives inside a trace: everything is computed at most once, and only if a measure asks.

    **Attributes:**

    - `problem`, `factorization`: what is fitted, and how.
    - `time`, `step`: time of the flow and number of steps taken.
    - `product`: an `AbstractProduct`; `dense` is its array.
    - `factors`: the current factors.
    """

    def __init__(
        self,
        problem: AbstractProblem,
        product: AbstractProduct,
        *,
        factorization: AbstractFactorization | None = None,
        factors: Any = None,
        time: FloatScalar | None = None,
        step: IntScalar | None = None,
    ):
        self.problem = problem
        self.product = product
        self.factorization = factorization
        self.time = time
        self.step = step
        self._factors = factors

    @functools.cached_property
    def factors(self) -> Factors:
        # Spectral states build factors on demand, so a function is accepted too.
        return self._factors() if callable(self._factors) else self._factors

    @functools.cached_property
    def dense(self) -> FloatArray:
        return self.product.dense()

    @functools.cached_property
    def loss(self) -> FloatScalar:
        return self.problem.loss(self.product)

    @functools.cached_property
    def gradient(self) -> FloatArray:
        """Gradient of the loss with respect to the product, in the product's shape."""
        return jax.grad(lambda array: self.problem.loss(Dense(array)))(self.dense)

    @functools.cached_property
    def singular_vectors(self) -> tuple[FloatArray, FloatArray]:
        """Left `(m, k)` and right `(n, k)` singular vectors of the dense product."""
        if self.dense.ndim != 2:
            raise ValueError(no_matrix(self.dense.shape))
        left, values, right = constant_svd(self.dense)
        return left[:, : values.shape[0]], right[: values.shape[0]].T

    @functools.cached_property
    def log_singular_values(self) -> FloatArray:
        return self.product.log_singular_values()

    @functools.cached_property
    def singular_values(self) -> FloatArray:
        return self.product.singular_values()

    @functools.cached_property
    def log_determinant(self) -> tuple[FloatScalar, FloatScalar]:
        """Sign and logarithm of the absolute determinant."""
        return self.product.log_determinant()
