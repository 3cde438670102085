"""Multiples of the identity."""

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._initializer.base import (
    AbstractInitializer,
    Sign,
    check_determinant,
    check_scales,
    root_scale,
    with_determinant,
)
from factorflow._settings import own_settings
from factorflow._types import Factors, RandomKey

__all__ = ["Identity"]


class Identity(AbstractInitializer):
    r"""Every factor a multiple of the (possibly rectangular) identity.

    **Arguments:** exactly one scale, by its name:

    - `factor_scale`: the multiple $\alpha$ in every factor; the product is $\alpha^L$ times the
        identity.
    - `product_scale`: the multiple in the product, $\alpha^L$.
    - `determinant`: `"positive"`, `"negative"` or `None`; `"negative"` negates one row of the last
        factor.

    Factors are balanced where no hidden width is below `min(m, n)`. Symmetric starts like this one
    can survive numerical errors that generic ones do not: prefer `Balanced` for evidence.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((2, 2), depth=2)
        >>> fz.compose(ff.Identity(product_scale=0.25)(fz)).tolist()
        [[0.25, 0.0], [0.0, 0.25]]

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
        del key
        if not isinstance(factorization, DeepMatrix):
            raise ValueError(f"Identity needs a DeepMatrix, got {type(factorization).__name__}.")
        scale = root_scale(self.factor_scale, self.product_scale, factorization.depth)
        factors = jax.tree.map(
            lambda struct: scale * jnp.eye(*struct.shape, dtype=struct.dtype),
            factorization.shapes(),
        )
        return with_determinant(factorization, factors, self.determinant)
