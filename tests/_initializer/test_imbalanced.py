"""Factors whose imbalance is a given number, in one direction for every such number."""

import functools

import jax
import jaxtyping
import numpy as np
import pytest

import exact
import factorflow as ff
from runs import EPS, X64, imbalance, in_numpy


def largest_gap(factors) -> float:
    return max(np.linalg.norm(gap, 2) for gap in imbalance(in_numpy(factors, np.float64)))


REFERENCES = {ff.Imbalanced: largest_gap}

SIZES = (1e-8 if X64 else 1e-3, 1.0, 10.0)
SCALE = 0.1
CASES = [ff.DeepMatrix((2, 2), 2), ff.DeepMatrix((3, 2), 3, hidden=4)]
every_case = pytest.mark.parametrize("fz", CASES, ids=lambda fz: f"{fz.shape} {fz.depth}")


@functools.cache
def made(fz: ff.DeepMatrix, size: float, seed: int, determinant=None) -> tuple:
    initializer = ff.Imbalanced(SCALE, imbalance=size, determinant=determinant)
    return jax.jit(lambda key: initializer(fz, key))(jax.random.key(seed))


@every_case
def test_the_imbalance_is_the_number_asked_for(fz):
    for size in SIZES:
        factors = made(fz, size, 1)
        # A difference of squares of numbers up to the root of the imbalance, or near one.
        rounding = 32 * EPS * max(1, size)
        np.testing.assert_allclose(REFERENCES[ff.Imbalanced](factors), size, rtol=0, atol=rounding)


@every_case
def test_a_sweep_moves_one_balanced_start_along_one_direction(fz):
    def chain(size: float, seed: int) -> np.ndarray:
        factors = in_numpy(made(fz, size, seed), np.float64)
        return np.concatenate([factor.ravel() for factor in factors])

    start, near, far = (chain(size, 1) for size in SIZES[-3:])
    first, second = near - start, far - near
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    # The differences are of size one; the factors round.
    assert cosine == pytest.approx(1, abs=64 * EPS)


@pytest.mark.parametrize(("determinant", "sign"), [("positive", 1), ("negative", -1)])
def test_the_sign_of_the_balanced_start_is_the_one_asked_for(determinant, sign):
    fz, size = CASES[0], SIZES[0]
    products = [exact.product(in_numpy(made(fz, size, seed, determinant))) for seed in (0, 1)]
    for product in products:
        # The move is far too small to change it.
        assert np.sign(float(exact.determinant(product))) == sign
    assert not np.allclose(*map(exact.to_float, products))


def test_the_product_of_a_small_imbalance_is_that_of_the_same_balanced_start():
    fz = CASES[1]
    small, smaller = (fz.compose(made(fz, size, 1)) for size in (SIZES[0], SIZES[0] / 2))
    # The product of draws of size SCALE, moved by at most a few times the imbalance.
    np.testing.assert_allclose(small, smaller, rtol=0, atol=10 * SIZES[0])
    assert 0.01 * SCALE < np.max(np.abs(small)) < 10 * SCALE


BAD_INPUT = [
    ("zero", lambda: ff.Imbalanced(0.1, 0.0), "positive and finite, got 0.0; for 0 use Balanced"),
    ("negative", lambda: ff.Imbalanced(0.1, -1.0), "positive and finite, got -1.0"),
    ("NaN", lambda: ff.Imbalanced(0.1, float("nan")), "positive and finite, got nan"),
    ("scale 0", lambda: ff.Imbalanced(0.0, 0.1), "product_scale must be positive and finite"),
    (
        "depth 1",
        lambda: ff.Imbalanced(0.1, 0.1)(ff.DeepMatrix((2, 2), 1), jax.random.key(0)),
        "DeepMatrix of depth 2 or more",
    ),
    ("no key", lambda: ff.Imbalanced(0.1, 0.1)(CASES[0]), "needs a random key"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_sign(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="must be 'positive', 'negative' or None, got 'up'"):
        ff.Imbalanced(0.1, 0.1, determinant="up")
