"""Singular vectors turn to those of the gradient, and singular values move as theory has it."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.arora_cohen_hu_luo_2019.paths import along
from factorflow.papers.arora_cohen_hu_luo_2019.settings import RANK, SOURCE, watched
from factorflow.papers.arora_cohen_hu_luo_2019.solutions import select
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.selection import believed, depths, reached, unfinished

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

# A singular value rises when it passes this share of its final one.
RISES = 0.1
# At the start vectors are random: of 100 x 100, an alignment of 0.3 would be far out.
ALIGNED, RANDOM = 0.7, 0.3
# Up to this relative change between rows, the trapezoidal rule does for the gradient.
CALM = 0.3


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One column per depth: alignments above, what is off the diagonal below."""
    from factorflow.drawing import draw_curve, panels, share_legend, style

    del overlays  # bounds of norms over the loss have no place here
    found = [depth for depth in depths(dataset) if depth > 1]
    titles = [f"Depth {depth}" for depth in found] + [""] * len(found)
    with style():
        figure, axes = panels(len(titles), titles, columns=len(found), size=(3.6, 2.6))
        for column, depth in enumerate(found):
            upper, lower = axes[column], axes[column + len(found)]
            run = reached(select(dataset, depth=depth).isel(run=0))
            share, trusted = np.asarray(run["share"]), believed(run, "product")
            for value in range(RANK):
                curve = np.asarray(run["alignment"])[:, value]
                label = f"singular value {value + 1}"
                draw_curve(upper, share, curve, trusted=trusted, color=f"C{value}", label=label)
                row = _rises(run, value)
                upper.plot(share[row], curve[row], "o", color=f"C{value}", markeredgecolor="white")
            draw_curve(
                lower, share, np.asarray(run["off_diagonal"]), trusted=trusted, color="black"
            )
            for ax in (upper, lower):
                ax.set_xlim(1.03, -0.02)
            lower.set_xlabel("loss / loss at the start (falls to the right →)")
        axes[0].set_ylabel("alignment with the gradient")
        axes[len(found)].set_ylabel("off the diagonal, share")
        axes[0].plot([], [], "o", color="0.4", label=f"passes {RISES:.0%} of its final value")
        share_legend(figure, axes)
        return figure


def _rises(run: "xr.Dataset", value: int) -> int:
    """Of the two rows between which a value passes that share of its final one, the more aligned.

    Rows lie some percent of the loss apart: in the first the pair may have to turn still, in the
    second the value may have taken its toll of the gradient.
    """
    values = np.asarray(run["singular_values"])[:, value]
    passed = int(np.argmax(values >= RISES * values[-1]))
    alignment = np.asarray(run["alignment"])[:, value]
    # The start counts as random, however soon the value passes.
    return max({max(passed - 1, 1), passed}, key=lambda row: alignment[row])


def _check_rises(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = [depth for depth in depths(dataset) if depth > 1]
    words, holds = [], {2, 3} <= set(found)
    for depth in found:
        run = reached(select(dataset, depth=depth).isel(run=0))
        alignment = np.asarray(run["alignment"])[:, :RANK]
        start = float(np.max(np.abs(alignment[0])))
        rising = [float(alignment[_rises(run, value), value]) for value in range(RANK)]
        holds &= start < RANDOM and bool(np.min(rising) > ALIGNED)
        found_words = ", ".join(f"{number:.2f}" for number in rising)
        words.append(f"depth {depth}: {found_words} (at the start {start:.2f} at most)")
    return f"{'; '.join(words) or 'no runs'}; {unfinished(dataset)}", holds


def _check_law(dataset: "xr.Dataset") -> tuple[str, bool]:
    found = [depth for depth in depths(dataset) if depth > 1]
    words, holds = [], {2, 3} <= set(found)
    for depth in found:
        off = _deviations(reached(select(dataset, depth=depth).isel(run=0)), depth)
        middle = float(np.median(off)) if off.size else np.nan
        holds &= off.size >= RANK and middle < 0.01
        words.append(f"depth {depth}: {middle:.2%} in the median of {off.size} intervals")
    return f"{'; '.join(words) or 'no runs'}; {unfinished(dataset)}", holds


def _deviations(run: "xr.Dataset", depth: int) -> np.ndarray:
    r"""How far rising singular values are from $\dot\sigma = -L \sigma^{2-2/L} u^\top G v$.

    Between neighbouring rows: $\sigma^{2/L - 1}$, or $\ln\sigma$ at depth 2, moves by the integral
    of $u^\top G v$ times a constant, here by the trapezoidal rule. Only where that changes little,
    and the value is between 1% and half of its final one.
    """
    time = np.asarray(run["time"])
    values = np.asarray(run["singular_values"])[:, :RANK]
    inner = np.asarray(run["along_gradient"])[:, :RANK]
    power = 2 / depth - 1
    moved = np.diff(np.log(values) if depth == 2 else values**power / power, axis=0)
    mean = (inner[:-1] + inner[1:]) / 2
    expected = -depth * mean * np.diff(time)[:, None]
    shares = values / values[-1]
    calm = np.abs(np.diff(inner, axis=0)) < CALM * np.abs(mean)
    rising = (shares[:-1] > 0.01) & (shares[1:] < 0.5) & (moved > 0)
    counted = calm & rising
    return np.abs(moved[counted] / expected[counted] - 1)


FIGURE = Figure(
    name="alignment",
    title="Singular vectors align with the gradient before their values rise",
    caption=(
        "The same flows, against the loss. Above: alignment of a singular pair with the negative "
        "gradient of the loss, -u'Gv over the spectral norm of G; at 1 the pair is the leading "
        "one of the negative gradient. Circles: the singular value passes a tenth of its final "
        "one (of the rows on either side, the more aligned). Below: the five leading pairs' matrix "
        "u'Gv off its diagonal, as a share of all of it (Frobenius norms); where it is zero, "
        "singular vectors are at rest."
        "\n\n"
        "From random vectors at the start every pair turns to a leading pair of the gradient while "
        "its value is small, then its value rises, and the gradient along it vanishes. In the end "
        "all of the gradient along the leading pairs is small, on and off the diagonal."
    ),
    experiments=watched,
    draw=draw,
    derive=along,
    claims=(
        Claim(
            id="alignment.rises",
            statement=(
                "Singular vectors are aligned with the gradient when their values rise, and were "
                "not at the start."
            ),
            source=f"{SOURCE}, theorem on the dynamics of singular vectors",
            expected=(
                f"when a value passes {RISES:.0%} of its final one an alignment above {ALIGNED:g}, "
                f"for all five; at the start below {RANDOM:g}"
            ),
            tolerance="where two values rise together neither is alone with the gradient",
            check=_check_rises,
        ),
        Claim(
            id="alignment.law",
            statement=(
                "Singular values rise at the rate of theory, L times the power 2 - 2/L of the "
                "value times the negative gradient along its pair of vectors."
            ),
            source=f"{SOURCE}, theorem on the dynamics of singular values",
            expected="a deviation of 0",
            tolerance=(
                "1% in the median: intervals between rows are of the trapezoidal rule; counted are "
                f"those in which the gradient along the pair changes by less than {CALM:.0%}"
            ),
            check=_check_law,
        ),
    ),
)
