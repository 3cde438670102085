"""Which papers there are. This module imports none of them, so that listing them is quick."""

import importlib
from typing import TYPE_CHECKING

from factorflow._names import named

if TYPE_CHECKING:
    from factorflow.papers.base import Paper

__all__ = ["PAPERS", "SCALES", "load_paper", "named_paper"]

PAPERS = {
    "gunasekar_2017": "Implicit regularization in matrix factorization (NeurIPS 2017)",
    "arora_cohen_hu_luo_2019": (
        "Implicit regularization in deep matrix factorization (NeurIPS 2019)"
    ),
    "razin_cohen_2020": (
        "Implicit regularization in deep learning may not be explainable by norms (NeurIPS 2020)"
    ),
    "razin_maman_cohen_2021": "Implicit regularization in tensor factorization (ICML 2021)",
    "li_luo_lyu_2021": "Greedy low-rank learning: what matrix factorization does (ICLR 2021)",
    "bai_2024": (
        "Connectivity shapes implicit regularization in matrix factorization (NeurIPS 2024)"
    ),
}

SCALES = ("quick", "paper", "beyond")


def named_paper(name: str) -> str:
    """The name, or a `ValueError` that suggests the nearest."""
    return named("paper", name, PAPERS)


def load_paper(name: str) -> "Paper":
    """The paper's experiments, figures and claims."""
    return importlib.import_module(f"factorflow.papers.{named_paper(name)}").PAPER
