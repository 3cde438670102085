"""Li, Luo & Lyu (ICLR 2021): flow from vanishing initialization is greedy low-rank learning."""

from factorflow.papers.base import Paper
from factorflow.papers.li_luo_lyu_2021 import greedy_distance, greedy_phases, greedy_tie

PAPER = Paper(
    durations={"quick": "half a minute", "paper": "two minutes", "beyond": "five minutes"},
    name="li_luo_lyu_2021",
    title="Greedy low-rank learning",
    abstract=(
        "From vanishing initialization, gradient flow of a matrix factorization leaves zero along "
        "the leading singular vectors of the negative gradient, comes to rest at a critical point "
        "of rank 1, leaves that along the leading ones there, and so on: greedy low-rank learning. "
        "Here that curve is computed, and flows from smaller and smaller initializations are "
        "compared with it."
    ),
    citation="""@inproceedings{li2021towards,
    author = {Li, Zhiyuan and Luo, Yuping and Lyu, Kaifeng},
    title = {Towards Resolving the Implicit Bias of Gradient Descent for Matrix Factorization:
             Greedy Low-Rank Learning},
    booktitle = {International Conference on Learning Representations},
    year = {2021},
}""",
    figures=(greedy_distance.FIGURE, greedy_phases.FIGURE, greedy_tie.FIGURE),
    notes=(
        "Flows are in factors of full width and start from balanced factors of a random product, "
        "asymmetric as the problems are; the paper's theorems are about symmetric products and its "
        "plots start from multiples of the identity.",
        "Depth shows in how small the singular values that wait stay, not in the distance: while a "
        "value of a random direction grows, it turns to the leading one, and the deeper the "
        "factors, the more it must grow for that. To first order the angle falls with the power "
        "(1 - gap) / depth of the initialization.",
        "At depth 3 and more any direction of descent can win if the initialization favors it. On "
        "the problems here the leading one does, unless the second is nearly as steep.",
        "Flows are not certified: none of their companion runs is made. With a hundredth of the "
        "tolerance distances change by less than 2%.",
    ),
)
