r"""Lower bounds on norms and quasi-norms, for the problem that drives every norm to infinity.

Setting and notation are those of `factorflow.reference.bounds`. These bounds grow without limit as
the loss vanishes, so no norm is minimized along a run that keeps the sign of its determinant.
"""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from factorflow.reference._bound import DERIVED, PAPER, Bound, is_sharp
from factorflow.reference._inputs import require_positive
from factorflow.reference.entry import entry_bound

# With b = beta c^2 max_ij ||E_ij|| the bound is positive only for r < 1/beta, where the
# subtracted terms stay under b as soon as 2 + (1 + sqrt 3)/beta <= beta: this is the solution.
_NORM_OFFSET = 1.0 + math.sqrt(2.0 + math.sqrt(3.0))


def schatten_bound(p: float | int, entry: Bound | None = None) -> Bound:
    r"""Lower bound on the Schatten-$p$ norm, or quasi-norm, for every $p > 0$.

    $$\lVert W \rVert_{S_p} \ge \sigma_1 \ge |w_{11}| \ge 1/r - r$$

    **Arguments:**

    - `p`: the exponent, positive; `math.inf` is the spectral norm.
    - `entry`: the lower bound on `entry[0,0]` to carry over, `entry_bound()` when left out.

    **Returns:** a lower `Bound` on `schatten_norm[p]`.

    **Raises:** `ValueError` when `p` is not positive or `entry` bounds something else.

    **Example:**

    >>> from factorflow.reference import schatten_bound
    >>> bound = schatten_bound(0.5)
    >>> print(bound.quantity, f"{float(bound(1e-4)):.2f}")
    schatten_norm[0.5] 70.70

    ??? cite "Reference"

        Razin and Cohen (2020), BibTeX key `razin2020implicit` in
        `factorflow.reference.BIBTEX`; the constants are derived for factorflow.
    """
    require_positive("p", p, "Schatten exponents are positive, 1 is the nuclear norm")
    entry = entry_bound() if entry is None else entry
    if (entry.kind, entry.quantity) != ("lower", "entry[0,0]"):
        raise ValueError(f"entry={entry.name} is no lower bound on entry[0,0]: pass entry_bound()")
    label = int(p) if float(p).is_integer() else float(p)
    return Bound(
        name=f"schatten[{label}]",
        quantity=f"schatten_norm[{label}]",
        kind="lower",
        statement=f"The Schatten-{label} norm is at least the bound on |w11|. {entry.statement}",
        proof_idea="A sum of p-th powers is at least its largest term, so the norm is at least "
        f"the largest singular value, which no entry exceeds. {entry.proof_idea}",
        source=entry.source,
        formula=entry.formula,
        parameters=entry.parameters,
    )


def norm_bound(
    norm_e11: float | int,
    norm_unit_max: float | int,
    triangle: float | int = 1.0,
    *,
    constants: Literal["sharp", "paper"] = "sharp",
) -> Bound:
    r"""Lower bound on any norm or quasi-norm of 2x2 matrices.

    $$\lVert W \rVert \ge \frac{a}{\sqrt\ell} - b, \qquad
      a = \frac{\lVert E_{11} \rVert}{\sqrt2\, c}, \qquad
      b = \big(1 + \sqrt{2 + \sqrt3}\big)\, c^2 \max_{ij} \lVert E_{ij} \rVert$$

    for a quasi-norm with $\lVert A + B \rVert \le c\,(\lVert A \rVert + \lVert B \rVert)$. The
    published offset is $b = \max\{\sqrt2\, a,\; 8 c^2 \max_{ij} \lVert E_{ij} \rVert\}$.

    **Arguments:**

    - `norm_e11`: the norm of the matrix with a single one at (1,1).
    - `norm_unit_max`: the largest norm among the four matrices with a single one.
    - `triangle`: the constant $c \ge 1$; 1 for a norm, $2^{1/p - 1}$ for Schatten $p < 1$.
    - `constants`: `"sharp"` for ours, `"paper"` for the published one.

    **Returns:** a lower `Bound` on `norm`, whatever norm the numbers belong to.

    **Raises:** `ValueError` when a norm is not positive, `norm_e11` exceeds `norm_unit_max` or
    `triangle` is below 1.

    **Example:**

    >>> from factorflow.reference import norm_bound
    >>> nuclear = norm_bound(1.0, 1.0)
    >>> print(f"{float(nuclear(1e-4)):.2f}")
    67.78

    ??? cite "Reference"

        Razin and Cohen (2020), BibTeX key `razin2020implicit` in
        `factorflow.reference.BIBTEX`; the sharp offset is derived for factorflow.
    """
    require_positive("norm_e11", norm_e11, "pass the norm of the unit matrix at (1,1)")
    require_positive("norm_unit_max", norm_unit_max, "pass the largest norm of a unit matrix")
    if not triangle >= 1.0:
        raise ValueError(f"triangle must be >= 1, got {triangle}: use 1 for a norm")
    if norm_e11 > norm_unit_max:
        raise ValueError(
            f"norm_e11={norm_e11} exceeds norm_unit_max={norm_unit_max}: the maximum runs over "
            "all four unit matrices, (1,1) included"
        )
    sharp = is_sharp(constants)
    slope = norm_e11 / (math.sqrt(2.0) * triangle)
    scale = triangle**2 * norm_unit_max
    offset = _NORM_OFFSET * scale if sharp else max(math.sqrt(2.0) * slope, 8.0 * scale)
    return Bound(
        name="norm" + ("" if sharp else "_paper"),
        quantity="norm",
        kind="lower",
        statement="Any norm, or quasi-norm with triangle constant c, of a 2x2 matrix "
        "whose determinant is zero or signed like z z' is at least a/sqrt(l) - b.",
        proof_idea="Weaker than the sharp form."
        if not sharp
        else "Split off w11 with the triangle inequality: the observed entries sum to at "
        "most 2 + sqrt(3) r in absolute value, and only residuals that keep the bound positive "
        "matter, which caps r at the reciprocal of b's leading constant.",
        source=DERIVED if sharp else PAPER,
        formula=_norm,
        parameters=(slope, offset),
    )


def _norm(loss: Array, slope: Array, offset: Array) -> Array:
    return jnp.maximum(slope / jnp.sqrt(loss) - offset, 0.0)
