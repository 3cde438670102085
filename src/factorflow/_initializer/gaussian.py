"""Independent Gaussian factors."""

import equinox as eqx
import jax

from factorflow._factorization import AbstractFactorization
from factorflow._initializer.base import (
    AbstractInitializer,
    Sign,
    check_determinant,
    check_scales,
    factor_scale_for,
    with_determinant,
)
from factorflow._random import check_key, gaussian
from factorflow._settings import own_settings
from factorflow._types import Factors, RandomKey

__all__ = ["Gaussian"]


class Gaussian(AbstractInitializer):
    r"""Factors with independent entries $\mathcal{N}(0, \text{factor\_scale}^2)$.

    **Arguments:** exactly one scale, by its name:

    - `factor_scale`: standard deviation of every factor's entries.
    - `product_scale`: standard deviation of the product's entries; for a deep matrix with hidden
        widths $h_l$ it is $\text{factor\_scale}^L \sqrt{\prod_l h_l}$, for a CP factorization of
        order N with R components $\text{factor\_scale}^N \sqrt R$.
    - `determinant`: `"positive"`, `"negative"` or `None`, the sign of a square product's
        determinant.

    Factors drawn this way are not balanced.

    !!! example

        ```python
        >>> import jax
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((2, 2), depth=3)
        >>> factors = ff.Gaussian(product_scale=1e-3, determinant="positive")(fz, jax.random.key(0))
        >>> len(factors)
        3

        ```
    """

    factor_scale: float | None = None
    product_scale: float | None = None
    determinant: Sign | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_scales(factor_scale=self.factor_scale, product_scale=self.product_scale)
        check_determinant(self.determinant)

    @own_settings()
    def __call__(
        self, factorization: AbstractFactorization, key: RandomKey | None = None
    ) -> Factors:
        if key is None:
            raise ValueError("Gaussian needs a random key: `Gaussian(...)(factorization, key)`.")
        check_key(key)
        scale = self.factor_scale
        if scale is None:
            assert self.product_scale is not None  # check_scales saw to it
            scale = factor_scale_for(factorization, self.product_scale)
        structs, treedef = jax.tree.flatten(factorization.shapes())
        draws = [
            scale * gaussian(jax.random.fold_in(key, layer), struct.shape, struct.dtype)
            for layer, struct in enumerate(structs)
        ]
        return with_determinant(factorization, jax.tree.unflatten(treedef, draws), self.determinant)
