"""What every initializer promises: shapes, one key one result, and the determinant's sign."""

import itertools
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import exact
import factorflow as ff
from tolerances import assert_close

# Each with a product scale, so that shape, depth and widths are free.
INITIALIZERS = {
    "Gaussian": ff.Gaussian,
    "Balanced": ff.Balanced,
    "Identity": ff.Identity,
    "Orthogonal": ff.Orthogonal,
}
RANDOM = ["Gaussian", "Balanced", "Orthogonal"]
EACH = pytest.mark.parametrize("name", INITIALIZERS)

RECTANGULAR = ff.DeepMatrix((4, 3), depth=3, hidden=(5, 3))
SQUARE = [
    ff.DeepMatrix((2, 2), depth=3),
    ff.DeepMatrix((3, 3), depth=2, hidden=5),
]


@EACH
def test_shapes_and_dtypes(name, dtype):
    initializer = INITIALIZERS[name](product_scale=0.1)
    factors = jax.eval_shape(lambda key: initializer(RECTANGULAR, key), jax.random.key(0))
    shapes = [(factor.shape, factor.dtype) for factor in factors]
    assert shapes == [((5, 3), dtype), ((3, 5), dtype), ((4, 3), dtype)]


@pytest.mark.parametrize("name", RANDOM)
def test_a_key_gives_one_result(name):
    initializer = INITIALIZERS[name](product_scale=0.1)
    first, second, other = (initializer(RECTANGULAR, jax.random.key(s)) for s in (0, 0, 1))
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c)


# --- The sign of the determinant


@EACH
@pytest.mark.parametrize("fz", SQUARE, ids=[f"{fz.shape} {fz.hidden_widths}" for fz in SQUARE])
def test_requested_determinant(name, fz):
    seeds = range(8)
    keys = jax.random.split(jax.random.key(0), len(seeds))

    positive, negative = (
        jax.tree.map(
            np.asarray,
            # Not compiled as a whole: what the cases share is compiled once.
            jax.vmap(INITIALIZERS[name](product_scale=0.1, determinant=sign), (None, 0))(fz, keys),
        )
        for sign in ("positive", "negative")
    )
    for lane in seeds:
        above, below = ([factor[lane] for factor in factors] for factors in (positive, negative))
        assert exact.determinant(exact.product(above)) > 0
        assert exact.determinant(exact.product(below)) < 0
        # One output row is negated, and nothing else differs.
        reflected = [*above[:-1], np.concatenate([-above[-1][:1], above[-1][1:]])]
        for a, b in zip(reflected, below, strict=True):
            assert_close(a, b)


@EACH
def test_a_determinant_of_the_requested_sign_is_left_alone(name):
    fz, key = SQUARE[0], jax.random.key(1)
    free = INITIALIZERS[name](product_scale=0.1)(fz, key)
    sign = "positive" if exact.determinant(exact.product(free)) > 0 else "negative"
    asked = INITIALIZERS[name](product_scale=0.1, determinant=sign)(fz, key)
    for a, b in zip(asked, free, strict=True):
        np.testing.assert_array_equal(a, b)


@EACH
def test_scales_are_leaves(name):
    """Numbers can be traced and differentiated; what decides the code is static."""
    fz, key = ff.DeepMatrix((2, 2), depth=2), jax.random.key(1)
    initializer = INITIALIZERS[name](product_scale=0.1, determinant="negative")
    assert jax.tree.leaves(initializer) == [0.1]

    @jax.jit
    def product_and_slope(initializer):
        def product(initializer):
            return fz.compose(initializer(fz, key))

        one = jax.tree.map(jnp.ones_like, initializer)
        return jax.jvp(product, (initializer,), (one,))

    value, slope = product_and_slope(initializer)
    assert_close(value, fz.compose(initializer(fz, key)))
    # The product is proportional to its scale.
    assert_close(slope, np.asarray(value) / 0.1, "linear_algebra")


# --- Balance


@pytest.mark.parametrize("determinant", [None, "positive", "negative"])
@pytest.mark.parametrize("name", ["Balanced", "Identity", "Orthogonal"])
def test_balanced_initializers_stay_so_with_either_sign(name, determinant):
    fz = ff.DeepMatrix((3, 3), depth=3)
    factors = INITIALIZERS[name](product_scale=1e-3, determinant=determinant)(fz, jax.random.key(0))
    for inner, outer in itertools.pairwise(factors):
        gap = np.asarray(outer).T @ np.asarray(outer) - np.asarray(inner) @ np.asarray(inner).T
        assert_close(gap, np.zeros((3, 3)), scale=1e-3 ** (2 / 3))


# --- Bad input

KEY = jax.random.key(0)
NARROW = ff.DeepMatrix((3, 3), depth=2, hidden=2)


SCALES = [
    ("zero", 0.0, r"must be positive and finite, got 0.0. At scale 0 every factor"),
    ("negative", -1.0, r"must be positive and finite, got -1.0"),
    ("NaN", math.nan, r"must be positive and finite, got nan"),
    ("infinite", math.inf, r"must be positive and finite, got inf"),
    ("numpy zero", np.float64(0.0), r"must be positive and finite, got 0.0"),
]
BAD_INPUT = [
    (
        f"{name}, {scale} {case}",
        lambda cls=cls, scale=scale, value=value: cls(**{scale: value}),
        rf"{scale} {message}",
    )
    for name, cls in INITIALIZERS.items()
    for scale in (["product_scale"] if name == "Balanced" else ["factor_scale", "product_scale"])
    for case, value, message in SCALES
]
BAD_INPUT += [
    case
    for name, cls in INITIALIZERS.items()
    for case in [
        (f"{name}, no scale", cls, r"Give exactly one of .*product_scale=, got none"),
        (
            f"{name}, determinant of a rectangle",
            lambda cls=cls: cls(product_scale=1.0, determinant="positive")(RECTANGULAR, KEY),
            r"determinant='positive' needs a square matrix, got shape \(4, 3\)",
        ),
    ]
]
BAD_INPUT += [
    case
    for name, cls in INITIALIZERS.items()
    if name != "Balanced"  # refuses narrow widths before
    for case in [
        (
            f"{name}, both scales",
            lambda cls=cls: cls(factor_scale=1.0, product_scale=1.0),
            r"Give exactly one of factor_scale= or product_scale=, got "
            r"\['factor_scale', 'product_scale'\]",
        ),
        (
            f"{name}, determinant of narrow factors",
            lambda cls=cls: cls(factor_scale=1.0, determinant="negative")(NARROW, KEY),
            r"determinant='negative' cannot be honoured: hidden widths \(2,\) below 3",
        ),
    ]
]
BAD_INPUT += [
    (
        "Balanced, determinant of a singular product",
        lambda: ff.Balanced(product=[[1.0, 2.0], [2.0, 4.0]], determinant="positive")(
            ff.DeepMatrix((2, 2), 3)
        ),
        r"cannot be honoured: the product is singular",
    )
]
BAD_INPUT += [
    (
        f"{name}, no key",
        lambda name=name: INITIALIZERS[name](product_scale=1.0)(RECTANGULAR),
        r"needs a random key",
    )
    for name in RANDOM
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@EACH
def test_unknown_sign(name, monkeypatch):
    # As users see it: the annotation's check, which only the tests switch on, comes first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="must be 'positive', 'negative' or None, got 'up'"):
        INITIALIZERS[name](product_scale=1.0, determinant="up")
