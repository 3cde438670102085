"""What `factorflow list` shows."""

from collections.abc import Callable
from typing import Any

from factorflow.papers.catalogue import PAPERS, load_paper

__all__ = ["catalogue"]


def catalogue(what: str) -> dict[str, dict[str, str]]:
    """Names with a line each, by section; only what is asked for is imported."""
    sections = {"papers": lambda: PAPERS, **_sections()}
    chosen = sections if what == "all" else {what: sections[what]}
    return {title: make() for title, make in chosen.items()}


def _sections() -> dict[str, Callable[[], dict[str, str]]]:
    def first_line(item: Any) -> str:
        return (item.__doc__ or "").strip().partition("\n")[0]

    def figures():
        return {
            f"{name} --figure {figure.name}": figure.title
            for name in PAPERS
            for figure in load_paper(name).figures
        }

    def problems():
        from factorflow import _problem
        from factorflow.experiments.task import TASKS

        names = ("Completion", "Sensing", "razin_cohen_problem", "random_low_rank_problem")
        lines = {name: first_line(getattr(_problem, name)) for name in names}
        return lines | {task.__name__: first_line(task) for task in TASKS}

    def measures():
        from factorflow._measure import MEASURES

        return {family.usage: family.summary for _, family in sorted(MEASURES.items())}

    def initializers():
        from factorflow import _initializer

        names = ("Balanced", "Gaussian", "Identity", "Imbalanced", "Orthogonal")
        return {name: first_line(getattr(_initializer, name)) for name in names}

    def optimizers():
        from factorflow._dynamics import OPTIMIZERS

        return {name: first_line(make) for name, make in sorted(OPTIMIZERS.items())}

    return {
        "figures": figures,
        "problems": problems,
        "measures": measures,
        "initializers": initializers,
        "optimizers": optimizers,
    }
