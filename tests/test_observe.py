"""Requests alone: what they resolve to and what they refuse. `test_simulate` follows runs."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import factorflow as ff

NO_LIMIT = ff.Stop()


@pytest.mark.parametrize(
    ("observe", "kind", "levels"),
    [
        (ff.AtLosses([1e-1, 1e-3]), "loss", [1e-1, 1e-3]),
        (ff.AtLosses(np.float32(0.5)), "loss", [0.5]),
        (ff.AtTimes([0, 1, 2.5]), "time", [0.0, 1.0, 2.5]),
        (ff.AtSteps([0, 3, 10]), "step", [0, 3, 10]),
        (ff.AtSteps(np.array([1.0, 2.0])), "step", [1, 2]),
        (ff.AtSteps(7), "step", [7]),
        (ff.AtSteps.every(5, 17), "step", [0, 5, 10, 15]),
        (ff.AtSteps.every(5, 15), "step", [0, 5, 10, 15]),
    ],
)
def test_rows_are_what_was_asked_for(observe, kind, levels):
    resolved_kind, resolved = observe.resolve(NO_LIMIT)
    assert resolved_kind == kind
    assert resolved.tolist() == levels
    assert np.issubdtype(resolved.dtype, np.integer) == (kind == "step")


@pytest.mark.parametrize("limit", ["loss", "gradient_norm", "max_steps", "max_time"])
def test_the_end_is_one_row_at_a_moment_not_yet_known(limit):
    kind, levels = ff.AtEnd().resolve(ff.Stop(**{limit: 5 if limit == "max_steps" else 5.0}))
    assert kind == "end"
    assert levels.shape == (1,) and np.isnan(levels).all()
    assert ff.AtEnd() == ff.AtEnd() and hash(ff.AtEnd()) == hash(ff.AtEnd())


def test_requests_are_plain_numbers():
    requests = (ff.AtLosses(np.array([0.5], np.float32)), ff.AtTimes([1]), ff.AtSteps(range(3)))
    fields = [request.resolve(NO_LIMIT)[1].tolist() for request in requests]
    assert json.loads(json.dumps(fields)) == [[0.5], [1.0], [0, 1, 2]]
    assert hash(requests) == hash(requests)


@hypothesis.given(st.data(), st.integers(2, 200))
def test_log_spaced_steps(data, count):
    max_steps = data.draw(st.integers(count, 10**7))
    kind, steps = ff.LogSpaced(count).resolve(ff.Stop(max_steps=max_steps))
    assert kind == "step"
    assert len(steps) == count
    assert (steps[0], steps[-1]) == (1, max_steps)
    assert np.all(np.diff(steps) > 0)
    # Where the ideal steps are far apart, only rounding moves them.
    ideal = np.geomspace(1, max_steps, count)
    free = ideal > 2 * count / np.log(max_steps + 1.0) * count
    assert np.all(np.abs(steps - ideal)[free] <= 1)


@hypothesis.given(st.integers(2, 200), st.floats(1e-9, 0.5), st.floats(1e-3, 1e9))
def test_log_spaced_times(count, first, max_time):
    kind, times = ff.LogSpaced(count, first).resolve(ff.Stop(max_time=max_time))
    assert kind == "time"
    assert len(times) == count
    assert times[-1] == max_time
    # Logarithms round by an ulp of their size, at most 40 here, over 200 products.
    np.testing.assert_allclose(times[0], first * max_time, rtol=1e-13)
    np.testing.assert_allclose(
        np.diff(np.log(times)), -np.log(first) / (count - 1), rtol=0, atol=1e-12
    )


def test_steps_come_before_time():
    stop = ff.Stop(max_steps=100, max_time=5.0)
    assert ff.LogSpaced(3).resolve(stop)[0] == "step"


BAD_INPUT = [
    ("no losses", lambda: ff.AtLosses([]), r"at least one, got \[\]"),
    ("rising losses", lambda: ff.AtLosses([1e-3, 1e-1]), r"strictly decreasing.*0\.1"),
    ("equal losses", lambda: ff.AtLosses([1e-3, 1e-3]), "strictly decreasing"),
    ("a loss of zero", lambda: ff.AtLosses([1e-3, 0.0]), "positive"),
    ("a NaN loss", lambda: ff.AtLosses([1.0, np.nan]), "must be finite"),
    ("falling times", lambda: ff.AtTimes([2.0, 1.0]), r"strictly increasing times.*\[2"),
    ("a time before 0", lambda: ff.AtTimes([-1.0, 1.0]), "from 0 on"),
    ("an infinite time", lambda: ff.AtTimes([np.inf]), "must be finite"),
    ("no steps", lambda: ff.AtSteps([]), r"whole steps from 0 on, got \[\]"),
    ("falling steps", lambda: ff.AtSteps([3, 2]), "strictly increasing"),
    ("equal steps", lambda: ff.AtSteps([2, 2]), "strictly increasing"),
    ("a step before 0", lambda: ff.AtSteps([-1, 2]), "from 0 on"),
    ("half a step", lambda: ff.AtSteps([0.5, 1.5]), "whole steps"),
    ("a NaN step", lambda: ff.AtSteps([np.nan]), "whole steps"),
    ("every 0 steps", lambda: ff.AtSteps.every(0, 5), "n >= 1"),
    ("one log-spaced row", lambda: ff.LogSpaced(1), "count >= 2"),
    ("log-spaced from 1", lambda: ff.LogSpaced(5, first=1.0), r"first in \(0, 1\)"),
    (
        "log-spaced without a limit",
        lambda: ff.LogSpaced(5).resolve(ff.Stop(loss=1e-3)),
        r"needs Stop\(max_steps=\) or Stop\(max_time=\)",
    ),
    (
        "more log-spaced rows than steps",
        lambda: ff.LogSpaced(5).resolve(ff.Stop(max_steps=4)),
        r"LogSpaced\(5\) needs.*5 or more, got 4",
    ),
    (
        "the end without a limit",
        lambda: ff.AtEnd().resolve(ff.Stop(every=5)),
        "AtEnd observes where a limit ends the run; name one in Stop",
    ),
    ("a loss limit of 0", lambda: ff.Stop(loss=0.0), r"Stop\(loss=\) must be positive.*got 0"),
    ("a NaN loss limit", lambda: ff.Stop(loss=np.nan), r"Stop\(loss=\)"),
    ("a negative gradient norm", lambda: ff.Stop(gradient_norm=-1.0), r"Stop\(gradient_norm=\)"),
    ("an infinite time limit", lambda: ff.Stop(max_time=np.inf), r"Stop\(max_time=\).*finite"),
    ("no steps at all", lambda: ff.Stop(max_steps=0), r"Stop\(max_steps=\).*got 0"),
    ("checks every 0 steps", lambda: ff.Stop(loss=1.0, every=0), r"Stop\(every=\)"),
    ("no patience", lambda: ff.Stop(loss=1.0, patience=0), r"Stop\(patience=\) .*got 0"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
