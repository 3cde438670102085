r"""Lower bounds on the unobserved entry, for the problem that drives every norm to infinity.

Setting and notation are those of `factorflow.reference.bounds`.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from factorflow.reference._bound import DERIVED, Bound
from factorflow.reference._inputs import SIZE_REMEDY, require_at_least, require_nonzero
from factorflow.reference.frontier import frontier_entry


def entry_bound(dim: int = 2) -> Bound:
    r"""Lower bound on the unobserved entry, in every dimension.

    $$|w_{11}| \ge 1/r - r$$

    **Arguments:**

    - `dim`: the size $d \ge 2$; the formula does not depend on it.

    **Returns:** a lower `Bound` on `entry[0,0]`.

    **Raises:** `ValueError` when `dim` is below 2.

    **Example:**

    >>> from factorflow.reference import entry_bound
    >>> print(f"{float(entry_bound(dim=5)(1e-4)):.2f}")
    70.70

    ??? cite "Reference"

        Razin and Cohen (2020), BibTeX key `razin2020implicit` in
        `factorflow.reference.BIBTEX`; the constants are derived for factorflow.
    """
    dim = require_at_least("dim", dim, 2, SIZE_REMEDY)
    return Bound(
        name="entry",
        quantity="entry[0,0]",
        kind="lower",
        statement=f"A {dim}x{dim} matrix whose determinant is zero or signed like z z' has |w11| "
        "of at least 1/r - r.",
        proof_idea="Overwriting the observed entries by their targets moves W by r and turns the "
        "determinant into -z z', so a singular matrix lies within r of the solution reached. Its "
        "smallest singular value s is then at most r (Eckart-Young), and 1/s - s = |w11|.",
        source=DERIVED,
        formula=_entry,
    )


def entry_infimum() -> Bound:
    r"""Exact infimum of the unobserved entry over 2x2 matrices: the sharpest lower bound.

    $|w_{11}| \ge F(r)$, with $F$ as in `factorflow.reference.frontier_entry`. It exceeds
    $1/r - r$ by $r^3/2$ to leading order.

    **Returns:** a lower `Bound` on `entry[0,0]`.

    **Example:**

    >>> from factorflow.reference import entry_bound, entry_infimum
    >>> print(f"{float(entry_bound()(0.13)):.4f} {float(entry_infimum()(0.13)):.4f}")
    1.4513 1.5054

    ??? cite "Reference"

        Derived for factorflow; it sharpens Razin and Cohen (2020), BibTeX key
        `razin2020implicit` in `factorflow.reference.BIBTEX`.
    """
    return Bound(
        name="entry_infimum",
        quantity="entry[0,0]",
        kind="lower",
        statement="No 2x2 matrix whose determinant is zero or signed like z z' has |w11| below "
        "F(r), and a singular one has it.",
        proof_idea="The loss at fixed w11 is least on the surface det W = 0; its stationary "
        "points there are w12 = w21 (small loss) and w12 + w21 = 1 (loss above 3/8).",
        source=DERIVED,
        formula=frontier_entry,
    )


def perturbed_entry_bound(z: ArrayLike, z_prime: ArrayLike, eps: ArrayLike, dim: int = 2) -> Bound:
    r"""Lower bound on the unobserved entry for general observations.

    $$|w_{11}| \ge \frac{|z z'| - m r}{|\varepsilon| + r}, \qquad
      m = \sigma_{\max}\begin{pmatrix} 0 & z \\ z' & \varepsilon \end{pmatrix}$$

    As the loss vanishes it tends to $|zz'/\varepsilon|$, which is where the entry goes. In
    $d \ge 3$ it claims nothing (0) from $r = 1$ on.

    **Arguments:**

    - `z`, `z_prime`, `eps`: observed $w_{12}$, $w_{21}$ and $w_{22}$. They may be arrays that
        broadcast against the loss, and they may be traced.
    - `dim`: the size $d \ge 2$.

    **Returns:** a lower `Bound` on `entry[0,0]`.

    **Raises:** `ValueError` when a concrete `z` or `z_prime` is zero, or `dim` is below 2.

    **Example:**

    >>> from factorflow.reference import perturbed_entry_bound
    >>> bound = perturbed_entry_bound(-2.0, 0.5, 0.05)
    >>> print(f"{float(bound(1e-4)):.2f} {float(bound(0.0)):.2f}")
    15.15 20.00

    ??? cite "Reference"

        Derived for factorflow, for the problem of Razin and Cohen (2020), BibTeX key
        `razin2020implicit` in `factorflow.reference.BIBTEX`.
    """
    dim = require_at_least("dim", dim, 2, SIZE_REMEDY)
    require_nonzero("z", z, "with z = 0 an exact solution can be singular and w11 is free")
    require_nonzero("z_prime", z_prime, "with z' = 0 an exact solution can be singular")
    return Bound(
        name="perturbed_entry",
        quantity="entry[0,0]",
        kind="lower",
        statement=f"A {dim}x{dim} matrix whose determinant is zero or signed like z z' has "
        "|w11| of at least (|z z'| - m r)/(|eps| + r).",
        proof_idea="Unless |w11 eps| already exceeds |z z'|, overwriting the observed entries by "
        "their targets passes a singular matrix, so the smallest singular value of the solution "
        "reached is at most r. Its product with the largest, at most |w11| + m, is at least "
        "|z z'| - |w11 eps|.",
        source=DERIVED,
        formula=_perturbed_entry,
        # Beyond 2x2 the argument needs the unit singular values to stay above the residual.
        parameters=(z, z_prime, eps, math.inf if dim == 2 else 1.0),
    )


def _entry(loss: Array) -> Array:
    # 1 - 2 loss is exact near loss = 1/2, where 1/r - r would cancel.
    gap = 1.0 - 2.0 * loss
    return jnp.where(gap > 0.0, gap / jnp.sqrt(2.0 * loss), 0.0)


def _perturbed_entry(loss: Array, z: Array, z_prime: Array, eps: Array, reach: Array) -> Array:
    r = jnp.sqrt(2.0 * loss)
    z, z_prime, eps = jnp.abs(z), jnp.abs(z_prime), jnp.abs(eps)
    largest = 0.5 * (jnp.hypot(z + z_prime, eps) + jnp.hypot(z - z_prime, eps))
    gap = z * z_prime - largest * r
    return jnp.where((gap > 0.0) & (r < reach), gap / (eps + r), 0.0)
