"""The algorithms below `cp_rank`, against sums and Jacobians written out."""

import numpy as np
import pytest

from factorflow.reference.cp_fit import (
    _NormalEquations,
    algebraic_starts,
    alternate,
    balanced,
    best_starts,
    levenberg_marquardt,
    random_starts,
    recompose,
    square_errors,
)
from factorflow.reference.unfoldings import bipartitions
from tolerances import assert_close

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64

SHAPES = [(4, 3, 2), (2, 5, 3), (2, 3, 2, 3)]


def starts(shape, rank, count=1, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((count, dim, rank)) for dim in shape]


def outer_products(factors, start) -> np.ndarray:
    """The sum of outer products, one component after the other."""
    total = 0.0
    for component in range(factors[0].shape[2]):
        product = np.array(1.0)
        for factor in factors:
            product = np.multiply.outer(product, factor[start, :, component])
        total = total + product
    return np.asarray(total)


def jacobian(factors) -> np.ndarray:
    """Of the only start: the sum is linear in every entry, so differences are derivatives."""
    columns = []
    for mode, factor in enumerate(factors):
        for index in np.ndindex(factor.shape[1:]):
            moved = [np.array(other) for other in factors]
            moved[mode][(0, *index)] += 1.0
            columns.append((outer_products(moved, 0) - outer_products(factors, 0)).reshape(-1))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_recompose_adds_outer_products(shape):
    factors = starts(shape, 3, count=2)
    for start in range(2):
        assert_close(recompose(factors)[start], outer_products(factors, start))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_a_damped_step_solves_the_normal_equations_of_the_jacobian(shape, damping):
    factors = starts(shape, 2)
    tensor = np.random.default_rng(1).standard_normal(shape)
    residual = tensor - recompose(factors)
    normal = _NormalEquations(shape, 2)
    # Twice: what a first use leaves in the buffers must not show.
    normal.update(residual, [2.0 * factor for factor in factors])
    normal.damped_step(damping)
    normal.update(residual, factors)
    step = normal.damped_step(damping)
    derivative = jacobian(factors)
    matrix = derivative.T @ derivative
    right = derivative.T @ residual.reshape(-1)
    expected = np.linalg.solve(matrix + damping * np.eye(len(matrix)), right)
    flat = np.concatenate([part.reshape(-1) for part in step])
    assert_close(flat, expected, "linear_algebra", scale=float(np.max(np.abs(expected))))
    assert_close(normal.scale, np.trace(matrix) / len(matrix))
    # ||r||^2 - ||r - J step||^2 of the linear model.
    model = residual.reshape(-1) - derivative @ expected
    gain = np.sum(residual**2) - np.sum(model**2)
    assert_close(normal.predicted_gain(step, damping), gain, "linear_algebra")


@pytest.mark.parametrize(
    ("shape", "rank"), [((4, 3, 2), 3), ((5, 5, 5), 5), ((3, 4, 3, 2), 4), ((2, 3, 2, 3, 2), 4)]
)
def test_algebraic_starts_are_exact(shape, rank):
    tensor = recompose(starts(shape, rank, seed=3))[0]
    found = algebraic_starts(tensor, rank, 4, np.random.default_rng(0))
    assert found is not None
    assert [factor.shape for factor in found] == [(4, dim, rank) for dim in shape]
    best = best_starts(tensor, found, 1)
    # The eigenvectors of a random pair have condition numbers of 10 to 1000.
    assert square_errors(tensor, best)[0] < 1e-20 * np.sum(tensor**2)


@pytest.mark.parametrize(("shape", "rank"), [((4, 3, 2), 4), ((2, 2, 2), 3), ((3, 3, 1), 2)])
def test_there_are_no_algebraic_starts_beyond_the_sizes_of_the_modes(shape, rank):
    tensor = np.random.default_rng(0).standard_normal(shape)
    assert algebraic_starts(tensor, rank, 4, np.random.default_rng(0)) is None


def test_the_two_fits_reach_an_exact_tensor():
    tensor = recompose(starts((4, 4, 4), 4, seed=1))[0]
    target = 1e-12 * float(np.sum(tensor**2))
    first = random_starts(tensor, 4, 16, np.random.default_rng(0))
    swept = alternate(tensor, first, target, 40)
    assert np.min(square_errors(tensor, swept)) < 0.1 * np.min(square_errors(tensor, first))
    best = best_starts(tensor, swept, 1)
    assert square_errors(tensor, best)[0] == np.min(square_errors(tensor, swept))
    refined = levenberg_marquardt(tensor, best, target, 60)
    assert square_errors(tensor, refined)[0] < target


def test_a_step_never_makes_a_fit_worse_and_a_fit_gives_up():
    """A generic 4x4x4 tensor has rank 7 or more: a fit of 3 components ends at a minimum."""
    tensor = np.random.default_rng(2).standard_normal((4, 4, 4))
    start = random_starts(tensor, 3, 1, np.random.default_rng(0))
    errors = [
        square_errors(tensor, levenberg_marquardt(tensor, start, 1e-12, iterations))[0]
        for iterations in (0, 1, 2, 4, 8, 1000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0.05 * np.sum(tensor**2)


def test_balanced_columns_have_equal_norms_and_vanished_components_stay():
    factors = starts((4, 3, 2), 3)
    factors[1][0, :, 2] = 0.0
    norms = [np.linalg.norm(factor[0], axis=0) for factor in balanced(factors)]
    assert_close(norms[0], norms[1])
    assert_close(norms[0], norms[2])
    assert norms[0][2] == 0.0
    assert_close(recompose(balanced(factors)), recompose(factors))


@pytest.mark.parametrize("order", [2, 3, 4, 5, 8])
def test_every_bipartition_comes_once(order):
    sides = list(bipartitions(order))
    everything = frozenset(range(order))
    splits = {frozenset([frozenset(side), everything - set(side)]) for side in sides}
    assert len(splits) == len(sides) == 2 ** (order - 1) - 1


def test_at_high_order_bipartitions_stay_few():
    sides = list(bipartitions(20))
    assert len(set(sides)) == len(sides) < 20**2
    assert (19,) in sides and (3, 11) in sides and tuple(range(4, 14)) in sides
