"""The figure of a verdict: what it says, from answers that are made up."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from factorflow.analysis import Minimized
from factorflow.analysis._quantities import Minima, Quantity
from factorflow.analysis._runs import Runs
from factorflow.drawing import draw_minimized, save_figure
from factorflow.reference import EffectiveRankBounds, SolutionRanks

# NumPy and drawings are the same in any session: once is enough.
pytestmark = pytest.mark.x64

SCALES, SEEDS = (1e-2, 1e-3, 1e-4), (0, 1)
LOSSES = np.logspace(-1, -10, 37)
STATUSES = ("minimized", "above", "diverges", "at best known", "undecided")


def quantity(name, status, ratio, decisive=True):
    runs = np.inf if np.isinf(ratio) else ratio + np.array(SCALES)[:, None] * [1.0, 2.0]
    return Quantity(
        name=name,
        limit=2.0 * ratio,
        limit_error=1e-6,
        infimum_lower=2.0,
        infimum_upper=2.0,
        attained=True,
        ratio=ratio,
        status=status,
        loss_slope=-0.5,
        trend=1.0,
        ratios=np.broadcast_to(runs, (3, 2)).astype(float),
        decisive=decisive,
    )


def answer(quantities, verdict, certified=3):
    """Runs whose singular values are loss^(-1/2) and its inverse; the last scales may be bad."""
    logs = -0.5 * np.log(LOSSES)
    shape = (3, 2)
    values = np.broadcast_to(np.stack([logs, -logs], axis=-1), (*shape, 37, 2))
    usable = np.broadcast_to(np.arange(3)[:, None, None] < certified, (*shape, 37))
    words = np.full(shape, "flow_faithful")
    runs = Runs(LOSSES, values, usable, usable, np.ones((*shape, 2, 2)), words, words, words, words)
    eye = np.eye(2)
    ranks = SolutionRanks(2, 2, 1, 1, eye, eye, 1e-8, ())
    minima = Minima({}, ranks, EffectiveRankBounds(1.0, 1.0, False, eye, True), 1, 1.0)
    return Minimized(verdict, "why", quantities, minima, runs, SCALES, SEEDS, "Balanced")


def finite():
    return answer(
        (
            quantity("nuclear_norm", "minimized", 1.0),
            quantity("schatten_norm[0.5]", "at best known", 1.0004, decisive=False),
            quantity("frobenius_norm", "above", 1.25),
            quantity("rank", "above", 2.0),
            quantity("effective_rank", "undecided", 1.5, decisive=False),
        ),
        "norm: nuclear_norm",
    )


def diverging(**options):
    return answer(
        (
            quantity("nuclear_norm", "diverges", np.inf),
            quantity("spectral_norm", "diverges", np.inf),
            quantity("rank", "minimized", 1.0),
            quantity("effective_rank", "undecided", np.nan, decisive=False),
        ),
        "rank",
        **options,
    )


@pytest.fixture(scope="module", params=[finite, diverging])
def drawn(request, tmp_path_factory):
    """The answer and its figure, written once: what is laid out badly warns then."""
    given = request.param()
    figure = draw_minimized(given)
    save_figure(figure, tmp_path_factory.mktemp("figures"), "verdict")
    return given, figure


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_the_verdict_is_the_title(drawn):
    given, figure = drawn
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == f"{given.verdict}   (Balanced)"


def test_every_quantity_has_its_row_and_status(drawn):
    given, figure = drawn
    left = figure.axes[0]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert len(labels) == len(given.quantities)
    assert labels[0] == "nuclear norm"
    assert "effective rank" in labels
    rows = texts(left)
    assert len(rows) == len(given.quantities)
    for row, q in zip(rows, given.quantities, strict=True):
        assert row.startswith(q.status)
        assert (f"{q.ratio:.4g}" in row) == bool(np.isfinite(q.ratio))


def test_quasi_norms_are_called_by_their_exponent():
    labels = [label.get_text() for label in draw_minimized(finite()).axes[0].get_yticklabels()]
    assert "Schatten-0.5" in labels


def test_the_line_at_one_and_all_that_is_finite_are_in_sight(drawn):
    given, figure = drawn
    low, high = figure.axes[0].get_xlim()
    assert low < 1 < high
    for q in given.quantities:
        for ratio in (q.ratio, *q.ratios.ravel()):
            assert not np.isfinite(ratio) or low <= ratio <= high
    # The first row is on top.
    bottom, top = figure.axes[0].get_ylim()
    assert top < 0 < len(given.quantities) - 1 < bottom


def markers(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def test_limits_are_diamonds_and_runs_are_dots(drawn):
    given, figure = drawn
    left = figure.axes[0]
    limits = {q.ratio for q in given.quantities if np.isfinite(q.ratio)}
    assert {float(line.get_xdata()[0]) for line in markers(left, "D")} == limits
    dots = markers(left, "o")
    assert len(dots) == 3 * len(given.quantities)  # one set per scale
    # Smaller scales are darker.
    assert np.all(np.diff([line.get_alpha() for line in dots[:3]]) > 0)


def test_what_diverges_has_an_arrow_out_of_the_picture():
    for given, count in ((finite(), 0), (diverging(), 2)):
        left = draw_minimized(given).axes[0]
        arrows = [text for text in left.texts if getattr(text, "arrow_patch", None) is not None]
        assert len(arrows) == count
        for arrow in arrows:
            assert arrow.xy[0] == left.get_xlim()[1]


def test_the_norms_along_the_loss(drawn):
    given, figure = drawn
    right = figure.axes[1]
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    norms = [q for q in given.quantities if "rank" not in q.name]
    assert len(legend) == len(norms)
    assert legend[0] == "nuclear norm"
    curve = right.lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), LOSSES)
    # The singular values' sum over the infimum, which is two.
    np.testing.assert_allclose(curve.get_ydata(), (LOSSES**-0.5 + LOSSES**0.5) / 2)
    assert right.xaxis.get_inverted()
    assert right.get_xscale() == right.get_yscale() == "log"


@pytest.mark.parametrize(("certified", "scale"), [(3, "1e-04"), (2, "1e-03"), (0, "1e-02")])
def test_it_is_the_smallest_scale_that_is_certified(certified, scale):
    right = draw_minimized(diverging(certified=certified)).axes[1]
    assert right.get_title("left").endswith(f"initialization {scale}")


def test_every_status_has_a_colour_of_its_own():
    given = answer(
        (
            *(quantity(f"schatten_norm[0.{k}]", s, 1.5) for k, s in enumerate(STATUSES, 1)),
            quantity("rank", "above", 2.0),
            quantity("effective_rank", "above", 2.0),
        ),
        "undecided",
    )
    left = draw_minimized(given).axes[0]
    colors = {t.get_text().split("  ")[0]: t.get_color() for t in left.texts if t.get_text()}
    assert set(colors) == set(STATUSES)
    assert len(set(map(str, colors.values()))) == len(STATUSES)
