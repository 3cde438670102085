"""Balanced factors of a random or given product."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from factorflow._factorization import AbstractFactorization, DeepMatrix, balanced_factors
from factorflow._initializer.base import (
    AbstractInitializer,
    Sign,
    check_determinant,
    check_scales,
    root_scale,
    with_determinant,
)
from factorflow._memory import refuse_too_large
from factorflow._numbers import as_floats
from factorflow._random import check_key, gaussian
from factorflow._settings import own_settings
from factorflow._types import Factors, RandomKey

__all__ = ["Balanced"]


class Balanced(AbstractInitializer):
    r"""Balanced factors, $W_{j+1}^\top W_{j+1} = W_j W_j^\top$, which gradient flow keeps balanced.

    **Arguments:**

    - `product_scale`: standard deviation of the independent Gaussian entries of the product.
    - `product`: or the product itself, shape `(m, n)`, as an array or nested sequences.
    - `determinant`: `"positive"`, `"negative"` or `None`, the sign of a square product's
        determinant; it negates the product's first row where needed.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((3, 2), depth=2)
        >>> factors = ff.Balanced(product_scale=1e-3)(fz, jax.random.key(0))
        >>> float(abs(fz.conserved(factors)[0]).max()) < 1e-9
        True

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{arora2018optimization,
            author = {Arora, Sanjeev and Cohen, Nadav and Hazan, Elad},
            title = {On the Optimization of Deep Networks: Implicit Acceleration by
                     Overparameterization},
            booktitle = {International Conference on Machine Learning},
            year = {2018},
        }
        ```
    """

    product_scale: float | None = None
    product: tuple[tuple[float, ...], ...] | None = None
    determinant: Sign | None = eqx.field(static=True, default=None)

    def __init__(self, product_scale=None, product=None, determinant=None):
        self.product_scale = product_scale
        # Kept as plain numbers, so that an initializer is still JSON.
        self.product = None if product is None else _as_rows(product)
        self.determinant = determinant
        check_determinant(determinant)
        if self.product is None:
            check_scales(product_scale=product_scale)
        elif product_scale is not None:
            raise ValueError("Give product_scale= or product=, not both.")

    @own_settings()
    def __call__(
        self, factorization: AbstractFactorization, key: RandomKey | None = None
    ) -> Factors:
        if not isinstance(factorization, DeepMatrix):
            raise ValueError(
                f"Balanced needs a DeepMatrix, got {type(factorization).__name__}: other "
                "factorizations conserve other quantities."
            )
        if self.product is not None:
            product = jnp.asarray(self.product, jnp.result_type(float))
            factors = balanced_factors(factorization, product)
        elif key is None:
            raise ValueError("Balanced(product_scale=) needs a random key.")
        else:
            assert self.product_scale is not None  # one of the two was given
            # It, and what decomposes it: two orthogonal matrices and room to work.
            refuse_too_large(
                4 * math.prod(factorization.shape),
                f"Balanced(product_scale=...) of a product of shape {factorization.shape}, which "
                "is drawn as a whole,",
                "Take Gaussian(product_scale=...), which draws the factors, or a smaller shape.",
            )
            check_key(key)
            # The scale goes into the factors: the product itself may be too small for a number.
            factors = balanced_factors(factorization, gaussian(key, factorization.shape))
            root = root_scale(None, self.product_scale, factorization.depth)
            factors = tuple(root * factor for factor in factors)
        return with_determinant(factorization, factors, self.determinant)


def _as_rows(product) -> tuple[tuple[float, ...], ...]:
    array = np.asarray(as_floats("product", product))
    if array.ndim != 2 or not np.all(np.isfinite(array)):
        raise ValueError(f"product must be a matrix of finite numbers, got {product!r}.")
    return tuple(tuple(map(float, row)) for row in array)
