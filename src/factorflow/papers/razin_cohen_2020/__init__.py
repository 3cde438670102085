"""Razin & Cohen (NeurIPS 2020): norms driven to infinity while the effective rank falls."""

from factorflow.papers.base import Paper
from factorflow.papers.razin_cohen_2020 import (
    deep_matrix_factorization,
    dimension,
    escape_horizon,
    negative_determinant,
    norms,
    perturbed,
    slow_manifold,
    step_size,
    tensors,
)

PAPER = Paper(
    durations={"quick": "a minute", "paper": "ten minutes", "beyond": "hours"},
    name="razin_cohen_2020",
    title="Implicit regularization in deep learning may not be explainable by norms",
    abstract=(
        "A matrix completion problem on which training drives every norm and quasi-norm of the "
        "product to infinity, while its effective rank falls to its infimum. All entries but one "
        "are observed; from a start whose determinant has the sign that no solution has, the loss "
        "can only vanish at infinity."
    ),
    citation="""@inproceedings{razin2020implicit,
    author = {Razin, Noam and Cohen, Nadav},
    title = {Implicit Regularization in Deep Learning May Not Be Explainable by Norms},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2020},
}""",
    figures=(
        deep_matrix_factorization.FIGURE,
        norms.FIGURE,
        slow_manifold.FIGURE,
        escape_horizon.FIGURE,
        step_size.FIGURE,
        negative_determinant.FIGURE,
        perturbed.FIGURE,
        dimension.FIGURE,
        *tensors.FIGURES,
    ),
    notes=(
        "The published curves were computed in single precision. Their code ignores the requested "
        "sign of the determinant for balanced starts and does not read the sweep's seed. Plot "
        "readings, drawn as hollow diamonds, carry about 5%.",
        "At depth 2 neither descent nor any flow that follows the factors stays on the gradient "
        "flow of balanced factors: rounding or the step size lets the determinant change sign (at "
        "a loss of 3e-3 in double precision, near 1e-2 in descent), and from there the entry stops "
        "growing. Such stretches are drawn grey and dashed. The theorem is about gradient flow, "
        "whose entry passes 70 at a loss of 1e-4: it is followed here in coordinates in which the "
        "determinant cannot change sign.",
        "Unbalanced starts obey the theorem only until their imbalance lets the determinant cross "
        "zero; how soon depends on the draw.",
    ),
)
