"""Papers: experiments, figures and claims, one module or package per paper.

What they are made of is loaded on first use, so that naming the papers imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from factorflow.papers.catalogue import PAPERS as PAPERS
from factorflow.papers.catalogue import load_paper as load_paper

if TYPE_CHECKING:
    from factorflow.papers.base import Claim as Claim
    from factorflow.papers.base import Figure as Figure
    from factorflow.papers.base import Paper as Paper
    from factorflow.papers.base import Verdict as Verdict

_PARTS = ("Claim", "Figure", "Paper", "Verdict")
__all__ = ["PAPERS", "load_paper", *_PARTS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return getattr(importlib.import_module("factorflow.papers.base"), name)
    raise AttributeError(f"module 'factorflow.papers' has no attribute {name!r}")
