r"""The loss frontier of the 2x2 problem: how small the loss can be at a given unobserved entry.

Setting: observed $w_{12} = w_{21} = 1$, $w_{22} = 0$, unobserved $w_{11}$, loss
$\ell = \tfrac12[(w_{12}-1)^2 + (w_{21}-1)^2 + w_{22}^2]$, and matrices restricted to
$\det W \ge 0$. Fixing $a = |w_{11}|$, the cheapest admissible matrix is singular.

- For $a \ge 1/2$ it is $[[a, s], [s, s^2/a]]$, where $s$ is the real root of
  $s^3 = a^2 (1 - s)$; its loss is $(1-s)(2-s)/2$.
- For $a \le 1/2$ it is $[[a, x], [y, a]]$ with $x + y = 1$, $xy = a^2$; its loss is
  $(1 - a^2)/2$.

The two branches meet at $a = 1/2$, $\ell = 3/8$. Any trajectory whose determinant stays
non-negative lies on or above this curve, whatever produced it: that makes the frontier an
oracle for experiments. The functions are dimensionless, elementwise and keep the dtype.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from factorflow.reference._inputs import as_float, require_nonnegative

_BRANCH_ENTRY = 0.5
_BRANCH_LOSS = 0.375


def frontier_loss(entry: ArrayLike) -> Float[Array, "..."]:
    r"""Smallest loss of a 2x2 matrix with $\det W \ge 0$ and unobserved entry `entry`.

    $$\ell(a) = \min_s\, (s-1)^2 + \frac{s^4}{2a^2} = \tfrac12 (1-s)(2-s),
      \qquad s = \frac{2a}{\sqrt3} \sinh\Big(\tfrac13 \operatorname{arsinh}
      \frac{3\sqrt3}{2a}\Big)$$

    for $a = |w_{11}| \ge 1/2$, and $(1-a^2)/2$ below. The gap $1 - s$ is taken from
    $s^3/a^2$, so the result keeps its relative accuracy for arbitrarily large $a$.

    **Arguments:**

    - `entry`: unobserved entry $w_{11}$, any shape; its sign does not matter.

    **Returns:**

    The loss, of the shape and floating dtype of `entry`; NaN where `entry` is NaN.

    **Example:**

    >>> from factorflow.reference import frontier_loss
    >>> print(f"{float(frontier_loss(6.043)):.3e}")
    1.300e-02

    ??? cite "Reference"

        Derived for factorflow, for the problem of Razin and Cohen (2020), BibTeX key
        `razin2020implicit` in `factorflow.reference.BIBTEX`.
    """
    return _loss(as_float(entry))


# Compiled whole, like the one below: operation by operation they would compile a dozen times each.
@eqx.filter_jit
def _loss(entry: Array) -> Array:
    a = jnp.abs(entry)
    # The hyperbolic branch never sees a < 1/2, where its gradient is no longer finite, nor an
    # infinity; at the upper end its result has long underflowed to zero.
    large = jnp.clip(a, _BRANCH_ENTRY, 0.25 * jnp.finfo(a.dtype).max)
    angle = jnp.arcsinh(1.5 * math.sqrt(3.0) / large) / 3.0
    s = (2.0 / math.sqrt(3.0)) * large * jnp.sinh(angle)
    gap = s * (s / large) ** 2
    return jnp.where(a < _BRANCH_ENTRY, 0.5 * (1.0 - a) * (1.0 + a), 0.5 * gap * (1.0 + gap))


def frontier_entry(loss: ArrayLike) -> Float[Array, "..."]:
    r"""Smallest $|w_{11}|$ of a 2x2 matrix with $\det W \ge 0$ at a given loss.

    With $r = \sqrt{2\ell}$ and $q = \sqrt{1 + 4r^2}$,

    $$F(r) = \begin{cases}
        (3-q)^{3/2} (q+1)^{1/2} / (4r) & r^2 \le 3/4 \\
        \sqrt{1 - r^2} & 3/4 \le r^2 \le 1 \\
        0 & r \ge 1,
      \end{cases}$$

    the inverse of `frontier_loss` for $\ell \le 1/2$.

    **Arguments:**

    - `loss`: the loss $\ell \ge 0$ (half the sum of squares), any shape.

    **Returns:**

    The entry, of the shape and floating dtype of `loss`; infinite at loss 0 and NaN where
    `loss` is NaN.

    **Raises:** `ValueError` when a concrete loss is negative.

    **Example:**

    >>> from factorflow.reference import frontier_entry
    >>> print(f"{float(frontier_entry(1e-4)):.2f}")
    70.70

    ??? cite "Reference"

        Derived for factorflow; it sharpens the entry bound of Razin and Cohen (2020), BibTeX
        key `razin2020implicit` in `factorflow.reference.BIBTEX`.
    """
    require_nonnegative("loss", loss, "pass half the sum of squared residuals")
    return _entry(as_float(loss))


@eqx.filter_jit
def _entry(loss: Array) -> Array:
    small = jnp.minimum(loss, _BRANCH_LOSS)
    q = jnp.sqrt(1.0 + 8.0 * small)
    divergent = (3.0 - q) * jnp.sqrt((3.0 - q) * (q + 1.0)) / (4.0 * jnp.sqrt(2.0 * small))
    # 1 - 2 loss is exact near loss = 1/2, so the square root below has no cancellation.
    bounded = jnp.sqrt(jnp.maximum(1.0 - 2.0 * loss, 0.0))
    return jnp.where(loss > _BRANCH_LOSS, bounded, divergent)
