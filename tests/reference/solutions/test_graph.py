"""Components against a search written out, Jacobian ranks against counts that are known."""

import jax
import numpy as np
import pytest

import factorflow as ff
from factorflow.reference.solutions.graph import local_uniqueness, observation_graph

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64


def completion(mask, **options):
    """The observations where `mask`, with values that do not matter."""
    at = np.argwhere(np.asarray(mask, bool))
    return ff.Completion(np.shape(mask), at, np.arange(1.0, len(at) + 1.0), **options)


def random_mask(shape, density, seed):
    mask = np.random.default_rng(seed).random(shape) < density
    mask.flat[seed % mask.size] = True
    return mask


def reachable(mask):
    """Whether row and column vertices are connected: powers of the adjacency matrix."""
    rows, columns = mask.shape
    adjacency = np.eye(rows + columns, dtype=int)
    adjacency[:rows, rows:] = mask
    adjacency[rows:, :rows] = mask.T
    for _ in range(rows + columns):
        adjacency = np.minimum(adjacency @ adjacency, 1)
    return adjacency


BLOCKS = np.kron(np.eye(2), np.ones((2, 3)))


# --- The graph


@pytest.mark.parametrize("density", [0.05, 0.15, 0.3, 0.7])
@pytest.mark.parametrize("shape", [(6, 5), (1, 7), (4, 9)])
def test_components_are_the_classes_of_what_can_be_reached(shape, density):
    for seed in range(5):
        mask = random_mask(shape, density, seed)
        graph, reached = observation_graph(completion(mask)), reachable(mask)
        np.testing.assert_array_equal(graph.mask, mask)
        classes = {tuple(np.flatnonzero(row)) for row in reached}
        assert graph.count == len(classes)
        assert graph.connected == bool(np.all(reached))
        listed = {(*rows, *(shape[0] + columns)) for rows, columns in graph.components}
        assert listed == {members for members in classes if len(members) > 1}
        np.testing.assert_array_equal(graph.unobserved_rows, np.flatnonzero(~mask.any(axis=1)))
        np.testing.assert_array_equal(graph.unobserved_columns, np.flatnonzero(~mask.any(axis=0)))
        for (rows, columns), complete in zip(graph.components, graph.complete, strict=True):
            assert complete == all(mask[i, j] for i in rows for j in columns)
        firsts = [rows[0] for rows, _ in graph.components]
        assert firsts == sorted(firsts)


def test_the_two_cases_of_disconnection():
    complete = observation_graph(completion(BLOCKS))
    assert (complete.count, complete.connected, complete.complete) == (2, False, (True, True))
    assert complete.disconnected_complete
    rows, columns = complete.components[1]
    assert (rows.tolist(), columns.tolist()) == ([2, 3], [3, 4, 5])
    holed = BLOCKS.copy()
    holed[3, 5] = 0.0
    incomplete = observation_graph(completion(holed))
    assert (incomplete.count, incomplete.complete) == (2, (True, False))
    assert not incomplete.disconnected_complete
    bridged = BLOCKS.copy()
    bridged[0, 3] = 1.0
    assert observation_graph(completion(bridged)).connected


def test_a_fully_observed_matrix_is_connected_and_not_disconnected_complete():
    graph = observation_graph(completion(np.ones((3, 4))))
    assert graph.connected and graph.complete == (True,) and not graph.disconnected_complete
    assert (graph.density, graph.smallest_row_degree, graph.smallest_column_degree) == (1.0, 4, 3)


def test_unobserved_rows_and_columns_are_components_of_their_own():
    mask = np.zeros((3, 4))
    mask[0, 1] = mask[2, 1] = 1.0
    graph = observation_graph(completion(mask))
    assert graph.count == 1 + 1 + 3 and not graph.connected
    assert graph.unobserved_rows.tolist() == [1]
    assert graph.unobserved_columns.tolist() == [0, 2, 3]
    assert graph.disconnected_complete
    assert (graph.density, graph.smallest_row_degree, graph.smallest_column_degree) == (1 / 6, 0, 0)


def test_padding_and_repetition_change_nothing():
    plain = observation_graph(completion(BLOCKS))
    padded = observation_graph(completion(BLOCKS, room=20))
    twice = ff.Completion((2, 2), [[0, 1], [0, 1]], [2.0, 2.0])
    np.testing.assert_array_equal(plain.mask, padded.mask)
    assert observation_graph(twice).mask.tolist() == [[False, True], [False, False]]


def test_the_graph_is_of_matrix_completions():
    with pytest.raises(ValueError, match=r"needs a Completion, got Sensing.*one row"):
        observation_graph(ff.Sensing(np.ones((1, 2, 2)), [1.0]))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\).*more than two indices"):
        observation_graph(ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0]))


# --- Local uniqueness


@pytest.mark.parametrize("density", [0.15, 0.3, 0.5])
def test_rank_one_is_unique_where_the_graph_is_connected(density):
    """The Jacobian is a scaled incidence matrix: its rank is vertices minus components."""
    for seed in range(8):
        problem = completion(random_mask((5, 6), density, seed))
        graph, found = observation_graph(problem), local_uniqueness(problem, 1, seed=seed)
        assert found.jacobian_rank == 5 + 6 - graph.count
        assert found.unique == graph.connected
        assert found.freedom == graph.count - 1


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_fully_observed_matrix_is_unique_at_every_rank(rank):
    found = local_uniqueness(completion(np.ones((4, 6))), rank)
    assert found.dimension == rank * (4 + 6 - rank)
    assert found.unique and found.freedom == 0 and found.gap > 1e6
    assert found.slack == 24 - found.dimension


def test_the_jacobian_is_that_of_the_observations():
    """Against differences of the product, which are exact: it is linear in each factor."""
    mask = random_mask((5, 7), 0.6, 3)
    generator = np.random.default_rng(3)
    left, right = generator.standard_normal((5, 2)), generator.standard_normal((7, 2))
    columns = []
    for factor in (0, 1):
        for entry in np.ndindex((left, right)[factor].shape):
            ends = []
            for sign in (0.5, -0.5):
                pair = [left.copy(), right.copy()]
                pair[factor][entry] += sign
                ends.append((pair[0] @ pair[1].T)[mask])
            columns.append(ends[0] - ends[1])
    sizes = np.linalg.svd(np.array(columns), compute_uv=False)
    found = local_uniqueness(completion(mask), 2, factors=(left, right))
    assert found.jacobian_rank == np.sum(sizes > 1e-10 * sizes[0])
    assert not found.generic


def test_counts_that_are_known_at_rank_two():
    # Eight of nine entries fix the ninth through the determinant.
    mask = np.ones((3, 3))
    mask[0, 0] = 0.0
    found = local_uniqueness(completion(mask), 2)
    assert found.unique and (found.observations, found.dimension, found.slack) == (8, 8, 0)
    # With one observation less, counting forbids it.
    mask[1, 1] = 0.0
    fewer = local_uniqueness(completion(mask), 2)
    assert not fewer.unique and (fewer.slack, fewer.freedom) == (-1, 1)
    # Enough observations in all, but one row has a single one: one direction is left.
    lonely = np.ones((5, 5))
    lonely[0, 1:] = 0.0
    found = local_uniqueness(completion(lonely), 2)
    assert found.slack == 5 and found.freedom == 1


def test_disconnected_blocks_leave_the_rest_free():
    found = local_uniqueness(completion(BLOCKS), 1)
    assert found.freedom == 1 and not found.unique
    # At rank 2 the blocks are known, and the hidden 2x6 entries follow an invertible 2x2 matrix.
    assert local_uniqueness(completion(BLOCKS), 2).freedom == 4


@pytest.mark.parametrize("count", [3, 11, 12, 15])
def test_random_measurements_see_one_dimension_each(count):
    measurements = np.random.default_rng(1).standard_normal((count, 5, 4))
    found = local_uniqueness(ff.Sensing(measurements, np.ones(count)), 2)
    assert found.dimension == 14 and found.jacobian_rank == min(count, 14)
    assert found.unique == (count >= 14)


def test_measurements_that_others_imply_do_not_count():
    measurements = np.random.default_rng(1).standard_normal((3, 4, 4))
    problem = ff.Sensing(np.concatenate([measurements, measurements]), np.ones(6))
    found = local_uniqueness(problem, 1)
    assert (found.observations, found.jacobian_rank) == (3, 3)


def test_special_points_can_be_worse_than_generic_ones():
    problem = ff.Completion((2, 2), [[0, 0], [0, 1], [1, 0]], [0.0, 1.0, 0.0])
    assert local_uniqueness(problem, 1).unique
    # The second row is seen through a factor that is zero.
    point = np.array([[1.0], [1.0]]), np.array([[0.0], [1.0]])
    assert local_uniqueness(problem, 1, factors=point).freedom == 1


def test_random_low_rank_problems_are_unique_from_the_count_on():
    problem = ff.random_low_rank_problem(jax.random.key(0), (20, 15), 2, 200)
    found = local_uniqueness(problem, 2)
    assert found.unique and found.generic and found.gap > 1e6
    assert found.observations == 200


@pytest.mark.parametrize(
    ("rank", "options", "message"),
    [
        (0, {}, "rank must be >= 1, got 0"),
        (3, {}, r"at most min\(shape\) = 2, got 3"),
        (1, {"seed": -1}, "seed must be >= 0, got -1"),
        (1, {"factors": (np.ones((2, 1)), np.ones((2, 1)))}, r"shapes \(2, 1\) and \(3, 1\)"),
        (2, {"factors": (np.ones((2, 2)), np.eye(3, 2))}, "full rank 2, one has rank 1.*lower"),
        (1, {"factors": (np.full((2, 1), np.nan), np.ones((3, 1)))}, "factors must be finite"),
    ],
)
def test_bad_input_is_refused(rank, options, message):
    with pytest.raises(ValueError, match=message):
        local_uniqueness(completion(np.ones((2, 3))), rank, **options)


def test_tensors_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        local_uniqueness(ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0]), 1)
