"""Limits of sequences whose limits are known: the error has to cover what is missed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factorflow.analysis._limits import (
    DIVERGENCE,
    Limit,
    limit_in_loss,
    limit_in_scale,
    vanishing_in_scale,
)

# NumPy and drawings are the same in any session: once is enough.
pytestmark = pytest.mark.x64

# As the runs have them: four rows per decade of loss, down to 1e-10.
LOSSES = np.logspace(-1, -10, 37)
ALL = np.ones(LOSSES.shape, bool)
SCALES = 10.0 ** -np.arange(2, 9)
# Sums of a few numbers of order one.
ROUNDING = 1e-14

limits = st.floats(0.1, 100.0)
# Of a leading term next to the limit: of either sign, and not so small that nothing is seen of it.
shares = st.floats(0.05, 0.5).flatmap(lambda size: st.sampled_from([size, -size]))


def in_loss(values, usable=ALL, losses=LOSSES):
    return limit_in_loss(losses, np.asarray(values), usable)


def settled(values, error=0.0):
    return [Limit("converges", float(value), error, 0.0, 2.0) for value in values]


def assert_covers(found, truth):
    assert found.kind == "converges"
    assert abs(found.value - truth) <= found.error + ROUNDING * abs(truth)


# --- As the loss vanishes


@given(limits, shares, st.floats(0.3, 2.0))
def test_a_power_law_approach_is_extrapolated(truth, share, power):
    values = truth * (1 + share * LOSSES**power)
    found = in_loss(values)
    assert_covers(found, truth)
    # The last row itself is off by its distance from the limit; what is claimed is no worse.
    assert found.error <= 2 * abs(values[-1] - truth) + 1e-6 * truth


@pytest.mark.parametrize("power", [0.25, 0.5])
def test_extrapolation_beats_the_last_row(power):
    values = 3.0 + 0.5 * LOSSES**power
    found = in_loss(values[:29], ALL[:29], LOSSES[:29])
    assert_covers(found, 3.0)
    # An exact power law leaves rounding only; the last row is off by 5e-5 or more.
    assert abs(found.value - 3) < 1e-6 * (values[28] - 3)
    assert 0 < found.error < values[28] - 3


@given(limits, st.floats(0.05, 0.3), st.floats(0.3, 1.0))
def test_two_terms_of_an_approach_are_covered(truth, share, power):
    found = in_loss(truth * (1 + share * LOSSES**power - share * LOSSES ** (2 * power)))
    assert_covers(found, truth)


@given(limits, st.floats(-1.0, DIVERGENCE - 0.02))
def test_divergence_has_the_slope_of_the_power(size, slope):
    found = in_loss(size * LOSSES**slope)
    assert found.kind == "diverges"
    assert found.value == found.error == np.inf
    np.testing.assert_allclose(found.slope, slope, rtol=1e-10)  # a line fitted to nine points
    np.testing.assert_allclose(found.decades, 2.0, rtol=1e-12)


def test_divergence_on_top_of_a_constant():
    assert in_loss(5.0 + LOSSES**-0.5).kind == "diverges"


@pytest.mark.parametrize("slope", [-0.39, -0.3, -0.1, -0.01, 0.01, 0.3])
def test_slower_growth_and_decay_are_neither(slope):
    found = in_loss(LOSSES**slope)
    assert found.kind == "unsettled"
    assert found.error == np.inf
    assert found.value == LOSSES[-1] ** slope
    np.testing.assert_allclose(found.slope, slope, rtol=1e-10)


@given(st.floats(0.046, 0.3), shares)
def test_a_slow_approach_is_unsettled_or_covered(power, share):
    """Down to a change that shrinks to 0.9 from decade to decade, much slower than flows are."""
    found = in_loss(1 + share * LOSSES**power)
    assert found.kind == "unsettled" or abs(found.value - 1) <= found.error


@pytest.mark.parametrize("sign", [1, -1])
def test_a_change_that_has_just_begun_is_covered(sign):
    """A slow direction sets in where the others have settled: the last decade says little."""
    late = 1e-3 * np.exp(-0.5 * LOSSES / LOSSES[-1])
    values = 2 + LOSSES + sign * late
    assert abs(values[-1] - values[-5]) > abs(values[-5] - values[-9])
    found = in_loss(values)
    assert_covers(found, 2 + sign * 1e-3)
    assert found.error > abs(values[-1] - values[-5])


@pytest.mark.parametrize("errors", [1e-5, 0.0])
def test_a_reversal_is_covered_by_more_than_its_change(errors):
    found = in_loss(np.interp(-np.log10(LOSSES), [1, 8, 9, 10], [2 - errors, 2, 2.001, 1.999]))
    assert found.kind == "converges"
    np.testing.assert_allclose(found.error, 10 * 0.002, rtol=1e-6)


def test_a_constant_is_its_limit():
    found = in_loss(np.full(LOSSES.shape, 2.5))
    assert_covers(found, 2.5)
    assert found.value == 2.5
    assert found.error <= 1e-5
    assert abs(found.slope) < 1e-12


def test_oscillation_about_the_limit_is_covered():
    decade = np.log10(LOSSES)
    found = in_loss(2 + 1e-3 * np.cos(np.pi * decade) * 10 ** (0.1 * (decade + 10)))
    assert_covers(found, 2.0)
    assert found.error >= 1e-3


def test_wide_oscillation_is_unsettled():
    assert in_loss(2 + 0.1 * np.cos(np.pi * np.log10(LOSSES))).kind == "unsettled"


def test_rows_from_the_first_that_cannot_be_used_do_not_count():
    values, usable = 2 + LOSSES**0.5, ALL.copy()
    usable[30] = False
    spoiled = np.where(np.arange(37) >= 30, np.nan, values)
    found = in_loss(spoiled, usable)
    assert_covers(found, 2.0)
    # Although later rows are usable again, it is as if there were none.
    assert found == in_loss(values[:30], ALL[:30], LOSSES[:30])
    assert found != in_loss(values)


@pytest.mark.parametrize("values", [LOSSES**-0.5, np.full(LOSSES.shape, 2.0)])
def test_two_decades_decide_and_fewer_do_not(values):
    enough, short = (limit_in_loss(LOSSES, values, np.arange(37) < count) for count in (9, 8))
    assert enough.kind in ("diverges", "converges")
    assert short.kind == "unsettled"
    assert short.error == np.inf
    np.testing.assert_allclose([enough.decades, short.decades], [2.0, 1.75], rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_no_limit_of_one_row_or_none(count):
    found = limit_in_loss(LOSSES, np.full(37, 4.0), np.arange(37) < count)
    assert found.kind == "unsettled"
    assert found.error == np.inf
    assert found.value == 4.0 if count else np.isnan(found.value)


def test_zero_has_a_limit_and_no_slope():
    found = in_loss(np.zeros(37))
    assert found.kind == "converges"
    assert found.value == found.error == 0
    assert np.isnan(found.slope)


# --- As the initialization vanishes


@given(limits, shares, st.floats(0.05, 0.8), st.integers(3, 7))
def test_a_geometric_approach_is_extrapolated(truth, share, ratio, count):
    values = truth * (1 + share * ratio ** np.arange(count))
    found = limit_in_scale(SCALES[:count], settled(values))
    assert_covers(found, truth)
    assert abs(found.value - truth) < 1e-5 * truth  # the noise below which there is no trend


@given(limits, st.floats(0.05, 0.3), st.floats(0.1, 0.6), st.integers(4, 7))
def test_an_approach_that_is_not_yet_geometric_is_covered(truth, share, ratio, count):
    powers = ratio ** np.arange(count)
    found = limit_in_scale(SCALES[:count], settled(truth * (1 + share * (powers + powers**2))))
    assert_covers(found, truth)


@pytest.mark.parametrize("ratio", [0.92, 0.95, 0.99, 1.2])
def test_too_slow_an_approach_has_no_known_limit(ratio):
    """As of a logarithm of the scale, whose rest is many times the last change."""
    found = limit_in_scale(SCALES, settled(1 + ratio ** np.arange(7)))
    assert found.kind == "unsettled"
    assert found.error == np.inf


def test_alternation_is_covered():
    found = limit_in_scale(SCALES, settled(2 + 0.1 * (-0.6) ** np.arange(7)))
    assert_covers(found, 2.0)


@given(st.integers(0, 2**32 - 1))
def test_constancy_up_to_the_accuracy_of_flows_is_a_limit(seed):
    noise = np.random.default_rng(seed).uniform(-3e-7, 3e-7, size=7)
    found = limit_in_scale(SCALES, settled(3 * (1 + noise)))
    assert_covers(found, 3.0)
    assert found.error <= 1e-5


@given(limits, st.floats(1e-4, 0.5), st.floats(0.05, 0.9), st.integers(0, 2**32 - 1))
def test_errors_of_the_limits_in_loss_are_carried_on(truth, share, ratio, seed):
    """Extrapolation enlarges them: much where the approach is slow."""
    size = 1e-4 * truth
    noise = np.random.default_rng(seed).uniform(-size, size, size=3)
    values = truth * (1 + share * ratio ** np.arange(3)) + noise
    found = limit_in_scale(SCALES[:3], settled(values, size))
    assert found.kind == "unsettled" or abs(found.value - truth) <= found.error
    assert found.error >= size


def test_two_scales_show_no_trend():
    found = limit_in_scale(SCALES[:2], settled([2.0, 2.0]))
    assert found.kind == "unsettled"
    assert found.value == 2.0


@given(limits, shares, st.floats(0.1, 1.0), st.floats(0.02, 3.0), st.floats(0.02, 3.0))
def test_irregular_scales_are_covered(truth, share, power, first, second):
    """Also where the last step is so small that little changes over it."""
    scales = np.array([1.0, 10.0**-first, 10.0 ** -(first + second)])
    found = limit_in_scale(scales, settled(truth * (1 + share * scales**power)))
    assert found.kind == "unsettled" or abs(found.value - truth) <= found.error + 1e-9 * truth


def test_irregular_scales_are_extrapolated():
    scales = np.array([1e-2, 1e-3, 3e-5])
    found = limit_in_scale(scales, settled(2 + scales**0.3))
    assert_covers(found, 2.0)
    # Half of how far it was extrapolated, and no better than flows are accurate to.
    np.testing.assert_allclose(found.value, 2.0, rtol=1e-10)
    np.testing.assert_allclose(found.error, 0.5 * scales[-1] ** 0.3, rtol=1e-6)


def test_one_scale_or_none_has_no_limit():
    assert limit_in_scale(SCALES[:1], settled([2.0])).kind == "unsettled"
    assert limit_in_scale(SCALES[:1], settled([2.0])).value == 2.0
    assert np.isnan(limit_in_scale(SCALES[:0], []).value)


def test_divergence_at_every_scale_is_divergence():
    grows = [Limit("diverges", np.inf, np.inf, slope, 2.0) for slope in (-0.5, -0.45, -0.48)]
    found = limit_in_scale(SCALES[:3], grows)
    assert found.kind == "diverges"
    assert found.slope == -0.45
    mixed = [*grows[:2], *settled([2.0])]
    assert limit_in_scale(SCALES[:3], mixed).kind == "unsettled"
    mixed = [grows[0], *settled([2.0, 2.0, 2.0, 2.0])]
    assert limit_in_scale(SCALES[:5], mixed).kind == "unsettled"


OPEN = Limit("unsettled", 2.0, np.inf, -0.1, 2.0)


def test_an_unsettled_last_scale_leaves_the_limit_open():
    found = limit_in_scale(SCALES[:4], [*settled([2.0, 2.0, 2.0]), OPEN])
    assert found.kind == "unsettled"
    assert found.error == np.inf


@pytest.mark.parametrize(("after", "kind"), [(2, "unsettled"), (3, "converges"), (4, "converges")])
def test_scales_before_an_unsettled_one_do_not_count(after, kind):
    values = 2 + 0.1 ** np.arange(after)
    found = limit_in_scale(SCALES[: after + 2], [*settled([9.0]), OPEN, *settled(values)])
    assert found.kind == kind
    if kind == "converges":
        assert_covers(found, 2.0)


# --- Whether a share vanishes


def vanishes(shares, tolerance=1e-3, falls_with_loss=False):
    scales = SCALES[: len(shares)]
    return vanishing_in_scale(
        scales, np.asarray(shares), tolerance, falls_with_loss=falls_with_loss
    )


@given(st.floats(0.05, 1.0), st.floats(0.05, 0.5))
def test_what_goes_to_zero_vanishes(size, ratio):
    shares = size * ratio ** np.arange(7)
    assert vanishes(shares) is True
    assert vanishes(shares, falls_with_loss=True) is True


@given(st.floats(0.01, 1.0), st.floats(0.1, 0.7), st.sampled_from([1.0, 0.2, 0.0]))
def test_what_stays_does_not(size, ratio, part):
    shares = size * (1 + part * ratio ** np.arange(7))
    assert vanishes(shares) is False
    assert vanishes(shares, falls_with_loss=True) is False


@pytest.mark.parametrize(
    "shares",
    [
        0.5 * 0.95 ** np.arange(7),  # too slow to say
        np.array([0.5, 0.4, 0.4, 0.5, 0.3, 0.5, 0.3]),  # no trend
        np.array([1e-5, 9e-4]),  # small, but rising
        np.array([0.5, 0.5]),  # two scales
        np.array([1e-9]),
        np.array([0.1, 0.01, np.nan]),
        np.array([]),
    ],
)
def test_what_is_not_known_to_vanish(shares):
    assert vanishes(shares) is None


def test_zero_vanishes():
    assert vanishes([0.0, 0.0]) is True
    assert vanishes([1e-5, 9e-7]) is True
    assert vanishes([1e-8, 9e-7]) is True  # whatever it does: that is what flows are accurate to


@given(st.floats(1e-5, 9e-4), st.floats(0.05, 0.3))
def test_small_is_not_zero(stays, ratio):
    """A small share that neither scale nor loss moves is a small singular value of the limit."""
    shares = stays * (1 + ratio ** np.arange(1, 8))
    assert vanishes(shares) is False
    # Where the flow goes on to infinity, it falls with the loss and is the same at every scale.
    assert vanishes(shares, falls_with_loss=True) is bool(shares[-1] <= 1e-3)


@given(st.floats(1e-5, 1e-3), st.floats(0.05, 0.5), st.integers(3, 7))
def test_small_shares_that_fall_with_the_scale_vanish(last, ratio, count):
    assert vanishes(last * ratio ** -np.arange(count - 1.0, -1.0, -1.0)) is True


def test_the_tolerance_is_what_counts_as_zero():
    shares = [2e-3, 1.21e-3, 1.2e-3, 1.2e-3]
    assert vanishes(shares, 1e-1) is True
    assert vanishes(shares, 1e-2, falls_with_loss=True) is True
    assert vanishes(shares, 1e-3, falls_with_loss=True) is False


def test_only_certified_rows_show_divergence():
    """Rows that are usable but not certified may end a limit, never a theorem."""
    losses = np.logspace(-1, -8, 29)
    rows = np.ones(losses.shape, bool)
    doubtful = rows.copy()
    doubtful[-3] = False
    assert limit_in_loss(losses, losses**-0.5, rows, rows).kind == "diverges"
    assert limit_in_loss(losses, losses**-0.5, rows, doubtful).kind == "unsettled"
    # Where it settles, they do.
    assert limit_in_loss(losses, 1 + losses, rows, doubtful).kind == "converges"
