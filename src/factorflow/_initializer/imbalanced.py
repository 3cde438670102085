"""Factors that miss balance by a given amount."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from factorflow._balance import allowed_gap
from factorflow._factorization import AbstractFactorization, DeepMatrix
from factorflow._initializer.balanced import Balanced
from factorflow._initializer.base import AbstractInitializer, Sign, check_determinant, check_scales
from factorflow._linalg import singular_values
from factorflow._numbers import is_traced
from factorflow._random import check_key, gaussian
from factorflow._settings import own_settings
from factorflow._types import Factors, FloatScalar, RandomKey

__all__ = ["Imbalanced"]

_BISECTIONS = 200
# Of the gap up to which factors count as balanced: rounding may take away half of what is asked.
_RESOLVED = 2.0


class Imbalanced(AbstractInitializer):
    r"""Balanced factors, perturbed until their imbalance is a given number.

    $$D = \max_j \lVert W_{j+1}^\top W_{j+1} - W_j W_j^\top \rVert_2$$

    Every factor of a balanced start is moved along a random direction, all by the same multiple,
    the smallest for which $D$ has the value asked for. One key draws one product and one direction:
    a sweep over `imbalance` varies nothing else. Gradient flow conserves $D$.

    **Arguments:**

    - `product_scale`: standard deviation of the entries of the balanced product.
    - `imbalance`: $D > 0$, well above what rounding leaves of the balance of such factors.
    - `determinant`: `"positive"`, `"negative"` or `None`: sign of the balanced product's
        determinant.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> import factorflow as ff
        >>> fz = ff.DeepMatrix((2, 2), depth=2)
        >>> factors = ff.Imbalanced(product_scale=1e-1, imbalance=1e-2)(fz, jax.random.key(0))
        >>> print(f"{float(jnp.linalg.norm(fz.conserved(factors)[0], 2)):.4f}")
        0.0100

        ```

    **Raises:** `ValueError` for an imbalance that the factors' own rounding hides.
    """

    product_scale: float
    imbalance: float
    determinant: Sign | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_scales(product_scale=self.product_scale)
        check_determinant(self.determinant)
        size = self.imbalance
        if isinstance(size, int | float | np.number) and not 0 < size < float("inf"):
            raise ValueError(
                f"imbalance must be positive and finite, got {size}; for 0 use Balanced."
            )

    @own_settings()
    def __call__(
        self, factorization: AbstractFactorization, key: RandomKey | None = None
    ) -> Factors:
        if not isinstance(factorization, DeepMatrix) or factorization.depth < 2:
            raise ValueError("Imbalanced needs a DeepMatrix of depth 2 or more.")
        if key is None:
            raise ValueError("Imbalanced needs a random key.")
        check_key(key)
        start, way = jax.random.split(key)
        initial = Balanced(product_scale=self.product_scale, determinant=self.determinant)
        balanced = initial(factorization, start)
        keys = jax.random.split(way, len(balanced))
        directions = [
            gaussian(key, factor.shape, factor.dtype)
            for key, factor in zip(keys, balanced, strict=True)
        ]

        if not is_traced(balanced, self.imbalance):
            _refuse_hidden(self.imbalance, tuple(balanced))
        target = jnp.asarray(self.imbalance, balanced[0].dtype)
        return _imbalanced(factorization, tuple(balanced), tuple(directions), target)


def _refuse_hidden(imbalance: float, balanced: Factors) -> None:
    resolved = _RESOLVED * allowed_gap(balanced)
    if imbalance < resolved:
        raise ValueError(
            f"imbalance={imbalance:.3g} is hidden by the rounding of {balanced[0].dtype} factors "
            f"of this size, which are followed as balanced. Ask for {resolved:.2g} or more, or use "
            "Balanced."
        )


# One compilation for all starts of one shape.
@eqx.filter_jit
def _imbalanced(
    fz: DeepMatrix, balanced: Factors, directions: Factors, target: FloatScalar
) -> Factors:
    def moved(multiple: FloatScalar) -> Factors:
        pairs = zip(balanced, directions, strict=True)
        return tuple(factor + multiple * direction for factor, direction in pairs)

    def size(multiple: FloatScalar) -> FloatScalar:
        gaps = fz.conserved(moved(multiple))
        return jnp.max(jnp.stack([singular_values(gap)[0] for gap in gaps]))

    return moved(_solve(size, target))


def _solve(size: Callable[[FloatScalar], FloatScalar], target: FloatScalar) -> FloatScalar:
    """The multiple at which a growing function reaches the target, by bisection of its logarithm.

    Differences grow in proportion to the multiple where it is small, with its square where large.
    """

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = size(jnp.exp(middle)) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    largest = jnp.log(jnp.maximum(target, jnp.sqrt(target))) + 5
    ends = jnp.log(target) - 40, largest
    low, high = lax.fori_loop(0, _BISECTIONS, halve, ends)
    return jnp.exp((low + high) / 2)
