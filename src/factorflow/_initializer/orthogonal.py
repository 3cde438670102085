"""Random orthogonal factors."""

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
from factorflow._random import check_key
from factorflow._settings import own_settings
from factorflow._types import Factors, FloatArray, RandomKey

__all__ = ["Orthogonal"]


class Orthogonal(AbstractInitializer):
    r"""Every factor a multiple of a uniformly random (semi-)orthogonal matrix.

    **Arguments:** exactly one scale, by its name:

    - `factor_scale`: the multiple $\alpha$; every factor has singular values $\alpha$.
    - `product_scale`: $\alpha^L$; a product whose hidden widths are all equal to its (square)
        dimension has exactly these singular values.
    - `determinant`: `"positive"`, `"negative"` or `None`, the sign of a square product's
        determinant.

    !!! example

        ```python
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((2, 2), depth=2)
        >>> product = fz.compose(ff.Orthogonal(product_scale=0.5)(fz, jax.random.key(0)))
        >>> bool(jnp.allclose(product @ product.T, 0.25 * jnp.eye(2), atol=1e-6))
        True

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{saxe2014exact,
            author = {Saxe, Andrew M. and McClelland, James L. and Ganguli, Surya},
            title = {Exact Solutions to the Nonlinear Dynamics of Learning in Deep Linear Neural
                     Networks},
            booktitle = {International Conference on Learning Representations},
            year = {2014},
        }
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
        if not isinstance(factorization, DeepMatrix):
            raise ValueError(f"Orthogonal needs a DeepMatrix, got {type(factorization).__name__}.")
        if key is None:
            raise ValueError(
                "Orthogonal needs a random key: `Orthogonal(...)(factorization, key)`."
            )
        check_key(key)
        scale = root_scale(self.factor_scale, self.product_scale, factorization.depth)
        factors = tuple(
            scale * _semi_orthogonal(jax.random.fold_in(key, layer), *struct.shape)
            for layer, struct in enumerate(factorization.shapes())
        )
        return with_determinant(factorization, factors, self.determinant)


def _semi_orthogonal(key: RandomKey, rows: int, columns: int) -> FloatArray:
    tall = jax.random.normal(key, (max(rows, columns), min(rows, columns)))
    basis, triangle = jnp.linalg.qr(tall)
    # The sign convention of QR makes the result uniform (Haar) only after this correction.
    basis = basis * jnp.sign(jnp.diagonal(triangle))
    return basis if rows >= columns else basis.T
