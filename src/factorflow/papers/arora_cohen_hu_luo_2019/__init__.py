"""Arora, Cohen, Hu & Luo (NeurIPS 2019): what deep matrix factorization is biased towards."""

from factorflow.papers.arora_cohen_hu_luo_2019 import (
    alignment,
    completion_error,
    nuclear_norm,
    sensing,
    singular_values,
)
from factorflow.papers.base import Paper

PAPER = Paper(
    durations={"quick": "half a minute", "paper": "three minutes", "beyond": "half an hour"},
    name="arora_cohen_hu_luo_2019",
    title="Implicit regularization in deep matrix factorization",
    abstract=(
        "Gradient flow over a deep matrix factorization fits some entries of a low-rank matrix. "
        "Is what it ends at the matrix of least nuclear norm? From few entries it is not: it "
        "comes nearer to the ground truth, at a larger nuclear norm and a lower rank, and the more "
        "so the deeper it is. Depth lets large singular values grow and holds small ones back: "
        "they rise one after another, along singular vectors of the gradient."
    ),
    citation="""@inproceedings{arora2019implicit,
    author = {Arora, Sanjeev and Cohen, Nadav and Hu, Wei and Luo, Yuping},
    title = {Implicit Regularization in Deep Matrix Factorization},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2019},
}""",
    figures=(
        completion_error.FIGURE,
        nuclear_norm.FIGURE,
        singular_values.FIGURE,
        alignment.FIGURE,
        sensing.FIGURE,
    ),
    notes=(
        "The paper runs descent from factors that are Gaussian or nearly balanced. Here it is "
        "gradient flow, the subject of its theorems, from balanced factors.",
        "The flows that are watched on their way are certified, but for the quick ones. Of the "
        "others only the ends are drawn: they are followed with a tolerance of 1e-4 and without a "
        "companion. Where both are there, ends differ by less than 2e-4 of the ground truth's "
        "norm.",
        "The draws of matrices and entries are others than the paper's. Only its synthetic "
        "experiments are here.",
    ),
)
