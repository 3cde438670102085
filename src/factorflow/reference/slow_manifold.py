r"""Asymptotic laws of the balanced gradient flow on the problem that drives every norm to infinity.

Where the determinant has the sign of $zz'$, the flow collapses onto a slow curve along which
the loss decays only as fast as the unobserved entry $x = |w_{11}|$ can grow. These laws hold in
the limit of small loss; unlike the bounds of `factorflow.reference.bounds` they are not
inequalities. `depth` $L$ counts matrices. Time is that of $dW_j/dt = -\partial\ell/\partial W_j$.

??? cite "Reference"

    Derived for factorflow and checked against its high-precision trajectories, for the problem
    of Razin and Cohen (2020), BibTeX key `razin2020implicit` in `factorflow.reference.BIBTEX`.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from factorflow.reference._inputs import (
    as_float,
    cast_like,
    require_at_least,
    require_nonnegative,
    require_nonzero,
)

_HORIZON_PREFACTOR = 1.75


def slow_manifold_entry(loss: ArrayLike, determinant: ArrayLike = 0.0) -> Float[Array, "..."]:
    r"""Unobserved entry $|w_{11}|$ on the slow manifold of the main case.

    $$|w_{11}| \approx \frac{1}{r} - r + \frac{\det W}{r} + \frac{r^3}{2},
      \qquad r = \sqrt{2\ell}$$

    The first neglected terms are close to $r^5/2$ and $r \det W$.

    **Arguments:**

    - `loss`: the loss $\ell \ge 0$, any shape.
    - `determinant`: $\det W \ge 0$ at that loss, broadcast against `loss`. Zero leaves out the
      correction, which at depth 2 is below rounding from $\ell = 10^{-2}$ on.

    **Returns:**

    The entry in the dtype of `loss`; infinite at loss 0.

    **Raises:** `ValueError` when a concrete loss is negative.

    **Example:**

    >>> from factorflow.reference import slow_manifold_entry
    >>> print(f"{float(slow_manifold_entry(1e-2)):.3f}")
    6.931
    """
    require_nonnegative("loss", loss, "pass half the sum of squared residuals")
    loss = as_float(loss)
    return _entry(loss, cast_like(determinant, loss))


# Compiled whole, like the laws below: operation by operation each would compile several times.
@eqx.filter_jit
def _entry(loss: Array, determinant: Array) -> Array:
    r = jnp.sqrt(2.0 * loss)
    return (1.0 - 2.0 * loss + determinant) / r + loss * r


def slow_manifold_time(loss: ArrayLike, depth: int) -> Float[Array, "..."]:
    r"""Time at which the balanced flow of the main case reaches a loss, to leading order.

    $$t \sim \frac{(2\ell)^{-(1 + 1/L)}}{2L + 2}$$

    The law falls short by a relative $24\,\ell$ at depth 2 and $48\,\ell$ at depth 3 (read off the
    reference trajectories), and leaves out the time spent before the slow manifold is reached.

    **Arguments:**

    - `loss`: the loss $\ell \ge 0$, any shape.
    - `depth`: number of matrices $L \ge 2$.

    **Returns:**

    The time in the dtype of `loss`; infinite at loss 0.

    **Raises:** `ValueError` when a concrete loss is negative or `depth` is below 2.

    **Example:**

    >>> from factorflow.reference import slow_manifold_time
    >>> print(f"{float(slow_manifold_time(1e-4, depth=2)):.0f}")
    58926
    """
    require_nonnegative("loss", loss, "pass half the sum of squared residuals")
    depth = require_at_least("depth", depth, 2, "pass the number of factor matrices")
    return _time(as_float(loss), depth)


@eqx.filter_jit
def _time(loss: Array, depth: int) -> Array:
    return (2.0 * loss) ** (-(1.0 + 1.0 / depth)) / (2.0 * depth + 2.0)


def slow_manifold_log_sigma2(
    entry: ArrayLike, depth: int, *, constant: ArrayLike = 0.0
) -> Float[Array, "..."]:
    r"""Natural logarithm of the small singular value along the slow manifold.

    $$\ln\sigma_2 \sim \begin{cases}
        -x^2/2 - 4\ln x + C & L = 2 \\
        -\dfrac{L}{L-2} \ln\Big(\dfrac{L-2}{L+2}\, x^{(L+2)/L}\Big) & L \ge 3
      \end{cases}$$

    The logarithm is what to compute and store: at depth 2 the value itself underflows double
    precision at $x \approx 38$.

    **Arguments:**

    - `entry`: unobserved entry $w_{11} \ne 0$, any shape; the law uses $x = |w_{11}|$.
    - `depth`: number of matrices $L \ge 2$.
    - `constant`: the constant $C$ of depth 2, which remembers the initialization; broadcast
      against `entry`. The memory fades at larger depths, where a nonzero constant is refused.

    **Returns:**

    The logarithm in the dtype of `entry`.

    **Raises:** `ValueError` when `depth` is below 2, or `constant` is given with `depth` >= 3.

    **Example:**

    >>> from factorflow.reference import slow_manifold_log_sigma2
    >>> print(f"{float(slow_manifold_log_sigma2(100.0, depth=3)):.3f}")
    -18.198
    """
    depth = require_at_least("depth", depth, 2, "pass the number of factor matrices")
    entry = as_float(entry)
    if depth == 2:
        return _exponential(entry, cast_like(constant, entry))
    if not (isinstance(constant, (int, float)) and constant == 0):
        raise ValueError(
            f"constant={constant} has no meaning at depth {depth}: leave it out, the law for "
            "depth >= 3 does not depend on the initialization"
        )
    return _power(entry, depth)


@eqx.filter_jit
def _exponential(entry: Array, constant: Array) -> Array:
    x = jnp.abs(entry)
    return -0.5 * x * x - 4.0 * jnp.log(x) + constant


@eqx.filter_jit
def _power(entry: Array, depth: int) -> Array:
    x = jnp.abs(entry)
    log_scale = jnp.log(x) * ((depth + 2.0) / depth) + jnp.log(
        cast_like((depth - 2.0) / (depth + 2.0), x)
    )
    return log_scale * (-depth / (depth - 2.0))


def escape_horizon(imbalance: ArrayLike, depth: int) -> Float[Array, "..."]:
    r"""Entry $|w_{11}|$ near which unbalanced factors of depth >= 3 stop following the theorem.

    $$x \approx 1.75 \left[\frac{L+2}{(L-2)\, D^{(L-2)/2}}\right]^{L/(L+2)}, \qquad
      D = \max_j \lVert W_{j+1}^\top W_{j+1} - W_j W_j^\top \rVert_2$$

    Gradient flow conserves the imbalance $D$, so the small singular direction cannot keep
    shrinking: it passes through zero, the determinant changes sign and the entry saturates.
    This is a scale, not a bound. The exponent is derived; the prefactor depends on the direction
    of the imbalance: runs in random directions saturated at 1.05 to 2.6 times this value at depth
    3 and at 1.3 to 6.2 times at depth 4, and the determinant changes sign earlier, from 0.67 times
    this value on at depth 3. Trust a curve only well below it, say under 0.3 of it.

    **Arguments:**

    - `imbalance`: $D \ge 0$, any shape; the law is measured for $D \le 10^{-4}$.
    - `depth`: number of matrices $L \ge 3$.

    **Returns:**

    The entry in the dtype of `imbalance`; infinite for $D = 0$.

    **Raises:** `ValueError` when a concrete imbalance is negative or `depth` is below 3.

    **Example:**

    >>> from factorflow.reference import escape_horizon
    >>> print(f"{float(escape_horizon(1e-6, depth=3)):.1f}")
    290.0
    """
    require_nonnegative("imbalance", imbalance, "pass the largest spectral norm of the D_j")
    depth = require_at_least(
        "depth", depth, 3, "depth 2 has no power law, its asymmetric mode grows like exp(x^2/4)"
    )
    return _horizon(as_float(imbalance), depth)


@eqx.filter_jit
def _horizon(imbalance: Array, depth: int) -> Array:
    ratio = (depth + 2.0) / (depth - 2.0)
    exponent = depth / (depth + 2.0)
    # Powers are taken before the quotient: a tiny imbalance must not underflow to a division by 0.
    return _HORIZON_PREFACTOR * ratio**exponent * imbalance ** (-0.5 * (depth - 2.0) * exponent)


def perturbed_entry_limit(
    z: ArrayLike, z_prime: ArrayLike, eps: ArrayLike, determinant: ArrayLike = 0.0
) -> Float[Array, "..."]:
    r"""Limit of the unobserved entry when the observed $w_{22}$ is `eps` instead of zero.

    $$w_{11} \to \frac{z z' + \det W}{\varepsilon} \qquad (\ell \to 0)$$

    The solution set fixes the other entries, so the determinant at the end fixes this one. It is
    finite, and grows without bound as `eps` shrinks.

    **Arguments:**

    - `z`, `z_prime`: observed $w_{12}$ and $w_{21}$.
    - `eps`: observed $w_{22} \ne 0$; sets the dtype of the result.
    - `determinant`: $\det W$ at the end of the run; zero gives the limit of a vanishing one.

    **Returns:**

    The limit, with its sign, broadcast over the arguments.

    **Raises:** `ValueError` when a concrete `eps` is zero.

    **Example:**

    >>> from factorflow.reference import perturbed_entry_limit
    >>> print(f"{float(perturbed_entry_limit(-2.0, 0.5, 0.05)):.2f}")
    -20.00
    """
    require_nonzero("eps", eps, "without a perturbation the entry has no finite limit")
    eps = as_float(eps)
    z, z_prime, determinant = (cast_like(value, eps) for value in (z, z_prime, determinant))
    return (z * z_prime + determinant) / eps
