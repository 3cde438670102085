"""Ranks against formulas for patterns that have one, planted ranks, and SciPy's own fits."""

import math

import jax
import numpy as np
import pytest
from scipy.optimize import least_squares

import factorflow as ff
from factorflow.reference.solutions.ranks import infimal_effective_rank, solution_ranks
from factorflow.reference.solutions.solution_set import SolutionSet
from solution_cases import HIDDEN, completion, gaussian

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64


def intervals(ranks):
    return (ranks.minimal_lower, ranks.minimal_upper), (ranks.infimal_lower, ranks.infimal_upper)


def assert_exact(problem, minimal, infimal, **options):
    ranks = solution_ranks(problem, **options)
    assert intervals(ranks) == ((minimal, minimal), (infimal, infimal))
    assert ranks.certified_minimal and ranks.certified_infimal
    assert ranks.attained == (minimal == infimal)
    assert_witnessed(problem, ranks)
    return ranks


def assert_witnessed(problem, ranks):
    """The products have the ranks and residuals that are claimed, by a plain decomposition."""
    solutions = SolutionSet.of(problem)
    size = np.linalg.norm(solutions.values)
    for product, rank in (
        (ranks.minimal_product, ranks.minimal_upper),
        (ranks.infimal_product, ranks.infimal_upper),
    ):
        sizes = np.linalg.svd(product, compute_uv=False)
        # Products of two factors of that many columns: rounding of the larger ones only.
        assert np.all(sizes[rank:] <= 1e-12 * max(sizes[0], 1e-300))
        # Products that run to infinity carry a rounding error in proportion to their size.
        room = ranks.tolerance * size + 1e-15 * 10 * np.linalg.norm(product)
        assert solutions.residual(product) <= max(room, 1e-6 * size * (rank < ranks.minimal_lower))


def planted(shape, rank, observed, seed):
    """Random entries of a random matrix of that rank; in NumPy, which compiles nothing."""
    generator = np.random.default_rng([seed, rank, observed])
    factors = [generator.standard_normal((dim, rank)) for dim in shape]
    matrix = factors[0] @ factors[1].T
    matrix.flat[generator.permutation(matrix.size)[observed:]] = HIDDEN
    return completion(matrix)


def scipy_residual(problem, rank, starts=8, seed=0):
    """The smallest relative residual of SciPy's least squares over factors of that rank."""
    solutions, generator = SolutionSet.of(problem), np.random.default_rng(seed)
    rows, columns = solutions.shape

    def misfit(flat):
        left, right = flat[: rows * rank].reshape(rows, rank), flat[rows * rank :]
        product = left @ right.reshape(rank, columns)
        return (solutions.measure(product) - solutions.values) / np.linalg.norm(solutions.values)

    costs = [
        least_squares(misfit, generator.standard_normal((rows + columns) * rank)).cost
        for _ in range(starts)
    ]
    return math.sqrt(2 * min(costs))


# --- Problems whose ranks are known


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_the_problem_on_which_norms_diverge(dim):
    """Its determinant is -1 at every solution, and the limit of rank dim - 1 is at infinity."""
    problem = ff.razin_cohen_problem(dim=dim)
    ranks = assert_exact(problem, minimal=dim, infimal=dim - 1)
    best = next(fit for fit in ranks.fits if fit.rank == dim - 1)
    # The hidden entry grows like one over the residual.
    assert best.kind == "diverging" and abs(best.slope + 1) < 0.1 and best.decades > 6
    assert abs(ranks.infimal_product[0, 0]) > 1e4


@pytest.mark.parametrize("eps", [0.5, 0.05, 1e-3])
def test_its_perturbation_has_a_solution_of_rank_one(eps):
    ranks = assert_exact(ff.razin_cohen_problem(eps=eps), minimal=1, infimal=1)
    # 1e-4: eps itself is rounded in single precision, and its inverse is compared.
    assert ranks.minimal_product[0, 0] == pytest.approx(1 / eps, rel=1e-4)


@pytest.mark.parametrize("seed", range(12))
def test_one_hidden_block_has_a_formula(seed):
    """[[?, A], [B, X]]: rank[A; X] + rank[B, X] - rank X, and the larger of the first two."""
    generator = np.random.default_rng(seed)
    above, below, left, right = generator.integers(1, 4, 4)
    matrix = np.rint(generator.uniform(-1, 1, (above + below, left + right)))
    inner = matrix[above:, left:]
    tall = np.linalg.matrix_rank(matrix[:, left:])
    wide = np.linalg.matrix_rank(matrix[above:])
    matrix[:above, :left] = HIDDEN
    shuffled = matrix[generator.permutation(above + below)][:, generator.permutation(left + right)]
    if not np.any(np.nan_to_num(shuffled)):
        pytest.skip("nothing but zeros")
    minimal = tall + wide - np.linalg.matrix_rank(inner)
    assert_exact(completion(shuffled), minimal=int(minimal), infimal=int(max(tall, wide)))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_triangle_of_zeros_has_full_rank(size):
    matrix = np.where(np.tri(size, k=-1), 0.0, HIDDEN) + np.diag(np.arange(size))
    matrix[np.diag_indices(size)] = np.arange(1.0, size + 1.0)
    shuffled = matrix[np.random.default_rng(0).permutation(size)]
    # Scaling rows and columns by powers of a growing number sends the zeros to zero.
    assert_exact(completion(shuffled), minimal=size, infimal=1)


def test_cycles_decide_rank_one():
    h = HIDDEN
    hexagon = [[1.0, 2.0, h], [h, 3.0, 1.0], [2.0, h, 5.0]]
    # Alternating products 1*3*5 and 2*1*2 differ, though no block of two rows is observed.
    ranks = assert_exact(completion(hexagon), minimal=2, infimal=2)
    assert [fit.rank for fit in ranks.fits] == [2]
    hexagon[2][2] = 4.0 / 3.0
    assert_exact(completion(hexagon), minimal=1, infimal=1)
    hexagon[0][0] = -1.0
    assert_exact(completion(hexagon), minimal=2, infimal=2)


def test_cycles_are_compared_at_the_tolerance():
    off = 1.0 + 1e-3
    problem = completion([[1.0, 1.0, HIDDEN], [HIDDEN, 1.0, 1.0], [off, HIDDEN, 1.0]])
    assert_exact(problem, minimal=2, infimal=2, tolerance=1e-5)
    assert_exact(problem, minimal=1, infimal=1, tolerance=1e-3)


def test_zeros_in_rank_one():
    h = HIDDEN
    # A zero within a component of nonzero entries: excluded even in the limit.
    assert_exact(completion([[1.0, 1.0, h], [1.0, 0.0, h], [h, h, 1.0]]), minimal=2, infimal=2)
    # Zeros between components, without a cycle: in the limit only.
    assert_exact(completion([[h, 1.0, h], [h, 0.0, 1.0], [1.0, h, 0.0]]), minimal=2, infimal=1)
    # With a cycle: x_1 < x_2 < x_3 < x_1 has no solution.
    assert_exact(completion([[1.0, 0.0, h], [h, 1.0, 0.0], [0.0, h, 1.0]]), minimal=2, infimal=2)
    # A column of zeros has a factor of zero.
    assert_exact(completion([[0.0, 1.0], [0.0, h]]), minimal=1, infimal=1)


def test_disconnected_blocks_share_their_factors():
    """The blocks between components are free: the rank is the larger of the two."""
    blocks = np.full((4, 5), HIDDEN)
    blocks[:2, :2], blocks[2:, 2:] = [[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0, 0.5], [3.0, 6.0, 1.5]]
    assert_exact(completion(blocks), minimal=1, infimal=1)
    blocks[1, 1] = 5.0
    assert_exact(completion(blocks), minimal=2, infimal=2)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shape", [(8, 9), (10, 7)])
def test_planted_ranks_are_found(shape, rank):
    problem = planted(shape, rank, 52, seed=rank)
    ranks = assert_exact(problem, minimal=rank, infimal=rank)
    assert ranks.fits[-1].kind == "attained"


def test_an_open_interval_says_why():
    """Minors know of rank one only; the fits of rank two failed, and so do SciPy's."""
    generator = np.random.default_rng(0)
    target = generator.standard_normal((6, 3)) @ generator.standard_normal((3, 6))
    measurements = generator.standard_normal((30, 6, 6))
    problem = ff.Sensing(measurements, np.tensordot(measurements, target, 2))
    ranks = solution_ranks(problem)
    assert intervals(ranks) == ((2, 3), (2, 3))
    assert not ranks.certified_minimal and not ranks.certified_infimal and ranks.attained is None
    assert [(fit.rank, fit.kind) for fit in ranks.fits] == [(2, "stuck"), (3, "attained")]
    best = scipy_residual(problem, 2, starts=4)
    # SciPy stops at relative changes of the cost of 1e-8.
    assert ranks.fits[0].residual <= best * (1 + 1e-3) and best > 1e-2
    assert_witnessed(problem, ranks)


def test_a_sparse_problem_is_fitted_from_many_starts():
    """66 observations for 63 dimensions: most starts end in local minima, and none is a proof."""
    problem = ff.random_low_rank_problem(jax.random.key(4), (12, 12), 3, 66)
    ranks = assert_exact(problem, minimal=3, infimal=3)
    assert ranks.fits[-1].starts > 1
    single = solution_ranks(problem, starts=1)
    assert intervals(single) == ((3, 4), (3, 4)) and single.fits[0].kind == "stuck"


def test_long_chains_of_zeros_do_not_overflow():
    """A triangle of 40 rows needs powers up to 39: rank one is out of the range of doubles."""
    size = 40
    matrix = np.where(np.tri(size, k=-1), 0.0, HIDDEN)
    matrix[np.diag_indices(size)] = 1.0
    ranks = solution_ranks(completion(matrix), max_rank=1)
    assert ranks.minimal_lower == ranks.minimal_upper == size
    assert ranks.infimal_lower == 1 and ranks.attained is None


@pytest.mark.parametrize("seed", range(6))
def test_no_fit_of_scipy_contradicts_a_lower_bound(seed):
    generator = np.random.default_rng(seed)
    matrix = np.where(
        generator.random((4, 4)) < 0.75, generator.integers(-2, 3, (4, 4)), HIDDEN
    ).astype(float)
    problem = completion(matrix)
    ranks = solution_ranks(problem)
    assert_witnessed(problem, ranks)
    assert 1 <= ranks.infimal_lower <= ranks.infimal_upper <= ranks.minimal_upper <= 4
    assert ranks.infimal_lower <= ranks.minimal_lower <= ranks.minimal_upper
    if ranks.infimal_lower > 1:
        assert scipy_residual(problem, ranks.infimal_lower - 1) > 1e-4


@pytest.mark.parametrize("tolerance", [1e-3, 0.05, 0.4])
def test_a_fully_observed_matrix_has_the_rank_of_its_singular_values(tolerance):
    generator = np.random.default_rng(2)
    turns = [np.linalg.qr(generator.standard_normal((dim, dim)))[0][:, :4] for dim in (5, 6)]
    matrix = (turns[0] * [1.0, 0.3, 0.02, 1e-4]) @ turns[1].T
    sizes = np.linalg.svd(matrix, compute_uv=False)
    tails = [np.linalg.norm(sizes[k:]) <= tolerance * np.linalg.norm(sizes) for k in range(6)]
    rank = tails.index(True)
    assert_exact(completion(matrix), minimal=rank, infimal=rank, tolerance=tolerance)


def test_observed_zeros_only_have_rank_zero():
    ranks = solution_ranks(completion([[0.0, HIDDEN], [0.0, 0.0]]))
    assert intervals(ranks) == ((0, 0), (0, 0)) and ranks.attained
    assert not ranks.minimal_product.any() and ranks.fits == ()


def test_a_single_row_has_rank_one():
    assert_exact(completion([[1.0, HIDDEN, -2.0]]), minimal=1, infimal=1)
    assert_exact(completion([[1.0], [HIDDEN], [-2.0]]), minimal=1, infimal=1)


# --- Sensing


@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
@pytest.mark.parametrize("count", [8, 11, 15])
def test_a_planted_rank_one_matrix_is_found_from_random_measurements(shape, count):
    assert_exact(gaussian(count, shape, None), minimal=1, infimal=1)


@pytest.mark.parametrize("seed", range(3))
def test_minors_exclude_rank_one(seed):
    values = np.random.default_rng(seed).standard_normal(13)
    problem = gaussian(13, (5, 4), values, seed)
    assert_exact(problem, minimal=2, infimal=2)
    assert scipy_residual(problem, 1) > 1e-2
    # At a tolerance that rank one meets, the proof must fail.
    loose = solution_ranks(problem, tolerance=min(1.05 * scipy_residual(problem, 1), 0.999))
    assert loose.infimal_lower == 1


@pytest.mark.parametrize("dim", [2, 3])
def test_measurements_of_entries_are_a_completion(dim):
    """The same problem through the door of sensing: minors instead of observed blocks."""
    entries = ff.razin_cohen_problem(dim=dim)
    measurements = np.zeros((entries.values.size, dim, dim))
    measurements[np.arange(entries.values.size), *np.asarray(entries.indices).T] = 1.0
    ranks = solution_ranks(ff.Sensing(measurements, entries.values))
    assert ranks.minimal_upper == dim and ranks.infimal_upper == dim - 1
    assert ranks.minimal_lower == 2
    assert ranks.infimal_lower == (1 if dim == 2 else ranks.infimal_lower)
    assert ranks.attained is (False if dim == 2 else None)


def test_enough_measurements_leave_one_solution():
    target = np.diag([3.0, 1.0, 0.0])
    measurements = np.random.default_rng(5).standard_normal((12, 3, 3))
    problem = ff.Sensing(measurements, np.tensordot(measurements, target, 2))
    ranks = assert_exact(problem, minimal=2, infimal=2)
    # The values carry the rounding of the job's precision, amplified by the measurements.
    np.testing.assert_allclose(ranks.minimal_product, target, atol=1e-4)


# --- The arguments


def test_ranks_beyond_the_largest_to_fit_are_not_tried():
    problem = planted((8, 9), 3, 52, seed=3)
    ranks = solution_ranks(problem, max_rank=2)
    assert max((fit.rank for fit in ranks.fits), default=0) <= 2
    assert ranks.minimal_upper == ranks.infimal_upper == 8
    assert_witnessed(problem, ranks)


def test_the_answer_is_deterministic():
    first, second = (solution_ranks(planted((9, 9), 2, 40, seed=1), seed=7) for _ in range(2))
    assert intervals(first) == intervals(second)
    np.testing.assert_array_equal(first.minimal_product, second.minimal_product)


def test_single_precision_has_its_own_tolerance():
    problem = planted((8, 9), 2, 52, seed=2)
    assert problem.values.dtype in (np.float32, np.float64)
    expected = 1e-8 if problem.values.dtype == np.float64 else 1e-5
    assert solution_ranks(problem).tolerance == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1, got 0.0.*pass 1e-8"),
        ({"tolerance": -1e-3}, "between 0 and 1, got -0.001"),
        ({"tolerance": 1.0}, "between 0 and 1, got 1.0"),
        ({"tolerance": math.nan}, "between 0 and 1, got nan"),
        ({"starts": 0}, "starts must be >= 1, got 0"),
        ({"max_rank": 0}, "max_rank must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        solution_ranks(ff.razin_cohen_problem(), **options)


def test_contradicting_observations_and_tensors_are_refused():
    measurements = np.ones((2, 2, 2))
    # Both ask for the sum of all entries: the best fit misses each by a half.
    with pytest.raises(ValueError, match=r"no matrix has a residual below 0\.707"):
        solution_ranks(ff.Sensing(measurements, [1.0, 2.0]))
    with pytest.raises(ValueError, match=r"no matrix has a residual below 0\.707"):
        infimal_effective_rank(ff.Sensing(measurements, [1.0, 2.0]))
    with pytest.raises(ValueError, match=r"\(2, 2, 2\)"):
        solution_ranks(ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0]))
