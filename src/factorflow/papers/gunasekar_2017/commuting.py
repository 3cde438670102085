"""Commuting measurements: the nuclear norm of the limit tends to its minimum."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim, Figure
from factorflow.papers.gunasekar_2017.claims import excess_claim, falls_claim, semidefinite_claim
from factorflow.papers.gunasekar_2017.drawing import draw
from factorflow.papers.gunasekar_2017.results import curves, derive
from factorflow.papers.gunasekar_2017.settings import COMMUTING_LOSS, SOURCE, commuting_experiments

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

# Between the flow at its last loss and the closed form, relative to the norm.
AGREEMENT = 1e-4


def _check_closed_form(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = curves(dataset)
    gaps = np.concatenate([np.abs(c.excess - c.predicted)[c.trusted] for c in found])
    # NaN, where the closed form or the minimum is missing, fails.
    worst = float(np.max(gaps)) if gaps.size else np.nan
    return f"at most {worst:.1e} over {gaps.size} certified flows", bool(worst <= AGREEMENT)


def _check_truth(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = curves(dataset)
    apart = [c for c in found if c.truth > 0.02]
    nearer = [abs(c.excess[c.last]) < abs(c.excess[c.last] - c.truth) / 10 for c in apart]
    return (
        f"{sum(nearer)} of {len(apart)} curves; ground truths are up to "
        f"{max(c.truth for c in found):.0%} above the minimum",
        bool(nearer) and all(nearer),
    )


FIGURE = Figure(
    name="commuting",
    title="Commuting measurements: the least nuclear norm",
    caption=(
        "Gradient flow over matrix factorizations of depth 2 and 3 from a multiple of the "
        "identity, fitted to few measurements of a positive semidefinite matrix; measurements are "
        "symmetric and commute. Vertical: nuclear norm of the product once the loss has fallen to "
        f"{COMMUTING_LOSS:g}, over the smallest nuclear norm of a positive semidefinite solution "
        "(by convex optimization, with a certificate), less 1. Horizontal: the multiple of the "
        "identity that the product starts from. Colors: random instances. Pale and dashed: flows "
        "without a certificate."
        "\n\n"
        "The excess vanishes with the initialization: at depth 3 in proportion to it in the end, "
        "at depth 2 as a power of it, which is small where a second solution has nearly the "
        "least norm. Dash-dotted: the limit in closed form, which depends on the initialization. "
        "Grey: what the residual that is left hides; values below are drawn on its edge."
    ),
    experiments=commuting_experiments,
    draw=draw,
    derive=derive,
    claims=(
        excess_claim(
            "commuting",
            {2: 1e-2, 3: 1e-3},
            statement=(
                "With commuting symmetric measurements, from a multiple of the identity, the "
                "nuclear norm of the limit tends to its minimum over positive semidefinite "
                "solutions as the initialization falls."
            ),
            source=f"{SOURCE}, theorem on commuting measurements; depth 3 by Arora et al. 2019",
            reason=(
                "at the smallest certified initialization. At depth 2 the excess is a power of "
                "the initialization: 6e-3 for the slowest instance at 1e-12, in closed form"
            ),
        ),
        falls_claim("commuting"),
        Claim(
            id="commuting.closed_form",
            statement=(
                "Certified flows end at the limit that integrating the flow over all time gives "
                "in closed form for measurements that are diagonal, at every initialization."
            ),
            source="derived for factorflow from the flow's equation, and solved by Newton's method",
            expected="equal nuclear norms",
            tolerance=(
                f"{AGREEMENT:g} of the norm: flows end at a loss of {COMMUTING_LOSS:g}, short of "
                "the limit"
            ),
            check=_check_closed_form,
        ),
        Claim(
            id="commuting.not_the_truth",
            statement=(
                "Where the ground truth is not the solution of least nuclear norm (2% above or "
                "more), flow from the smallest certified initialization ends at least ten times "
                "nearer to the minimum than to the ground truth's norm."
            ),
            source=f"{SOURCE}, theorem on commuting measurements",
            expected="every such instance and depth",
            tolerance="none; nuclear norms are compared",
            check=_check_truth,
        ),
        semidefinite_claim("commuting"),
    ),
)
