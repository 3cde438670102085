"""Gaussian measurements, which do not commute: how near the nuclear norm comes to its minimum."""

from factorflow.papers.base import Figure
from factorflow.papers.gunasekar_2017.claims import excess_claim, nears_claim, semidefinite_claim
from factorflow.papers.gunasekar_2017.drawing import draw
from factorflow.papers.gunasekar_2017.results import derive
from factorflow.papers.gunasekar_2017.settings import RANDOM_LOSS, SOURCE, random_experiments

__all__ = ["FIGURE"]

FIGURE = Figure(
    name="random_sensing",
    title="Gaussian measurements: near the least nuclear norm",
    caption=(
        "The same for symmetric Gaussian measurements of a positive semidefinite matrix of rank 1, "
        "twice as many as such a matrix has numbers. They do not commute, and no theorem says "
        "where flow ends: that it is the least nuclear norm was a conjecture. Vertical: nuclear "
        f"norm of the product at a loss of {RANDOM_LOSS:g} over the smallest of a positive "
        "semidefinite solution, less 1. Pale and dashed: flows without a certificate."
        "\n\n"
        "Mostly the ground truth, which has the least rank, has the least nuclear norm too. Where "
        "it has not, a dotted line shows its excess: there flow tends to the ground truth instead, "
        "whose rank is least and whose norm is not."
    ),
    experiments=random_experiments,
    draw=draw,
    derive=derive,
    claims=(
        excess_claim(
            "random_sensing",
            {2: 5e-2, 3: 5e-2},
            statement=(
                "With symmetric Gaussian measurements the nuclear norm of the limit comes near its "
                "minimum over positive semidefinite solutions."
            ),
            source=f"{SOURCE}, conjecture and experiments",
            reason=(
                "at the smallest certified initialization; three times what was measured. Not a "
                "theorem, and not zero: one instance of four stays 1.5% above at either depth"
            ),
        ),
        nears_claim("random_sensing"),
        semidefinite_claim("random_sensing"),
    ),
)
