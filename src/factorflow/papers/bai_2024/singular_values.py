"""Connected observations: singular values beyond the infimal rank vanish with the start."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.bai_2024.results import LEAST, curves, derive, kinds
from factorflow.papers.bai_2024.settings import LOSS, SOURCE, experiments
from factorflow.papers.base import Claim, Figure, Overlays

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

LOWEST = 1e-8


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """A panel per kind of problem: singular values of the limits over the initialization."""
    from factorflow.drawing import draw_curve, log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    found = curves(dataset)
    names = kinds(found)
    with style():
        figure, axes = panels(
            len(names),
            [name.capitalize() for name in names],
            columns=2,
            y_label="singular value over\nthe largest",
            y_log=True,
            size=(4.2, 2.8),
        )
        for index, (ax, name) in enumerate(zip(axes, names, strict=True)):
            log_axis(ax, "x")
            ax.xaxis.set_inverted(True)
            if index + 2 >= len(names):
                ax.set_xlabel("initialization (falls to the right →)")
            for curve in found:
                if curve.kind != name:
                    continue
                for number in range(1, min(curve.infimal + 3, curve.shares.shape[1])):
                    within = number < curve.infimal
                    color = "0.55" if within else f"C{number - max(curve.infimal, 1)}"
                    label = (
                        "within the infimal rank"
                        if within
                        else f"{_ordinal(number - curve.infimal + 1)} beyond the infimal rank"
                    )
                    values = np.maximum(curve.shares[:, number], LOWEST / 10)
                    line = draw_curve(
                        ax, curve.scales, values, trusted=curve.trusted, label=label, color=color
                    )
                    line.set_linewidth(1.1)
            ax.axhline(LEAST, color="black", linestyle=":", linewidth=1, label="counts as zero")
            ax.set_ylim(LOWEST, 1.5)
        share_legend(figure, axes)
        return figure


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _check_rank(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = curves(dataset, connected=True)
    words, hits = [], []
    for name in kinds(found):
        part = [curve for curve in found if curve.kind == name]
        known = [bool(curve.infimal) and curve.rank == curve.infimal for curve in part]
        rest = [
            f"instance {curve.seed} has {curve.next[curve.last]:.0e} left at "
            f"{curve.scales[curve.last]:g}"
            for curve, hit in zip(part, known, strict=True)
            if not hit
        ]
        hits += known
        words.append(f"{name}: {sum(known)} of {len(part)}" + "".join(f", {one}" for one in rest))
    flags = np.concatenate([curve.trusted for curve in found])
    certified = f"{np.sum(flags)} of {flags.size} flows certified"
    share = float(np.mean(hits))
    return f"{share:.0%} ({'; '.join(words)}); {certified}", share >= 0.75


def _check_vanishing(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = curves(dataset, connected=True)
    falls = []
    for curve in found:
        beyond = curve.next[curve.trusted]
        if not np.all(np.isfinite(beyond)):
            return f"{curve.kind}, instance {curve.seed}: values are missing", False
        falls.append(len(beyond) > 1 and beyond[-1] < beyond[0] / 2)
    return f"{sum(falls)} of {len(found)} instances", all(falls)


def _check_staying(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = curves(dataset, complete=True)
    stays = []
    for curve in found:
        beyond = curve.next[curve.trusted]
        stays.append(len(beyond) > 1 and bool(abs(np.log10(beyond[-1] / beyond[-2])) < 0.05))
    least = min(float(curve.next[curve.last]) for curve in found)
    measured = f"{sum(stays)} of {len(found)} instances; at least {least:.1e} of the largest"
    return measured, all(stays) and bool(least > LEAST)


FIGURE = Figure(
    name="singular_values",
    title="Connected observations: the infimal rank",
    caption=(
        "The same runs: singular values of the product once the loss has fallen to "
        f"{LOSS:g}, over the largest one, against the standard deviation of the entries of the "
        "product at the start. The infimal rank is the smallest one whose matrices come "
        "as near to the solutions as one likes; here lower and upper bound agree on it. Grey: "
        "second singular value where it is 2. Colors: the first singular values beyond the "
        f"infimal rank, for every instance. Dotted: {LEAST:g}, below which one counts as zero. "
        "Pale and dashed: flows without a certificate."
        "\n\n"
        "Connected, those beyond the infimal rank vanish with the start, some of them late. "
        "Disconnected, as many stay as both blocks have together: hidden entries are set by "
        "the angles between the blocks' factors at the start, which all scales share."
    ),
    experiments=experiments,
    draw=draw,
    derive=derive,
    claims=(
        Claim(
            id="singular_values.connected",
            statement=(
                "Where observations are connected, flow of depth 2 from a small start ends at the "
                "infimal rank of the solutions."
            ),
            source=f"{SOURCE}, theorem and experiments on connected observations",
            expected="at least 75% of the instances; the others are listed",
            tolerance=(
                "a singular value counts from 1e-3 of the largest on, at the smallest certified "
                "initialization; the others are still falling there"
            ),
            check=_check_rank,
        ),
        Claim(
            id="singular_values.vanish",
            statement=(
                "Where observations are connected, the first singular value beyond the infimal "
                "rank falls as the initialization does, on every instance."
            ),
            source=f"{SOURCE}, limit of vanishing initialization",
            expected="at least by half, from the largest to the smallest certified initialization",
            tolerance="none; on the way it may rise, where another direction takes over",
            check=_check_vanishing,
        ),
        Claim(
            id="singular_values.disconnected",
            statement=(
                "Where observations are disconnected and each component is fully observed, the "
                "first singular value beyond the infimal rank does not vanish."
            ),
            source=f"{SOURCE}, theorem on disconnected observations",
            expected="settled over the last two certified initializations, on every instance",
            tolerance="settled: within a twentieth of a decade; vanished: below 1e-3",
            check=_check_staying,
        ),
    ),
)
