"""Bai, Zhao & Zhang (NeurIPS 2024): connected observations decide between rank and norm."""

from factorflow.papers.bai_2024 import nuclear_norm, singular_values
from factorflow.papers.base import Paper

PAPER = Paper(
    durations={"quick": "25 seconds", "paper": "a minute", "beyond": "five minutes"},
    name="bai_2024",
    title="Connectivity and implicit regularization in matrix completion",
    abstract=(
        "Matrix completion by gradient flow over two factors from a vanishing start: which "
        "entries are observed decides what is minimized. Where the graph of observations falls "
        "apart into fully observed blocks, it is the nuclear norm; where it is connected, the "
        "rank."
    ),
    citation="""@inproceedings{bai2024connectivity,
    author = {Bai, Zhiwei and Zhao, Jiajie and Zhang, Yaoyu},
    title = {Connectivity Shapes Implicit Regularization in Matrix Factorization Models for Matrix
             Completion},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2024},
}""",
    figures=(nuclear_norm.FIGURE, singular_values.FIGURE),
    notes=(
        "Shapes are not square. A balanced flow keeps the sign of a square product's determinant, "
        "and where the solutions of lowest rank need the other sign they cannot be reached.",
        "Starts are random balanced factors, not independent entries: balanced ones stay exact "
        "under flow, and every certificate can check that they do.",
        "Connected observations forget their start slowly: the rank is reached at "
        "initializations that descent in single precision does not resolve.",
    ),
)
