"""Bases of flags of subspaces, and how they move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from factorflow._dynamics.charts.flags import flag_of, flag_velocity, orthonormal
from runs import DTYPE, EPS, draw

# Charts are made for double precision; single precision runs them in test_simulate and others.
pytestmark = pytest.mark.x64

DIM = 4
bases = jax.jit(orthonormal)
flag_from = jax.jit(flag_of)


@jax.jit
def moving(turning, basis, levels):
    """What turns a basis so, and the orthonormal one with its derivatives."""
    start, _ = jax.jvp(orthonormal, (basis,), (jnp.zeros_like(basis),))
    velocity, within = flag_velocity(turning, basis, start[1], start[2], levels)
    return velocity, within, start, jax.jvp(orthonormal, (basis,), (velocity,))[1]


PATTERNS = {"one": [0, 0, 0, 0], "pairs": [0, 0, 2, 2], "mixed": [0, 1, 1, 3], "all": [0, 1, 2, 3]}
every_pattern = pytest.mark.parametrize("levels", PATTERNS.values(), ids=PATTERNS)


def flag(levels) -> tuple[np.ndarray, np.ndarray]:
    """Unit lower triangular by blocks, and the places between the blocks."""
    below = np.asarray(levels)[:, None] > np.asarray(levels)
    return np.eye(DIM) + np.where(below, 0.4 * draw([(DIM, DIM)], seed=6)[0], 0), below


@every_pattern
def test_a_basis_and_its_orthonormal_basis_span_the_same_flag(levels):
    basis, _ = flag(levels)
    q, r, inverse = map(np.asarray, bases(jnp.asarray(basis, DTYPE)))
    np.testing.assert_allclose(q.T @ q, np.eye(DIM), rtol=0, atol=32 * EPS)
    np.testing.assert_allclose(q @ r, basis, rtol=0, atol=32 * EPS)
    np.testing.assert_allclose(r @ inverse, np.eye(DIM), rtol=0, atol=32 * EPS)
    assert not np.tril(r, -1).any() and (np.diagonal(r) > 0).all()
    # Turned within its levels, it is still the same flag.
    places = np.asarray(levels)[:, None] == np.asarray(levels)
    skew = np.where(places, draw([(DIM, DIM)], seed=7)[0], 0)
    turned = q @ scipy.linalg.expm(0.5 * (skew - skew.T))
    found = flag_from(jnp.asarray(turned, DTYPE), jnp.asarray(levels, jnp.int32))
    np.testing.assert_allclose(found, basis, rtol=0, atol=64 * EPS)


@every_pattern
def test_the_velocity_turns_the_orthonormal_basis_as_asked(levels):
    basis, below = flag(levels)
    skew = draw([(DIM, DIM)], seed=8)[0].astype(float)
    turning = np.where(below | below.T, skew - skew.T, 0)
    start = jnp.asarray(basis, DTYPE)
    velocity, within, (q, r, inverse), moved = moving(
        jnp.asarray(turning, DTYPE), start, jnp.asarray(levels, jnp.int32)
    )
    assert not np.asarray(velocity)[~below].any()
    moved, moved_r, moved_inverse = moved
    np.testing.assert_allclose(q.T @ moved, turning + within, rtol=0, atol=64 * EPS)
    # The derivatives satisfy what defines the decomposition.
    np.testing.assert_allclose(moved @ r + q @ moved_r, velocity, rtol=0, atol=64 * EPS)
    np.testing.assert_allclose(moved_r @ inverse + r @ moved_inverse, 0, rtol=0, atol=64 * EPS)
