"""Balanced factors of a Gaussian product, or of a given one."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import factorflow as ff
from tolerances import assert_close


def singular_values_of_factors(product: np.ndarray, depth: int) -> np.ndarray:
    return np.linalg.svd(product, compute_uv=False) ** (1 / depth)


REFERENCES = {ff.Balanced: singular_values_of_factors}

GIVEN = np.array([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])


def composed(factors) -> np.ndarray:
    result = np.asarray(factors[0])
    for factor in factors[1:]:
        result = np.asarray(factor) @ result
    return result


@pytest.mark.parametrize("hidden", [(), (2,), (4, 3)], ids=str)
def test_given_product(hidden):
    fz = ff.DeepMatrix((2, 3), depth=len(hidden) + 1, hidden=hidden)
    factors = ff.Balanced(product=GIVEN)(fz)  # nothing random: no key
    assert_close(composed(factors), GIVEN, "linear_algebra")
    for factor in factors:
        actual = np.linalg.svd(np.asarray(factor), compute_uv=False)[:2]
        assert_close(actual, REFERENCES[ff.Balanced](GIVEN, fz.depth), "linear_algebra")
    for inner, outer in itertools.pairwise(factors):
        gap = np.asarray(outer).T @ np.asarray(outer) - np.asarray(inner) @ np.asarray(inner).T
        assert_close(gap, np.zeros_like(gap), scale=10.0)


def test_given_product_in_every_form(dtype):
    forms = [GIVEN, GIVEN.tolist(), jnp.asarray(GIVEN, dtype), tuple(map(tuple, GIVEN))]
    assert len({ff.Balanced(product=form) for form in forms}) == 1
    assert ff.Balanced(product=np.array([[1, 2], [3, 4]])).product == ((1.0, 2.0), (3.0, 4.0))


@pytest.mark.parametrize(("determinant", "sign"), [("positive", 1.0), ("negative", -1.0)])
def test_sign_of_a_given_product(determinant, sign):
    product = np.array([[2.0, 1.0], [1.0, 3.0]])  # determinant 5
    fz = ff.DeepMatrix((2, 2), depth=3, hidden=4)
    initializer = ff.Balanced(product=product, determinant=determinant)
    factors = jax.jit(lambda: initializer(fz))()
    product[0] *= sign
    assert_close(composed(factors), product, "linear_algebra")


def test_random_products_are_gaussian():
    count, scale = 2000, 1e-3
    fz = ff.DeepMatrix((2, 3), depth=2)
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(lambda key: fz.compose(ff.Balanced(product_scale=scale)(fz, key))))
    entries = np.asarray(draw(keys), np.float64).reshape(count, 6)
    # A true hypothesis is refused once in ten thousand keys; this one key is fixed.
    assert scipy.stats.kstest(entries.ravel(), "norm", args=(0, scale)).pvalue > 1e-4
    correlations = np.corrcoef(entries, rowvar=False) - np.eye(6)
    assert np.max(np.abs(correlations)) < 5 / math.sqrt(count)


def test_the_product_does_not_depend_on_depth_or_widths():
    key, initializer = jax.random.key(2), ff.Balanced(product_scale=0.1)
    products = [
        composed(initializer(ff.DeepMatrix((2, 3), depth=len(hidden) + 1, hidden=hidden), key))
        for hidden in [(), (2,), (4, 3)]
    ]
    assert_close(products[1], products[0], "linear_algebra", scale=0.1)
    assert_close(products[2], products[0], "linear_algebra", scale=0.1)


# --- Bad input

FZ = ff.DeepMatrix((2, 3), depth=2)


def balanced(product, fz=FZ, **kwargs):
    return lambda: ff.Balanced(product=product, **kwargs)(fz)


BAD_INPUT = [
    ("both", balanced(GIVEN, product_scale=1.0), r"product_scale= or product=, not both"),
    ("transposed", balanced(GIVEN.T), r"factorization's shape \(2, 3\), got \(3, 2\)"),
    ("flat", balanced([1.0, 2.0]), r"product must be a matrix of finite numbers, got \[1.0, 2.0\]"),
    ("a number", balanced(1.0), r"product must be a matrix of finite numbers, got 1.0"),
    ("NaN", balanced([[np.nan, 0.0]]), r"finite numbers, got \[\[nan, 0.0\]\]"),
    ("infinite", balanced([[0.0, -np.inf]]), r"finite numbers, got \[\[0.0, -inf\]\]"),
    (
        "hidden width too small",
        balanced(GIVEN, ff.DeepMatrix((2, 3), depth=2, hidden=1)),
        r"hidden width 1 of \(1,\) is too small",
    ),
    (
        "random, hidden width too small",
        lambda: ff.Balanced(product_scale=1.0)(
            ff.DeepMatrix((2, 3), depth=2, hidden=1), jax.random.key(0)
        ),
        r"hidden width 1 of \(1,\) is too small",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
