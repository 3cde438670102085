"""The verdict on what is minimized, and the sentences that explain it."""

from collections.abc import Sequence

import numpy as np

from factorflow.analysis._quantities import Minima, Quantity
from factorflow.analysis._runs import Runs

__all__ = ["explain", "verdict_of"]

_OPEN = ("undecided", "at best known")


def verdict_of(quantities: Sequence[Quantity]) -> str:
    """Norm, rank, both, neither or undecided: from norms whose minimum is known, and the rank."""
    rank = next(quantity.status for quantity in quantities if quantity.name == "rank")
    norms = [q for q in quantities if q.decisive and q.name != "rank"]
    norms.sort(key=lambda q: q.name != "nuclear_norm")  # first among those that tie
    names = ", ".join(q.name for q in norms if q.status == "minimized")
    if rank in _OPEN:
        return "undecided"
    if names:
        return "both" if rank == "minimized" else f"norm: {names}"
    if not norms or any(q.status in _OPEN for q in norms):
        return "undecided"
    if rank == "minimized":
        return "rank"
    # A quasi-norm at the best value known might be what is minimized.
    guesses = [q for q in quantities if not q.decisive and q.name != "effective_rank"]
    return "undecided" if any(q.status in _OPEN for q in guesses) else "neither"


def explain(verdict: str, quantities: Sequence[Quantity], minima: Minima, runs: Runs) -> str:
    """Why, in a few sentences."""
    by_status: dict[str, list[str]] = {}
    for quantity in quantities:
        if quantity.name not in ("rank", "effective_rank"):
            by_status.setdefault(quantity.status, []).append(quantity.name)
    words = {
        "minimized": "tends to its minimum over the solutions",
        "above": "stays above its minimum",
        "diverges": "diverges as the loss vanishes",
        "at best known": "tends to the smallest value found, which is no proven minimum",
        "undecided": "is undecided",
    }
    sentences = [
        f"{', '.join(by_status[status])}: {text}."
        for status, text in words.items()
        if status in by_status
    ]
    rank = next(quantity for quantity in quantities if quantity.name == "rank")
    effective = next(quantity for quantity in quantities if quantity.name == "effective_rank")
    sentences += [_of_rank(rank, minima), _of_effective_rank(effective)]
    bad = runs.verdicts != "flow_faithful"
    if np.any(bad):
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        sentences.append(
            f"{int(np.sum(bad))} of {bad.size} flows are not certified as a whole; the first: "
            f"{runs.explanations[first]}"
        )
    if any("determinant" in text for text in runs.explanations[bad]):
        sentences.append(
            "`dynamics=GradientFlow()` follows square products up to 12x12 in coordinates that "
            "keep the sign of the determinant, at the price of minutes to compile."
        )
    if verdict == "undecided":
        sentences.append(
            "Smaller scales, a smaller loss_ratio or more seeds may decide what is undecided."
        )
    return " ".join(sentences)


def _of_rank(rank: Quantity, minima: Minima) -> str:
    lower, upper = int(rank.infimum_lower), int(rank.infimum_upper)
    known = f"{upper}" if lower == upper else f"between {lower} (proved) and {upper} (found)"
    infimum = f"the infimal rank of the solutions is {known}"
    if minima.ranks.attained is False:
        infimum += f", attained by no solution (minimal rank {minima.ranks.minimal_lower} or more)"
    if np.isinf(rank.limit_error):
        found = f"{rank.limit:g} or more"
    elif rank.limit_error > 0:  # seeds disagree
        low, high = rank.limit - rank.limit_error, rank.limit + rank.limit_error
        found = f"between {low:g} and {high:g}, by seed"
    else:
        found = f"{rank.limit:g}"
    return f"The limit has rank {found}; {infimum}."


def _of_effective_rank(effective: Quantity) -> str:
    return (
        f"Its effective rank tends to {effective.limit:.4g}, over an infimum of "
        f"{effective.infimum_upper:.4g}."
    )
