"""Razin, Maman & Cohen (ICML 2021): descent over CP factorizations learns tensor rank by steps."""

from factorflow.papers.base import Paper
from factorflow.papers.razin_maman_cohen_2021 import component_norms, error_staircase

PAPER = Paper(
    durations={"quick": "20 seconds", "paper": "a minute", "beyond": "half an hour"},
    name="razin_maman_cohen_2021",
    title="Implicit regularization in tensor factorization",
    abstract=(
        "Completion of a tensor of order 4 and CP rank 5 by descent over a CP factorization with "
        "1000 components. Nothing bounds the rank, yet from small initializations components rise "
        "one at a time until there are five: tensor rank is learned incrementally, for squared, "
        "absolute and Huber loss."
    ),
    citation="""@inproceedings{razin2021implicit,
    author = {Razin, Noam and Maman, Asaf and Cohen, Nadav},
    title = {Implicit Regularization in Tensor Factorization},
    booktitle = {International Conference on Machine Learning},
    year = {2021},
}""",
    figures=(component_norms.FIGURE, error_staircase.FIGURE),
    notes=(
        "Only the synthetic part of the paper is here, not the tensor rank of natural data. One "
        "draw of the data per loss; the published curves are another draw.",
        "Huber's function has its transition at 1, where a ground truth of Frobenius norm 1 has no "
        "residual: that would be the squared loss. For Huber the ground truth has entries of root "
        "mean square 1 instead, and initialization and learning rate are multiplied by the fourth "
        "root of its norm, which leaves everything else as it is. Figures and claims divide by the "
        "norm, and give initializations before the multiplication.",
        "Steps of descent have the length of the rate however small the gradient is: under the "
        "absolute loss, whose rate is ten times that of the others, the curves tremble, and runs "
        "end at a residual of 6% instead of 2%.",
    ),
)
