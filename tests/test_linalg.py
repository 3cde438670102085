"""Linear algebra in batches: the numbers of single matrices, and no thread waits for itself."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from factorflow import _linalg
from runs import DTYPE, EPS

RANDOM = np.random.default_rng(0)
MATRICES = jnp.asarray(RANDOM.normal(size=(6, 4, 4)), DTYPE)
SIDES = jnp.asarray(RANDOM.normal(size=(6, 4)), DTYPE)
# Condition numbers of these matrices are below 100.
ATOL = 1e4 * EPS


def test_batches_are_numpys_matrices_one_by_one():
    values = jax.vmap(_linalg.singular_values)(MATRICES)
    wanted = jnp.arange(len(MATRICES)) != 2
    solved = jax.vmap(_linalg.solve)(MATRICES, SIDES, wanted)
    smooth = jax.vmap(_linalg.solve_smooth)(MATRICES, SIDES)
    signs, logs = jax.vmap(_linalg.slogdet)(MATRICES)
    symmetric = MATRICES + MATRICES.transpose(0, 2, 1)
    eigenvalues = jax.vmap(_linalg.symmetric_eigenvalues)(symmetric)
    for index, matrix in enumerate(np.asarray(MATRICES, float)):
        side = np.asarray(SIDES[index], float)
        expected = np.linalg.solve(matrix, side)
        left_out = np.zeros_like(expected)
        answer = left_out if index == 2 else expected
        np.testing.assert_allclose(solved[index], answer, rtol=0, atol=ATOL)
        np.testing.assert_allclose(smooth[index], expected, rtol=0, atol=ATOL)
        truth = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(values[index], truth, rtol=0, atol=ATOL)
        sign, log = np.linalg.slogdet(matrix)
        assert signs[index] == sign
        np.testing.assert_allclose(logs[index], log, rtol=0, atol=ATOL)
        truth = np.linalg.eigvalsh(matrix + matrix.T)
        np.testing.assert_allclose(eigenvalues[index], truth, rtol=0, atol=ATOL)


@pytest.mark.x64
@pytest.mark.parametrize("name", ["singular_values", "solve_smooth"])
def test_derivatives_are_differences(name):
    function = getattr(_linalg, name)
    arguments = (MATRICES[0],) if name == "singular_values" else (MATRICES[0], SIDES[0])
    directions = tuple(jnp.ones_like(argument) for argument in arguments)
    step = 1e-6
    moved = [
        function(*(a + sign * step * d for a, d in zip(arguments, directions, strict=True)))
        for sign in (1, -1)
    ]
    _, derivative = jax.jvp(function, arguments, directions)
    # Central differences: step^2 of truncation and EPS / step of rounding, both 1e-10.
    np.testing.assert_allclose(derivative, (moved[0] - moved[1]) / (2 * step), atol=1e-7)


def test_two_batches_at_once_end():
    """With more batches than threads `jaxlib`'s own batched kernels wait for ever."""

    @jax.jit
    def iterate(matrices):
        def step(_, batch):
            return batch / (1 + jax.vmap(_linalg.singular_values)(batch)[:, :1, None])

        return jax.lax.fori_loop(0, 50, step, matrices)

    batch = jnp.tile(jnp.eye(40, dtype=DTYPE), (64, 1, 1))
    iterate.lower(batch).compile()
    threads = [
        threading.Thread(target=lambda: iterate(batch).block_until_ready()) for _ in range(4)
    ]
    for thread in threads:
        thread.daemon = True  # a thread that hangs must not keep the tests from ending
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "batches wait for each other"
