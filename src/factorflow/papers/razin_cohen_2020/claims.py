"""Claims that several figures share."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim
from factorflow.papers.razin_cohen_2020.settings import NORMS, SOURCE
from factorflow.papers.selection import reached, select, slope
from factorflow.reference import bounds_for

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["bounds_claim", "certified_claim", "growth_claim"]


def bounds_claim(figure: str) -> Claim:
    """Every bound of the theorem, at every recorded point whose determinant is on its side."""
    return Claim(
        id=f"{figure}.bounds",
        statement=(
            "Wherever the determinant is zero or has the sign of z z', every bound of the theorem "
            "holds: on the unobserved entry, on every norm, on the distance to lower rank and on "
            "the effective rank."
        ),
        source=f"{SOURCE}, theorems 1 to 3, with sharper constants",
        expected="0 violations",
        tolerance="8 units in the last place: exact values rounded to a dtype miss a bound by 1",
        check=_check_bounds,
    )


def _check_bounds(dataset: "xr.Dataset") -> tuple[str, bool]:
    axes = ("task.dim", "task.z", "task.z_prime", "task.eps", "dtype")
    problems = sorted(set(zip(*(dataset[axis].values.tolist() for axis in axes), strict=True)))
    checks = violations = points = 0
    worst = ""
    for dim, z, z_prime, eps, dtype in problems:
        runs = select(dataset, **dict(zip(axes, (dim, z, z_prime, eps, dtype), strict=True)))
        side = np.asarray(runs["determinant_sign"]) * np.sign(z * z_prime) >= 0
        side &= np.asarray(runs["reached"])
        # A run in float32 rounds its rows to float32 before they are checked.
        loss = np.asarray(runs["loss"])[side].astype(dtype)
        if not loss.size:
            continue
        points += loss.size
        for bound in bounds_for(int(dim), z, z_prime, eps, loose=True):
            name = _STORED.get(bound.quantity, bound.quantity)
            values = np.asarray(runs[name])[side].astype(dtype)
            holds = np.asarray(bound.holds(_padded(loss), _padded(values)))[: loss.size]
            checks += holds.size
            violations += int((~holds).sum())
            if not holds.all() and not worst:
                worst = f"; first: {bound.name} at loss {loss[~holds][0]:.3g}"
    measured = f"{violations} violations in {checks} checks at {points} points{worst}"
    return measured, violations == 0 and checks > 0


def _padded(values: np.ndarray) -> np.ndarray:
    # One length for all problems: JAX compiles every operation anew for a new length.
    return np.pad(values, (0, -values.size % 8192), mode="edge")


def certified_claim(figure: str, who: str, **axes) -> Claim:
    """Every row of these flows is confirmed by its certificate."""
    return Claim(
        id=f"{figure}.certified",
        statement=f"{who}: every row is certified as gradient flow.",
        source="certificates: sign of the determinant, static bound, second discretization, energy",
        expected="flow_faithful",
        tolerance="1e-6 between two discretizations, 1e-9 in the energy identity",
        check=lambda dataset: _check_certified(select(dataset, **axes)),
    )


def _check_certified(dataset: "xr.Dataset") -> tuple[str, bool]:
    faithful = np.asarray(dataset["verdict"]) == "flow_faithful"
    rows = np.asarray(dataset["reached"])
    trusted = np.asarray(dataset["trusted"])[rows]
    # A run that ended before its last row has not shown what it was asked for.
    faithful &= np.asarray(dataset["result"]) == "loss_reached"
    runs, sure = int(faithful.sum()), int(trusted.sum())
    measured = f"{runs} of {faithful.size} runs, {sure} of {trusted.size} rows"
    return measured, bool(faithful.size and faithful.all() and trusted.size and trusted.all())


# Some norms are stored under their own name only.
_STORED = {"schatten_norm[1]": "nuclear_norm", "schatten_norm[2]": "frobenius_norm"}


def growth_claim(
    figure: str,
    who: str,
    *,
    name: str = "norms_diverge",
    slopes: tuple[str, ...] = NORMS,
    **axes,
) -> Claim:
    """Every norm grows without bound; those in `slopes` at the rate of one over the residual."""
    which = "with" if slopes == NORMS else f"{', '.join(slopes)} with"
    return Claim(
        id=f"{figure}.{name}",
        statement=(
            f"{who}: every norm increases strictly over the last two decades of loss, {which} "
            "log-log slope -1/2 over the last one."
        ),
        source=f"{SOURCE}, theorem 1 and figure 1",
        expected="slope -0.5",
        tolerance="0.02: the law 1/r - r bends by r^2, 0.002 at the upper end of the decade",
        check=lambda dataset: _check_growth(select(dataset, **axes), slopes),
    )


def _check_growth(dataset: "xr.Dataset", measures: tuple[str, ...]) -> tuple[str, bool]:
    slopes, growing = [], True
    for index in range(dataset.sizes["run"]):
        run = dataset.isel(run=index)
        last = float(run["stop.loss"])
        rows = reached(run)
        tail = np.asarray(rows["level"]) <= 100 * last * (1 + 1e-9)
        for norm in NORMS:
            growing &= bool(np.all(np.diff(np.asarray(rows[norm])[tail]) > 0))
        slopes += [slope(run, measure, 10 * last, last) for measure in measures]
    if not slopes:
        return "no runs", False
    off = np.abs(np.asarray(slopes) + 0.5)
    words = "increasing" if growing else "NOT increasing"
    runs = dataset.sizes["run"]
    measured = f"{words}; slopes {min(slopes):.4f} to {max(slopes):.4f} over {runs} runs"
    return measured, growing and bool(np.all(off <= 0.02))
