"""The named problems against tables written out by hand, and numpy's rank."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._problem import razin_cohen_parameters
from factorflow._problem.catalogue import (
    block_completion_problem,
    connected_completion_problem,
)
from tolerances import assert_close

UNOBSERVED = np.nan


def razin_cohen_table(dim: int, z: float, z_prime: float, eps: float) -> np.ndarray:
    tables = {
        2: [[UNOBSERVED, z], [z_prime, eps]],
        5: [
            [UNOBSERVED, z, 0, 0, 0],
            [z_prime, eps, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 0, 1, 0],
            [0, 0, 0, 0, 1],
        ],
    }
    return np.array(tables[dim], float)


def unfolding_ranks(target) -> list[int]:
    """Ranks of the matricizations along each mode: a CP rank is never below them."""
    array = np.asarray(target, np.float64)
    tolerance = 100 * np.finfo(np.asarray(target).dtype).eps
    return [
        int(np.linalg.matrix_rank(np.moveaxis(array, k, 0).reshape(d, -1), rtol=tolerance))
        for k, d in enumerate(array.shape)
    ]


REFERENCES = {
    ff.razin_cohen_problem: razin_cohen_table,
    ff.random_low_rank_problem: unfolding_ranks,
    razin_cohen_parameters: razin_cohen_table,
    ff.block_completion_problem: unfolding_ranks,
    ff.connected_completion_problem: unfolding_ranks,
}


# --- Razin and Cohen


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize(("z", "z_prime", "eps"), [(1.0, 1.0, 0.0), (-2.0, 0.5, 0.25)])
def test_razin_cohen_entries(dim, z, z_prime, eps):
    problem = ff.razin_cohen_problem(dim=dim, z=z, z_prime=z_prime, eps=eps)
    table = REFERENCES[ff.razin_cohen_problem](dim, z, z_prime, eps)
    indices = map(tuple, problem.indices.tolist())
    observed = dict(zip(indices, problem.values.tolist(), strict=True))
    expected = {i: table[i] for i in np.ndindex(dim, dim) if not np.isnan(table[i])}
    assert observed == expected
    assert len(problem.values) == dim * dim - 1
    assert problem.shape == (dim, dim)
    assert problem.target is None


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize(("z", "z_prime", "eps"), [(1.0, 1.0, 0.0), (-2.0, 0.5, 0.25)])
def test_razin_cohen_parameters_are_read_off_the_observations(dim, z, z_prime, eps):
    table = REFERENCES[razin_cohen_parameters](dim, z, z_prime, eps)
    known = list(zip(*np.nonzero(~np.isnan(table)), strict=True))
    # In any order, and from whatever made the problem.
    problem = ff.Completion((dim, dim), known[::-1], [table[index] for index in known[::-1]])
    assert razin_cohen_parameters(problem) == (dim, z, z_prime, eps)


def changed(**changes) -> ff.Completion:
    table = razin_cohen_table(5, 1.0, 1.0, 0.0)
    for index, value in changes.pop("entries", {}).items():
        table[index] = value
    known = list(zip(*np.nonzero(~np.isnan(table)), strict=True))
    return ff.Completion((5, 5), known, [table[index] for index in known], **changes)


OTHERS = {
    "an observed corner": changed(entries={(0, 0): 3.0}),
    "another hidden entry": changed(entries={(0, 1): UNOBSERVED}),
    "another diagonal": changed(entries={(3, 3): 2.0}),
    "an entry off the diagonal": changed(entries={(4, 2): 1e-3}),
    "another penalty": changed(loss="huber"),
    "another normalization": changed(normalization="mean"),
    "not square": ff.Completion((2, 3), [[0, 1]], [1.0]),
    "order 1": ff.Completion((1, 1), [[0, 0]], [1.0]),
    "sensing": ff.Sensing(np.eye(4)[1:].reshape(3, 2, 2), [1.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("problem", OTHERS.values(), ids=OTHERS)
def test_other_problems_have_no_razin_cohen_parameters(problem):
    assert razin_cohen_parameters(changed()) == (5, 1.0, 1.0, 0.0)
    assert razin_cohen_parameters(problem) is None


def test_razin_cohen_defaults():
    problem = ff.razin_cohen_problem()
    np.testing.assert_array_equal(problem.observed_entries(), [[0, 1], [1, 0]])
    assert (problem.normalization, problem.penalty) == ("half_sum", "squared")


def test_razin_cohen_loss_by_hand(dtype):
    product = ff.Dense(jnp.asarray([[7.0, 0.5], [2.0, -1.0]], dtype))
    loss = ff.razin_cohen_problem(2, z=1.0, z_prime=-1.0, eps=0.5).loss(product)
    assert_close(loss, (0.5**2 + 3.0**2 + 1.5**2) / 2)


@pytest.mark.parametrize("dim", [2, 5])
def test_every_exact_solution_has_determinant_minus_z_z_prime(dim):
    solution = np.array(ff.razin_cohen_problem(dim, z=2.0, z_prime=3.0).observed_entries())
    for corner in (-1e3, 0.0, 5.0):
        solution[0, 0] = corner
        # An eliminated corner times epsilon.
        np.testing.assert_allclose(np.linalg.det(solution), -6.0, rtol=1e-3 * 2**-13)


# --- Random low rank

CASES = [((7, 5), 2, 20), ((3, 4, 5), 2, 20)]


@pytest.fixture(scope="module", params=CASES, ids=str)
def random_case(request):
    shape, rank, n_observed = request.param
    problem = ff.random_low_rank_problem(jax.random.key(5), shape, rank, n_observed)
    return problem, shape, rank, n_observed


def test_random_rank_and_norm(random_case, dtype):
    problem, shape, rank, _ = random_case
    assert problem.target.shape == shape
    assert problem.target.dtype == dtype
    ranks = REFERENCES[ff.random_low_rank_problem](problem.target)
    assert ranks == [min(rank, d) for d in shape]
    # The norm, the division and the product are rounded once or twice each, and squared.
    square = np.sum(np.asarray(problem.target, np.float64) ** 2)
    np.testing.assert_allclose(square, math.prod(shape), rtol=8 * np.finfo(dtype).eps)
    assert_close(jnp.sqrt(jnp.sum(problem.target**2)), math.sqrt(math.prod(shape)))


def test_random_observations_are_distinct_entries_of_the_target(random_case):
    problem, shape, _, n_observed = random_case
    indices = [tuple(index) for index in problem.indices.tolist()]
    assert len(set(indices)) == len(indices) == n_observed
    assert all(0 <= i < d for index in indices for i, d in zip(index, shape, strict=True))
    np.testing.assert_array_equal(problem.values, [problem.target[index] for index in indices])
    assert float(problem.loss(ff.Dense(problem.target))) == 0.0


def test_random_norm_on_request():
    key = jax.random.key(1)
    problem = ff.random_low_rank_problem(key, (7, 5), 2, 20, frobenius_norm=3.0)
    plain = ff.random_low_rank_problem(key, (7, 5), 2, 20, normalization="mean")
    assert_close(jnp.sqrt(jnp.sum(problem.target**2)), 3.0)
    assert_close(problem.target * (math.sqrt(35) / 3.0), plain.target)
    np.testing.assert_array_equal(problem.indices, plain.indices)
    assert (problem.normalization, plain.normalization) == ("half_sum", "mean")


def test_random_loss_and_room_reach_the_problem(dtype):
    def make(**options):
        return ff.random_low_rank_problem(jax.random.key(3), (3, 4, 2), 2, 10, **options)

    plain, padded = make(loss="huber"), make(loss="huber", room=24)
    assert (padded.penalty, padded.room, padded.values.shape) == ("huber", 24, (24,))
    np.testing.assert_array_equal(padded.target, plain.target)
    product = ff.Dense(jnp.ones((3, 4, 2), dtype))
    assert_close(padded.loss(product), plain.loss(product))
    assert float(make().loss(product)) != float(plain.loss(product))


def test_random_data_depend_on_the_key_alone():
    def make(seed):
        return ff.random_low_rank_problem(jax.random.key(seed), (7, 5), 2, 20)

    jax.tree.map(np.testing.assert_array_equal, make(0), make(0))
    assert not np.allclose(make(0).target, make(1).target)
    assert make(0).indices.tolist() != make(1).indices.tolist()


def test_random_draws_are_uniform_and_modes_independent():
    count = 2000
    keys = jax.random.split(jax.random.key(2), count)

    def draw(key):
        problem = ff.random_low_rank_problem(key, (4, 4), 1, 5)
        return problem.indices, problem.target

    indices, targets = map(np.asarray, jax.jit(jax.vmap(draw))(keys))
    rows, columns = np.moveaxis(indices, -1, 0)
    counts = np.bincount((4 * rows + columns).ravel(), minlength=16)
    probability = 5 / 16
    error = math.sqrt(count * probability * (1 - probability))
    assert np.all(np.abs(counts - count * probability) < 5 * error)
    # Factors of one mode repeated in another would show on the diagonal, and as symmetry.
    mean = np.mean(targets, axis=0)
    assert np.all(np.abs(mean) < 5 * np.std(targets, axis=0) / math.sqrt(count))
    products = targets[:, 0, 1] * targets[:, 1, 0]
    # E[W_01 W_10] = E[a_0 a_1] E[b_0 b_1] = 0.
    assert abs(np.mean(products)) < 5 * np.std(products) / math.sqrt(count)


# --- Blocks and connected graphs


def mask_of(problem) -> np.ndarray:
    mask = np.zeros(problem.shape, bool)
    mask[tuple(np.asarray(problem.indices).T)] = True
    return mask


def reachable(mask: np.ndarray) -> np.ndarray:
    """Rows and columns that a walk along observed entries from the first row comes to."""
    rows, columns = np.arange(mask.shape[0]) == 0, np.zeros(mask.shape[1], bool)
    for _ in range(sum(mask.shape)):
        columns |= mask[rows].any(axis=0)
        rows |= mask[:, columns].any(axis=1)
    return np.concatenate([rows, columns])


def test_blocks_on_the_diagonal_are_observed():
    problem = block_completion_problem(jax.random.key(1), (2, 1, 2), (3, 1, 1), rank=1)
    expected = np.zeros((5, 5), bool)
    expected[:2, :3] = expected[2, 3] = expected[3:, 4] = True
    np.testing.assert_array_equal(mask_of(problem), expected)
    assert problem.values.shape == (9,)
    assert REFERENCES[ff.block_completion_problem](problem.target) == [1, 1]
    assert float(problem.loss(ff.Dense(problem.target))) == 0.0
    assert_close(jnp.sqrt(jnp.sum(problem.target**2)), 5.0)


@pytest.mark.parametrize("n_observed", [10, 14, 30])
def test_connected_observations(n_observed):
    for seed in range(5):
        problem = connected_completion_problem(jax.random.key(seed), (6, 5), 2, n_observed)
        mask = mask_of(problem)
        assert mask.sum() == n_observed == len(problem.values)
        assert np.all(reachable(mask))
        assert REFERENCES[ff.connected_completion_problem](problem.target) == [2, 2]
        np.testing.assert_array_equal(
            problem.values, np.asarray(problem.target)[tuple(problem.indices.T)]
        )


def test_connected_graphs_differ_and_every_entry_has_its_turn():
    masks = [
        mask_of(connected_completion_problem(jax.random.key(seed), (4, 3), 1, 6))
        for seed in range(60)
    ]
    counts = np.sum(masks, axis=0)
    # Half of the entries, alike for all by symmetry: 30 of 60, give or take 5 deviations.
    assert np.all(np.abs(counts - 30) < 5 * math.sqrt(60 / 4))
    assert len({mask.tobytes() for mask in masks}) > 50


def test_padding_leaves_the_new_completions_as_they_are(dtype):
    product = ff.Dense(jnp.ones((4, 5), dtype))
    key = jax.random.key(2)
    makers = [
        lambda room: block_completion_problem(key, (2, 2), (2, 3), 1, room=room),
        lambda room: connected_completion_problem(key, (4, 5), 1, 9, room=room),
    ]
    for make in makers:
        assert make(20).values.shape == (20,)
        assert_close(make(20).loss(product), make(None).loss(product))


# --- Bad input


def random(**kwargs):
    arguments = {"shape": (7, 5), "rank": 2, "n_observed": 20, **kwargs}
    return lambda: ff.random_low_rank_problem(jax.random.key(0), **arguments)


BAD_INPUT = [
    ("dimension 1", lambda: ff.razin_cohen_problem(dim=1), r"dim must be 2 or more, got 1"),
    ("NaN observation", lambda: ff.razin_cohen_problem(eps=math.nan), r"values holds nan at"),
    ("infinite observation", lambda: ff.razin_cohen_problem(z=math.inf), r"values holds inf at"),
    ("rank 0", random(rank=0), r"rank must be 1 or more, got 0"),
    (
        "too many observations",
        random(n_observed=36),
        r"between 1 and the 35 entries of shape \(7, 5\), got 36",
    ),
    ("no observations", random(n_observed=0), r"between 1 and the 35 entries.*got 0"),
    ("too little room", random(room=19), r"room=19 does not hold the 20 observations"),
    ("misspelt loss", random(loss="hubr"), r"Did you mean 'huber'"),
    ("misspelt normalization", random(normalization="means"), r"Did you mean 'mean'"),
    (
        "blocks without partners",
        lambda: block_completion_problem(jax.random.key(0), (2, 2), (3,)),
        r"one size of 1 or more per block, got \(2, 2\) and \(3,\)",
    ),
    (
        "an empty block",
        lambda: block_completion_problem(jax.random.key(0), (2, 0), (3, 1)),
        r"one size of 1 or more per block",
    ),
    (
        "blocks of rank 0",
        lambda: block_completion_problem(jax.random.key(0), rank=0),
        r"rank must be 1 or more, got 0",
    ),
    (
        "too few to connect",
        lambda: connected_completion_problem(jax.random.key(0), (6, 5), 1, 9),
        r"between 10, which connect, and the 30 entries of shape \(6, 5\), got 9",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
