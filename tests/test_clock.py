"""Readings of clocks, beside integrals in closed form and plateaus that times do not show."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from factorflow._clock import Clock
from factorflow._dynamics import AbstractState
from runs import DTYPE, X64


class State(AbstractState):
    """What a clock sees of a run that needs `span` for its last step."""

    step: Any
    time: Any
    loss: Any
    span: Any
    result: Any = None

    def stats(self):
        return {}

    def elapsed(self, before: AbstractState):
        assert isinstance(before, State)
        return self.span - jnp.where(before.step == self.step, before.span, 0)


def after(spans, losses) -> tuple[Clock, State]:
    """A clock after these steps, from a loss of 1."""

    def at(step, time, loss, span):
        return State(jnp.asarray(step), *(jnp.asarray(x, DTYPE) for x in (time, loss, span)))

    state = at(0, 0.0, 1.0, 0.0)
    clock = Clock.begun(state)
    for step, (span, loss) in enumerate(zip(spans, losses, strict=True)):
        following = at(step + 1, float(state.time) + span, loss, span)
        if clock.due(state):
            clock = clock.ticked(state)
        clock = clock.stepped(state, following)
        state = following
    return clock, state


def read(clock: Clock, located: State, end: State) -> dict[str, np.ndarray]:
    found = clock.read(located, end)
    return {name: np.asarray(value) for name, value in found.items()}


def test_readings_are_the_integrals_of_the_logarithm():
    """Where the loss is 1 / (1 + t): a cell from 2^-a to 2^-b is passed from 2^a - 1 to 2^b - 1."""
    times = np.geomspace(1e-3, 20, 600)
    clock, end = after(np.diff(times, prepend=0.0), 1 / (1 + times))
    found = read(clock, end, end)
    for cell in (0, 1, 2, 5, 7):
        first, width = 0.125 * cell, 0.125
        since = 2 ** max(first - width, 0) - 1
        exact = scipy.integrate.quad(
            lambda octave, since=since: np.log(2**octave - 1 - since), first, first + width
        )[0]
        assert found["clock_weight"][cell] == pytest.approx(width)
        spread = found["clock_spread"][cell]
        assert abs(found["clock"][cell] - exact) <= spread + 1e-6
        # A step is 1.7% of the time passed, which is up to some dozen times that since the cell.
        assert spread < 0.2 * width


def two_plateaus(second: float, steps: int = 200) -> tuple[Clock, State]:
    """One of 1e24 units at the start's loss, and another at 5% of it, in steps of 3.5% of the time
    that has passed on it."""
    spans, losses, loss = [1e24], [1 - 1e-6], 1.0
    for low, duration in ((0.05, 1.0), (1e-3, second)):
        gone = np.geomspace(1e-3, 1, steps) * duration
        spans += [*np.diff(gone, prepend=0.0)]
        # Most of the fall comes in the last part of it.
        share = np.clip((gone / duration - 0.8) / 0.2, 0, 1)
        losses += [*(loss * (low / loss) ** share)]
        loss = low
    return after(spans, losses)


@pytest.mark.x64
def test_a_plateau_is_seen_however_long_the_one_before_it():
    (one, end), (other, late) = two_plateaus(1e7), two_plateaus(1.2e7)
    assert end.time == late.time  # which have a neighbour each 1.3e8
    first, second = read(one, end, end), read(other, late, late)
    open_ = first["clock_spread"] + second["clock_spread"]
    known = (first["clock_weight"] > 0) & (open_ < 0.1)
    apart = (np.abs(first["clock"] - second["clock"]) - open_)[known]
    # A tenth and more of the time, over a cell of a quarter of a halving or half of one.
    assert apart.max() > 0.1 * 0.25 * np.log(1.2)
    # Of the same run in steps half as long nothing is apart that is not open.
    finer, there = two_plateaus(1e7, 400)
    again = read(finer, there, there)
    open_ = first["clock_spread"] + again["clock_spread"]
    assert np.all(np.abs(first["clock"] - again["clock"]) <= open_)


def test_a_row_within_a_step_has_part_of_its_readings():
    times = np.linspace(0.01, 1.0, 100)
    losses = np.exp(-times)
    clock, end = after(np.diff(times, prepend=0.0), losses)
    before, last = after(np.diff(times[:-1], prepend=0.0), losses[:-1])
    part = jnp.asarray(0.3 * (times[-1] - times[-2]), DTYPE)
    inside = State(end.step, last.time + part, jnp.exp(-(last.time + part)), part)
    found = read(clock, inside, end)
    # As if a step had ended there.
    direct = before.ticked(last).stepped(last, inside)
    expected = read(direct, inside, inside)
    np.testing.assert_allclose(
        found["clock_weight"], expected["clock_weight"], atol=1e-12 if X64 else 1e-5
    )
    open_ = found["clock_spread"] + expected["clock_spread"]
    assert np.all(np.abs(found["clock"] - expected["clock"]) <= open_ + 1e-5)
    assert np.sum((found["clock_weight"] > 0) & (open_ < 0.03)) >= 6


@pytest.mark.parametrize("fall", [0.1, 0.2, 0.5, 0.9])
def test_a_long_first_step_is_counted_cell_by_cell(fall):
    """An exponential of this many halvings in one step, beside the same in a thousand."""
    one, end = after([1.0], [2.0**-fall])
    times = np.linspace(1e-3, 1, 1000)
    many, there = after(np.diff(times, prepend=0.0), 2 ** (-fall * times))
    first, second = read(one, end, end), read(many, there, there)
    open_ = first["clock_spread"] + second["clock_spread"]
    assert np.all(np.abs(first["clock"] - second["clock"]) <= open_)
    # The first cell is not left open altogether.
    assert open_[0] < 0.3 * 0.125
