"""Staircases of hand-made curves, whose moments are known exactly."""

import numpy as np
import pytest

from factorflow.analysis import escapes

STEPS = np.arange(0.0, 101.0)


def exponential(start, end, floor=1e-4, ceiling=1.0):
    """A curve that rises from floor to ceiling exponentially between two moments."""
    part = np.clip((STEPS - start) / (end - start), 0, 1)
    return floor * (ceiling / floor) ** part


def test_exponential_curves_are_met_exactly():
    # log10 rises by 4 over 40 steps: a share x is passed 10 log10(1 / x) steps before the end.
    norms = np.stack([exponential(10, 50), exponential(50, 90, ceiling=0.5, floor=5e-5)], axis=1)
    staircase = escapes(STEPS, norms)
    assert staircase.count == 2
    np.testing.assert_allclose(staircase.moments, [50 - 10 * np.log10(2), 90 - 10 * np.log10(2)])
    np.testing.assert_allclose(staircase.starts, [40, 80])
    np.testing.assert_allclose(staircase.ends, np.array([50, 90]) + 10 * np.log10(0.9))
    np.testing.assert_allclose(staircase.widths, 10 * np.log10(9))
    np.testing.assert_array_equal(staircase.finals, [1, 0.5])
    assert staircase.overlaps == 0


def test_interpolation_does_not_depend_on_the_rows():
    norms = exponential(10, 50)[:, None]
    rows = [0, 10, 50, 100]
    np.testing.assert_allclose(
        escapes(STEPS[rows], norms[rows]).moments, escapes(STEPS, norms).moments
    )


def test_components_are_sorted_by_their_moments_and_keep_their_names():
    norms = np.stack([exponential(50, 90), exponential(0, 100, 1e-9, 1e-5), exponential(10, 50)], 1)
    staircase = escapes(STEPS, norms)
    np.testing.assert_array_equal(staircase.components, [2, 0])
    assert np.all(np.diff(staircase.moments) > 0)


def test_sorted_norms_are_curves_of_rank_and_not_of_components():
    """Two components that trade places: identities rise once each, ranks say when there are k."""
    first, second = exponential(10, 50, 5e-5, 0.5), exponential(50, 90)
    kept = np.stack([first, second], 1)
    ranked = -np.sort(-kept, axis=1)
    by_name, by_rank = escapes(STEPS, kept), escapes(STEPS, ranked)
    assert by_rank.count == by_name.count == 2
    # The largest passes half of its final norm, 1, when the first component arrives at 0.5.
    np.testing.assert_allclose(by_rank.moments[0], 50)
    np.testing.assert_allclose(by_name.moments[0], 50 - 10 * np.log10(2))


def test_steps_that_overlap_are_counted():
    norms = np.stack([exponential(10, 50), exponential(11, 51)], axis=1)
    assert escapes(STEPS, norms).overlaps == 1


@pytest.mark.parametrize(("least", "count"), [(0.1, 2), (0.01, 3), (0.5, 1)])
def test_least_decides_what_has_risen(least, count):
    norms = np.stack([exponential(0, 40, ceiling=size) for size in (1.0, 0.2, 0.02)], axis=1)
    assert escapes(STEPS, norms, least=least).count == count


def test_what_starts_above_a_share_passes_it_at_the_first_row():
    staircase = escapes([3, 4], [[2.0], [1.0]])
    assert staircase.moments.tolist() == staircase.ends.tolist() == [3]


def test_what_starts_at_zero_passes_at_the_later_row():
    assert escapes([0, 1, 2], [[0.0], [0.0], [1.0]]).moments.tolist() == [2]


def test_a_curve_that_dips_passes_at_its_first_time():
    staircase = escapes([0, 1, 2, 3], [[0.01], [0.9], [0.1], [1.0]])
    assert 0 < staircase.moments[0] < 1


@pytest.mark.parametrize("norms", [np.zeros((3, 2)), np.zeros((3, 0))])
def test_nothing_rises_from_zero(norms):
    staircase = escapes([0, 1, 2], norms)
    assert staircase.count == staircase.overlaps == 0
    assert staircase.widths.shape == (0,)


@pytest.mark.parametrize(
    ("moments", "norms", "options", "words"),
    [
        ([0, 1], [1.0, 2.0], {}, "shape"),
        ([0, 1, 2], [[1.0], [2.0]], {}, "shape"),
        ([], np.zeros((0, 2)), {}, "at least one row"),
        ([0, 0], [[1.0], [2.0]], {}, "increase"),
        ([0, np.nan], [[1.0], [2.0]], {}, "increase"),
        ([0, 1], [[1.0], [np.nan]], {}, "finite"),
        ([0, 1], [[-1.0], [1.0]], {}, "negative"),
        ([0, 1], [[1.0], [1.0]], {"level": 0.95}, "low <= level <= high"),
        ([0, 1], [[1.0], [1.0]], {"low": 0.0}, "0 < low"),
        ([0, 1], [[1.0], [1.0]], {"least": 0.0}, "least"),
    ],
)
def test_bad_input_is_refused(moments, norms, options, words):
    with pytest.raises(ValueError, match=words):
        escapes(moments, norms, **options)
