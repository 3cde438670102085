"""Sizes are integers; a product of another shape is refused, not broadcast."""

import jax
import jax.numpy as jnp
import pytest

import factorflow as ff

BAD_INPUT = [
    ("depth", lambda: ff.DeepMatrix((2, 2), depth=2.5), "depth counts .* got 2.5"),
    ("shape", lambda: ff.DeepMatrix((2, 2.5), depth=2), "shape counts .* got 2.5"),
    ("hidden", lambda: ff.DeepMatrix((2, 2), depth=2, hidden=1.5), "hidden counts .* got 1.5"),
    (
        "product of another shape",
        lambda: ff.razin_cohen_problem().loss(ff.Dense(jnp.ones((1, 2)))),
        r"problem's shape \(2, 2\), got \(1, 2\)",
    ),
    (
        "singular product with a sign",
        lambda: ff.Balanced(product=[[1.0, 0.0], [0.0, 0.0]], determinant="positive")(
            ff.DeepMatrix((2, 2), 2)
        ),
        "the product is singular",
    ),
    (
        "norm of the ground truth",
        lambda: ff.random_low_rank_problem(jax.random.key(0), (2, 2), 1, 1, frobenius_norm=0.0),
        "frobenius_norm must be positive",
    ),
]


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in BAD_INPUT])
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_determinant_of_tiny_entries_does_not_underflow():
    tiny = jnp.finfo(jnp.result_type(float)).tiny
    scale = tiny**0.7
    sign, log = ff.Dense(scale * jnp.array([[1.0, 2.0], [3.0, 4.0]])).log_determinant()
    assert float(sign) == -1
    # log 2 + 2 log scale, to the rounding of a logarithm of size 1000 (100 in float32).
    assert float(log) == pytest.approx(float(jnp.log(2.0) + 2 * jnp.log(scale)), rel=1e-6)
