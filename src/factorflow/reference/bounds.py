r"""The static bounds, and which of them apply to a problem.

They belong to the problem on which gradient flow drives every norm to infinity.

Main case (2x2): observed $w_{12} = w_{21} = 1$ and $w_{22} = 0$, unobserved $w_{11}$. In
$d \times d$ everything but $w_{11}$ is observed: ones at (1,2), (2,1) and on the diagonal from
(3,3) on, zeros elsewhere. Perturbed case: $z$, $z'$, $\varepsilon$ in place of 1, 1, 0. The loss
$\ell$ is half the sum of squared residuals and $r = \sqrt{2\ell}$ the residual's Frobenius norm.

Every bound holds for **any** matrix whose determinant is zero or has the sign of $zz'$ (main
case: $\det W \ge 0$), whatever produced the matrix. Bounds are dimensionless functions of the
loss; see `Bound` for calling and checking them. The files beside this one hold them by quantity:
`entry`, `norms`, `ranks`; `frontier` holds the exact frontier in 2x2.
"""

from collections.abc import Sequence

from jaxtyping import ArrayLike

from factorflow.reference._bound import BIBTEX as BIBTEX
from factorflow.reference._bound import Bound as Bound
from factorflow.reference._inputs import SIZE_REMEDY, is_traced, require_at_least
from factorflow.reference.entry import entry_bound as entry_bound
from factorflow.reference.entry import entry_infimum as entry_infimum
from factorflow.reference.entry import perturbed_entry_bound as perturbed_entry_bound
from factorflow.reference.norms import norm_bound as norm_bound
from factorflow.reference.norms import schatten_bound as schatten_bound
from factorflow.reference.ranks import distance_bound as distance_bound
from factorflow.reference.ranks import effective_rank_dxd_bound as effective_rank_dxd_bound
from factorflow.reference.ranks import effective_rank_sqrt_bound as effective_rank_sqrt_bound
from factorflow.reference.ranks import effective_rank_supremum as effective_rank_supremum


def bounds_for(
    dim: int = 2,
    z: ArrayLike = 1.0,
    z_prime: ArrayLike = 1.0,
    eps: ArrayLike = 0.0,
    *,
    schatten: Sequence[float | int] = (0.5, 1.0, 2.0),
    loose: bool = False,
) -> tuple[Bound, ...]:
    """The bounds that apply to a problem, for determinants that are zero or signed like z z'.

    **Arguments:**

    - `dim`, `z`, `z_prime`, `eps`: the problem, as in `razin_cohen_problem`; plain numbers.
    - `schatten`: exponents of the Schatten norms to include.
    - `loose`: also list the published constants beside the sharper ones.

    **Returns:** bounds with distinct names. The main case is recognized up to signs, that is by
    `abs(z) == abs(z_prime) == 1` and `eps == 0`; otherwise the effective rank has no entry.

    **Raises:** `ValueError` for a `dim` below 2, a zero `z` or `z_prime`, or traced numbers.

    **Example:**

    >>> from factorflow.reference import bounds_for
    >>> for bound in bounds_for(dim=3, schatten=[0.5]):
    ...     print(bound.name, bound.kind, bound.quantity)
    entry lower entry[0,0]
    schatten[0.5] lower schatten_norm[0.5]
    distance_to_rank upper distance_to_rank[2]
    effective_rank_dxd upper effective_rank
    effective_rank_dxd_excess upper effective_rank_excess
    """
    if is_traced(z, z_prime, eps):
        raise ValueError(
            "bounds_for chooses rows by looking at z, z_prime and eps, which are traced here: "
            "call it outside jit, or use perturbed_entry_bound and distance_bound"
        )
    dim = require_at_least("dim", dim, 2, SIZE_REMEDY)
    main_case = abs(z) == 1 and abs(z_prime) == 1 and eps == 0
    entry = entry_bound(dim) if main_case else perturbed_entry_bound(z, z_prime, eps, dim)
    rows = [entry]
    rows += [schatten_bound(p, entry) for p in schatten]
    rows += [distance_bound(dim, eps=eps)]
    if main_case and dim == 2:
        rows.insert(1, entry_infimum())
        for excess in (False, True):
            rows += [effective_rank_supremum(excess=excess)]
            rows += [effective_rank_sqrt_bound(excess=excess)]
    elif main_case:
        rows += [effective_rank_dxd_bound(dim, excess=excess) for excess in (False, True)]
    if main_case and loose:
        rows += [distance_bound(dim, constants="paper")]
        if dim == 2:
            rows += [effective_rank_sqrt_bound(constants="paper")]
    return tuple(rows)
