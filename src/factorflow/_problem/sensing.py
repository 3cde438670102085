"""Sensing: linear measurements of a matrix or tensor are observed."""

import equinox as eqx
import jax.numpy as jnp

from factorflow._names import named
from factorflow._numbers import as_floats
from factorflow._problem.base import AbstractProblem
from factorflow._problem.observations import (
    NORMALIZATIONS,
    normalize,
    require_finite,
    sample,
)
from factorflow._product import AbstractProduct
from factorflow._settings import own_settings
from factorflow._types import FloatArray, FloatScalar, RandomKey

__all__ = ["Sensing"]


class Sensing(AbstractProblem):
    r"""Fit linear measurements $\langle A_i, W \rangle = b_i$.

    $$\ell(W) = \tfrac12 \sum_i (\langle A_i, W \rangle - b_i)^2$$

    for `normalization="half_sum"`, the mean of the squares for `"mean"`.

    **Arguments:**

    - `measurements`: the $A_i$, shape `(n, d_1, ..., d_N)`.
    - `values`: the $b_i$, shape `(n,)`.
    - `target`: the ground truth, shape `(d_1, ..., d_N)`, or `None`. Only measures use it.
    - `normalization`: `"half_sum"` or `"mean"`.

    **Raises:** `ValueError` for empty, non-finite, complex, masked or misshapen input.

    !!! example

        ```python
        >>> import jax.numpy as jnp
        >>> import factorflow as ff
        >>> problem = ff.Sensing(jnp.ones((1, 2, 2)), [2.0])
        >>> float(problem.loss(ff.Dense(jnp.eye(2))))
        0.0

        ```
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    measurements: FloatArray
    values: FloatArray
    weights: FloatArray
    target: FloatArray | None
    normalization: str = eqx.field(static=True)

    @own_settings()
    def __init__(self, measurements, values, target=None, normalization="half_sum"):
        self.measurements = as_floats("measurements", measurements)
        self.values = as_floats("values", values)
        self.normalization = named("normalization", normalization, NORMALIZATIONS)
        if self.measurements.ndim < 3 or self.measurements.size == 0:
            raise ValueError(
                "measurements must be non-empty with shape (n, d_1, ..., d_N), N >= 2, got "
                f"{self.measurements.shape}."
            )
        self.shape = self.measurements.shape[1:]
        if self.values.shape != self.measurements.shape[:1]:
            raise ValueError(
                f"values must have shape {self.measurements.shape[:1]}, one per measurement, got "
                f"{self.values.shape}."
            )
        self.weights = jnp.ones_like(self.values)
        self.target = None if target is None else as_floats("target", target)
        for name in ("measurements", "values", "target"):
            if getattr(self, name) is not None:
                require_finite(name, getattr(self, name))
        if self.target is not None and self.target.shape != self.shape:
            raise ValueError(
                f"target must have the measurements' shape {self.shape}, got {self.target.shape}."
            )

    def loss(self, product: AbstractProduct) -> FloatScalar:
        order = len(self.shape)
        residuals = jnp.tensordot(self.measurements, product.dense(), axes=order) - self.values
        total = jnp.sum(self.weights * residuals**2)
        return normalize(self.normalization, total, self.values.shape[0])

    def held_out_loss(self, product: AbstractProduct) -> FloatScalar:
        r"""$\|W - W^*\|_F^2$ over the number of entries: the risk under Gaussian measurements."""
        if self.target is None:
            raise ValueError("held_out_loss needs a target; give `Sensing(..., target=...)`.")
        return jnp.mean((product.dense() - self.target) ** 2)

    def resample(
        self,
        key: RandomKey,
        *,
        batch_size: int | None = None,
        label_noise: FloatScalar | None = None,
    ) -> "Sensing":
        values, weights = sample(key, self.values, self.weights, batch_size, label_noise)
        return eqx.tree_at(lambda p: (p.values, p.weights), self, (values, weights))
