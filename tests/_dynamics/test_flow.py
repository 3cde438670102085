"""Single steps of an integrator, where what is known changes between them."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from factorflow._dynamics.flow import Integrator
from factorflow._dynamics.integrators import with_tolerances
from factorflow._dynamics.solver import RKC2, Stabilized

SOLVERS = {"RKC2": RKC2(), "Stabilized": Stabilized()}


def integrator(rate, solver, dtype):
    solver, controller = with_tolerances(solver, 1e-5, 1e-8, dtype)
    rate = jnp.asarray(rate, dtype)
    half = jnp.asarray(0.5, dtype)
    return Integrator(lambda y: -rate * y, lambda y: half * jnp.sum(y**2), solver, controller, None)


@eqx.filter_jit
def stepped(flow: Integrator, state):
    return flow.advance(state, jnp.asarray(True))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_rejected_step_after_a_jump_leaves_the_jump_to_come(name, dtype):
    """Three steps of one field, then a step of another that is far too long."""
    before, after = (integrator(rate, SOLVERS[name], dtype) for rate in (1.0, 30.0))
    state = before.init(jnp.ones(2, dtype))
    while int(state.step) < 3:
        state = stepped(before, state)
    longer = jnp.asarray(10, dtype)
    state = eqx.tree_at(lambda s: (s.made_jump, s.size), state, (jnp.asarray(True), longer))
    start, rejected, time = np.asarray(state.y), int(state.rejected), float(state.time)
    state = stepped(after, state)
    assert int(state.rejected) == rejected + 1
    assert bool(state.made_jump)
    while int(state.step) < 4:
        state = stepped(after, state)
    assert not bool(state.made_jump)
    # The step is one of the new field, within ten local tolerances; of single precision they are
    # a few roundings. The old field's velocity at its beginning would leave a thirtieth of it.
    expected = start * np.exp(-30 * (float(state.time) - time))
    slack = 1e-4 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(state.y, expected, rtol=slack)


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_shorter_than_a_digit_of_time_add_up(name, dtype):
    """From a time whose neighbours are more than two of these steps apart."""
    flow = integrator(1.0, SOLVERS[name], dtype)
    state = flow.init(jnp.ones(2, dtype))
    late = jnp.asarray(1 / np.finfo(dtype).eps, dtype)
    state = eqx.tree_at(lambda s: s.time, state, late)
    spans = []
    while math.fsum(spans) < 2 * np.spacing(late):
        before, state = state, stepped(flow, state)
        if int(state.step) > int(before.step):
            spans.append(float(state.span))
    passed = math.fsum(spans)
    assert max(spans) < 0.5 * np.spacing(late)
    found = (float(state.time) - float(late)) + float(state.lost)
    assert found == pytest.approx(passed, rel=float(len(spans) * np.finfo(dtype).eps))
    # Some dozen steps with errors of 1e-5 each, relative to what they begin with.
    np.testing.assert_allclose(state.y, np.exp(-passed), rtol=1e-3)
