"""What is claimed of both kinds of measurements."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim
from factorflow.papers.gunasekar_2017.results import Curve, curves, hidden
from factorflow.papers.gunasekar_2017.settings import DEPTHS, SOURCE

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["excess_claim", "falls_claim", "nears_claim", "semidefinite_claim"]

# Rounding makes factors of depth 3 differ in the last digit, and leaving plateaus magnifies that.
ROUNDING = 1e-9


def excess_claim(
    figure: str, limits: Mapping[int, float], *, statement: str, source: str, reason: str
) -> Claim:
    """The excess at the smallest certified initialization, by depth."""
    words = ", ".join(f"{limit:g} at depth {depth}" for depth, limit in limits.items())
    return Claim(
        id=f"{figure}.nuclear_norm",
        statement=statement,
        source=source,
        expected=f"ratio to the minimum within {words} of 1, every instance",
        tolerance=reason,
        check=lambda dataset: _check_excess(dataset, limits),
    )


def _check_excess(dataset: "xr.Dataset", limits: Mapping[int, float]) -> tuple[str, bool]:
    words, holds = [], True
    for depth, limit in limits.items():
        found = curves(dataset, depth)
        worst = np.max([abs(curve.excess[curve.last]) for curve in found])
        largest = max(curve.scales[curve.last] for curve in found)
        holds &= bool(worst <= limit)
        words.append(
            f"depth {depth}: at most {worst:.1e} over {len(found)} instances, from initialization "
            f"{largest:g} or less"
        )
    return f"{'; '.join(words)}; {_certified(curves(dataset))}", holds


def falls_claim(figure: str) -> Claim:
    """The excess falls with the initialization until the residual hides it."""
    return Claim(
        id=f"{figure}.falls",
        statement=(
            "For every instance and depth the excess of the nuclear norm over its minimum is "
            "smaller the smaller the initialization, certified flows compared."
        ),
        source=f"{SOURCE}, limit of vanishing initialization",
        expected="falling from each initialization to the next",
        tolerance="none above what the residual at the end hides, five times its norm",
        check=_check_falls,
    )


def _check_falls(dataset: "xr.Dataset") -> tuple[str, bool]:
    floor, falling, steps = hidden(dataset), 0, 0
    for curve in curves(dataset):
        excess = curve.excess[curve.trusted]
        if not np.all(np.isfinite(excess)):
            return "a minimum or a norm is missing", False
        # From the first value below the floor on there is nothing left to see.
        seen = np.concatenate([[True], np.cumprod(excess[:-1] > floor).astype(bool)])
        steps += int(np.sum(seen[1:]))
        falling += int(np.sum((excess[1:] < excess[:-1]) & seen[1:]))
    return f"{falling} of {steps} steps fall", steps > 0 and falling == steps


def nears_claim(figure: str) -> Claim:
    """The excess at the end is a small part of that at the beginning."""
    return Claim(
        id=f"{figure}.nears",
        statement=(
            "For every instance and depth, at most a tenth of the excess at the largest "
            "initialization is left at the smallest certified one."
        ),
        source=f"{SOURCE}, experiments",
        expected="a tenth or less",
        tolerance="none; whether it vanishes in the limit is not claimed",
        check=_check_nears,
    )


def _check_nears(dataset: "xr.Dataset") -> tuple[str, bool]:
    shares = [abs(curve.excess[curve.last]) / curve.excess[0] for curve in curves(dataset)]
    return f"at most {np.max(shares):.1%}", bool(np.all(np.array(shares) <= 0.1))


def semidefinite_claim(figure: str) -> Claim:
    """Products stay symmetric and positive semidefinite."""
    return Claim(
        id=f"{figure}.semidefinite",
        statement="Products stay symmetric and positive semidefinite.",
        source=f"{SOURCE}, symmetric factorization; here factors are free and start symmetric",
        expected="no eigenvalue below zero, no asymmetry, in certified flows",
        tolerance=f"{ROUNDING:g}, rounding that plateaus have magnified; entries are of order 1",
        check=_check_semidefinite,
    )


def _check_semidefinite(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = curves(dataset)
    lowest = np.min(np.concatenate([curve.smallest_eigenvalue[curve.trusted] for curve in found]))
    skew = np.max(np.concatenate([curve.asymmetry[curve.trusted] for curve in found]))
    measured = f"smallest eigenvalue {lowest:.1e}, largest asymmetry {skew:.1e}"
    return measured, bool(lowest >= -ROUNDING and skew <= ROUNDING)


def _certified(found: list[Curve]) -> str:
    flags = np.concatenate([curve.trusted for curve in found])
    missing = set(DEPTHS) - {curve.depth for curve in found}
    words = f"{np.sum(flags)} of {flags.size} flows certified"
    return words if not missing else f"{words}; no runs at depth {sorted(missing)}"
