"""Identity factors in closed form."""

import itertools

import jax
import numpy as np
import pytest

import factorflow as ff
from tolerances import assert_close


def factors_by_hand(widths, alpha: float) -> list[np.ndarray]:
    factors = []
    for columns, rows in itertools.pairwise(widths):
        factor = np.zeros((rows, columns))
        for i in range(min(rows, columns)):
            factor[i, i] = alpha
        factors.append(factor)
    return factors


REFERENCES = {ff.Identity: factors_by_hand}


@pytest.mark.parametrize(
    ("shape", "hidden"), [((2, 2), (2, 2)), ((3, 2), (4,)), ((3, 3), (2, 5)), ((2, 3), ())], ids=str
)
def test_factors_and_product(shape, hidden):
    fz = ff.DeepMatrix(shape, depth=len(hidden) + 1, hidden=hidden)
    alpha = 0.3
    for initializer in (
        ff.Identity(factor_scale=alpha),
        ff.Identity(product_scale=alpha**fz.depth),
    ):
        factors = jax.jit(lambda initializer: initializer(fz))(initializer)
        for actual, expected in zip(
            factors, REFERENCES[ff.Identity](fz.widths, alpha), strict=True
        ):
            assert_close(actual, expected)
        product = alpha**fz.depth * np.eye(*shape)
        product[min(fz.widths) :] = 0.0  # what a narrow hidden width cuts off
        composed = np.linalg.multi_dot([np.eye(shape[0]), *map(np.asarray, factors[::-1])])
        assert_close(composed.astype(factors[0].dtype), product)


def test_negative_determinant_negates_the_first_row():
    fz = ff.DeepMatrix((3, 3), depth=2, hidden=4)
    for determinant, first in [("positive", 0.25), ("negative", -0.25)]:
        initializer = ff.Identity(product_scale=0.25, determinant=determinant)
        product = jax.jit(lambda initializer=initializer: fz.compose(initializer(fz)))()
        assert_close(product, np.diag([first, 0.25, 0.25]))
