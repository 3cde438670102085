r"""Upper bounds on two kinds of rank, for the problem that drives every norm to infinity.

Setting and notation are those of `factorflow.reference.bounds`. The effective rank of a matrix is
$\exp H$, with $H$ the entropy in nats of its singular values divided by their sum.

Each bound on the effective rank comes in two forms. The default bounds the measure
`effective_rank`; `excess=True` bounds `effective_rank_excess`, the effective rank minus one, and
is computed without cancellation: it keeps its digits where the first form rounds to 1.
"""

import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from factorflow.reference._bound import DERIVED, PAPER, Bound, is_sharp
from factorflow.reference._inputs import SIZE_REMEDY, is_traced, require_at_least

_PAPER_CONSTANT = 2.0 * math.sqrt(12.0) / math.log(2.0)


def distance_bound(
    dim: int = 2, *, eps: ArrayLike = 0.0, constants: Literal["sharp", "paper"] = "sharp"
) -> Bound:
    r"""Upper bound on the Frobenius distance to the matrices of rank $d - 1$ or less.

    $$\sigma_{\min}(W) \le r + |\varepsilon| \;\text{(sharp)} \quad\text{or}\quad
      3 \sqrt2 \sqrt\ell \;\text{(paper, } \varepsilon = 0)$$

    The sharp form holds at every loss, for every $z z' \ne 0$ and in every dimension. A growing
    $w_{11}$ approaches it when all of the residual sits in $w_{22}$.

    **Arguments:**

    - `dim`: the size $d \ge 2$.
    - `eps`: observed $w_{22}$.
    - `constants`: `"sharp"` for ours, `"paper"` for the published one.

    **Returns:** an upper `Bound` on `distance_to_rank[d-1]`.

    **Raises:** `ValueError` when `dim` is below 2, or for `"paper"` with a concrete nonzero `eps`.

    **Example:**

    >>> from factorflow.reference import distance_bound
    >>> print(f"{float(distance_bound()(0.02)):.3f}")
    0.200
    >>> print(f"{float(distance_bound(constants='paper')(0.02)):.3f}")
    0.600

    ??? cite "Reference"

        Razin and Cohen (2020), BibTeX key `razin2020implicit` in
        `factorflow.reference.BIBTEX`; the sharp form is derived for factorflow.
    """
    dim = require_at_least("dim", dim, 2, SIZE_REMEDY)
    sharp = is_sharp(constants)
    if not sharp and (is_traced(eps) or bool(jnp.any(jnp.asarray(eps) != 0))):
        raise ValueError(f"eps={eps}: the published constant is for eps = 0, use 'sharp'")
    return Bound(
        name="distance_to_rank" + ("" if sharp else "_paper"),
        quantity=f"distance_to_rank[{dim - 1}]",
        kind="upper",
        statement=f"A {dim}x{dim} matrix whose determinant is zero or signed like z z' lies "
        f"within {'r + |eps|' if sharp else '3 r'} of the matrices of rank {dim - 1} or less.",
        proof_idea="Overwriting the observed entries by their targets moves W by r. If that "
        "changes the determinant's sign, a singular matrix was passed. If not, w11 eps has the "
        "sign of z z' and at least its size, and replacing eps by z z'/w11 makes the matrix "
        "singular at a cost below |eps|."
        if sharp
        else "Weaker than the sharp form.",
        source=DERIVED if sharp else PAPER,
        formula=_distance,
        parameters=(1.0 if sharp else 3.0, eps),
    )


def effective_rank_supremum(*, excess: bool = False) -> Bound:
    r"""Exact supremum of the effective rank of 2x2 matrices with a given loss.

    $$\operatorname{erank} W \le \exp h(p^*), \qquad
      p^* = \tfrac12\Big(1 - \sqrt{\tfrac{1-\ell}{1+\ell}}\Big) \le \tfrac{\ell}{2},
      \qquad h(p) = -p \ln p - (1-p) \ln(1-p)$$

    for $\ell < 1$, and 2, the largest there is, from there on.

    **Arguments:**

    - `excess`: bound the effective rank minus one instead.

    **Returns:** an upper `Bound`.

    **Example:**

    >>> from factorflow.reference import effective_rank_supremum
    >>> print(f"{float(effective_rank_supremum()(0.01)):.5f}")
    1.03184
    >>> print(f"{float(effective_rank_supremum(excess=True)(1e-20)):.4e}")
    2.3872e-19

    ??? cite "Reference"

        Derived for factorflow; it sharpens Razin and Cohen (2020), BibTeX key
        `razin2020implicit` in `factorflow.reference.BIBTEX`.
    """
    return _effective_rank(
        "effective_rank_supremum",
        _supremum,
        excess,
        "A 2x2 matrix whose determinant is zero or signed like z z' and whose loss is below 1 has "
        "an effective rank of at most exp h(p*), and one matrix attains it.",
        "The share p of the small singular value obeys (1 - 2p)^2 = (N - 2 det)/(N + 2 det) with "
        "N = ||W||_F^2, and the largest det/N at loss l is l/2, attained where w12 = w21 = 1 - l "
        "and w22 = l w11 = sqrt(2 l (1 - l)).",
        DERIVED,
    )


def effective_rank_sqrt_bound(
    *, constants: Literal["sharp", "paper"] = "sharp", excess: bool = False
) -> Bound:
    r"""Bound on the effective rank of 2x2 matrices by a multiple of $\sqrt\ell$, at every loss.

    $$\operatorname{erank} W \le 1 + C \sqrt\ell, \qquad
      C = 1 \;\text{(sharp)} \quad\text{or}\quad C = 2\sqrt{12}/\ln 2 \;\text{(paper)}$$

    No constant works for larger matrices: see `effective_rank_dxd_bound`.

    **Arguments:**

    - `constants`: `"sharp"` for ours, `"paper"` for the published one.
    - `excess`: bound the effective rank minus one instead.

    **Returns:** an upper `Bound`.

    **Raises:** `ValueError` for another value of `constants`.

    **Example:**

    >>> from factorflow.reference import effective_rank_sqrt_bound
    >>> print(f"{float(effective_rank_sqrt_bound()(0.01)):.2f}")
    1.10

    ??? cite "Reference"

        Razin and Cohen (2020), BibTeX key `razin2020implicit` in
        `factorflow.reference.BIBTEX`; the sharp constant is derived for factorflow.
    """
    sharp = is_sharp(constants)
    return _effective_rank(
        "effective_rank_sqrt" + ("" if sharp else "_paper"),
        _sqrt,
        excess,
        "A 2x2 matrix whose determinant is zero or signed like z z' has an effective rank of at "
        "most one plus a constant times the square root of its loss.",
        "The exact supremum lies under 1 + sqrt(l) for l < 1, and no 2x2 matrix exceeds 2."
        if sharp
        else "Weaker than the sharp form.",
        DERIVED if sharp else PAPER,
        1.0 if sharp else _PAPER_CONSTANT,
    )


def effective_rank_dxd_bound(dim: int, *, excess: bool = False) -> Bound:
    r"""Bound on the effective rank of $d \times d$ matrices, $d \ge 3$, at small loss.

    $$\operatorname{erank} W \le \exp\big(h(P) + P \ln(d-1)\big), \qquad
      P = \frac{m}{m + 1/r - r}, \qquad m = d - 2 + (1 + \sqrt d)\, r$$

    as long as $P \le (d-1)/d$. **Beyond that it claims nothing and returns infinity.** It decays
    like $r \ln(1/r)$, and so does the flow: a bound $1 + C\sqrt\ell$ is false for $d \ge 3$.

    **Arguments:**

    - `dim`: the size $d \ge 3$.
    - `excess`: bound the effective rank minus one instead.

    **Returns:** an upper `Bound`.

    **Raises:** `ValueError` when `dim` is below 3.

    **Example:**

    >>> from factorflow.reference import effective_rank_dxd_bound
    >>> bound = effective_rank_dxd_bound(3)
    >>> print(f"{float(bound(1e-6)):.5f}", float(bound(0.5)))
    1.01177 inf

    ??? cite "Reference"

        Derived for factorflow, for the problem of Razin and Cohen (2020), BibTeX key
        `razin2020implicit` in `factorflow.reference.BIBTEX`.
    """
    dim = require_at_least("dim", dim, 3, "2x2 matrices have effective_rank_supremum")
    return _effective_rank(
        "effective_rank_dxd",
        _dxd,
        excess,
        f"A {dim}x{dim} matrix whose determinant is zero or signed like z z' and whose loss is "
        "small has an effective rank of at most exp(h(P) + P ln(d-1)), where P bounds the share "
        "of all singular values but the first.",
        "The exact solutions with the same w11 have singular values s, 1, ..., 1 below the first, "
        "s <= r, and the residual adds at most sqrt(d) r to their sum; the first is at least "
        "1/r - r. At a given tail share the entropy is largest for a uniform tail, and it grows "
        "with the share up to (d-1)/d.",
        DERIVED,
        float(dim),
    )


def _effective_rank(
    name: str,
    formula: Callable[..., Array],
    excess: bool,
    statement: str,
    proof_idea: str,
    source: str,
    *constants: float,
) -> Bound:
    """Build the plain or the excess form; every formula is `offset` plus the excess."""
    suffix = "_excess" if excess else ""
    return Bound(
        name=name + suffix,
        quantity="effective_rank" + suffix,
        kind="upper",
        statement=statement,
        proof_idea=proof_idea,
        source=source,
        formula=formula,
        parameters=(0.0 if excess else 1.0, *constants),
    )


def _distance(loss: Array, factor: Array, eps: Array) -> Array:
    return factor * jnp.sqrt(2.0 * loss) + jnp.abs(eps)


def _supremum(loss: Array, offset: Array) -> Array:
    loss = jnp.minimum(loss, 1.0)
    # The textbook form of p* subtracts two numbers that agree as the loss vanishes.
    share = loss / (1.0 + loss + jnp.sqrt((1.0 - loss) * (1.0 + loss)))
    return offset + jnp.expm1(_binary_entropy(share))


def _sqrt(loss: Array, offset: Array, constant: Array) -> Array:
    return offset + constant * jnp.sqrt(loss)


def _dxd(loss: Array, offset: Array, dim: Array) -> Array:
    r = jnp.minimum(jnp.sqrt(2.0 * loss), 1.0)
    tail = (dim - 2.0 + (1.0 + jnp.sqrt(dim)) * r) * r
    share = tail / (tail + (1.0 - r) * (1.0 + r))
    largest = (dim - 1.0) / dim
    entropy_at = jnp.minimum(share, largest)
    entropy = _binary_entropy(entropy_at) + entropy_at * jnp.log(dim - 1.0)
    return jnp.where(share <= largest, offset + jnp.expm1(entropy), jnp.inf)


def _binary_entropy(share: Array) -> Array:
    """Entropy in nats of the shares (p, 1 - p), for 0 <= p < 1."""
    safe = jnp.where(share > 0.0, share, 1.0)
    return -share * jnp.log(safe) - (1.0 - share) * jnp.log1p(-share)
