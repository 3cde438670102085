"""CP ranks against tensors of known rank, sums written out, and TensorLy's own fits."""

import itertools
import math
import os
import signal
import threading
import time
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorly
from tensorly.decomposition import parafac

import factorflow as ff
from factorflow.reference import cp_rank
from rational import square_distance, square_norm

# In double precision whatever the session's: once is enough.
pytestmark = pytest.mark.x64

LETTERS = "abcdefghi"


def compose(factors) -> np.ndarray:
    modes = LETTERS[: len(factors)]
    return np.einsum(",".join(mode + "z" for mode in modes) + "->" + modes, *factors)


def planted(shape, rank, seed, noise_mse=0.0) -> np.ndarray:
    """A sum of Gaussian components of norm one, plus noise of that mean square."""
    generator = np.random.default_rng([seed, rank, *shape])
    tensor = compose([generator.standard_normal((dim, rank)) for dim in shape])
    noise = math.sqrt(noise_mse) * generator.standard_normal(shape)
    return tensor / np.linalg.norm(tensor) + noise


def masked_rank_one(kept, seed=0) -> np.ndarray:
    tensor = planted((8, 8, 8), 1, seed)
    where = np.random.default_rng(seed).permutation(tensor.size)[kept:]
    tensor.reshape(-1)[where] = 0.0
    return tensor


def matrix_multiplication() -> np.ndarray:
    """Of 2x2 matrices: Strassen's seven products are as few as there can be."""
    tensor = np.zeros((2, 2, 2, 2, 2, 2))
    for i, j, k in itertools.product(range(2), repeat=3):
        tensor[i, j, j, k, k, i] = 1.0
    return tensor.reshape(4, 4, 4)


def w_state() -> np.ndarray:
    tensor = np.zeros((2, 2, 2))
    tensor[0, 0, 1] = tensor[0, 1, 0] = tensor[1, 0, 0] = 1.0
    return tensor


def superdiagonal(order, dim) -> np.ndarray:
    tensor = np.zeros((dim,) * order)
    tensor[(np.arange(dim),) * order] = np.arange(1.0, dim + 1.0)
    return tensor


def ranks(bounds) -> tuple[int, int]:
    return bounds.lower, bounds.upper


def assert_meets(bounds, tensor, mse):
    """The factors have the right shapes and meet the tolerance, by einsum."""
    assert [factor.shape for factor in bounds.factors] == [(d, bounds.upper) for d in tensor.shape]
    assert all(factor.dtype == np.float64 for factor in bounds.factors)
    assert bounds.lower <= bounds.upper
    assert bounds.certified == (bounds.lower == bounds.upper)
    assert np.mean((tensor - compose(bounds.factors)) ** 2) < mse


# --- Known ranks


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 8, 8, 8), (3, 4, 5, 2, 3)])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("noise_mse", [1e-8, 1e-12])
def test_tensors_as_training_leaves_them_are_certified(shape, rank, noise_mse):
    tensor = planted(shape, rank, 0, noise_mse)
    bounds = cp_rank(tensor)
    assert_meets(bounds, tensor, 1e-6)
    # The planted components are far above the tolerance: fewer do not do.
    assert ranks(bounds) == (rank, rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_noise_just_below_the_tolerance_is_left_out(rank):
    tensor = planted((8, 8, 8), rank, 0, noise_mse=0.9e-6)
    bounds = cp_rank(tensor)
    assert_meets(bounds, tensor, 1e-6)
    assert ranks(bounds) == (rank, rank)


def test_within_the_sizes_of_the_modes_no_random_start_is_needed():
    """Ten digits from one fit: a single random start of rank 8 does not get there."""
    tensor = planted((8, 8, 8), 8, 0)
    bounds = cp_rank(tensor, relative_error=1e-10, restarts=1, max_fits=1)
    assert_meets(bounds, tensor, 1e-20 / tensor.size)
    assert ranks(bounds) == (8, 8)


@pytest.mark.parametrize(
    ("rank", "seed"), [(5, 0), (7, 1), (8, 0), (9, 0), (10, 1), (11, 0), (12, 1)]
)
def test_planted_ranks_are_found(rank, seed):
    tensor = planted((8, 8, 8), rank, seed)
    bounds = cp_rank(tensor, relative_error=1e-4, max_fits=9)
    assert_meets(bounds, tensor, 1e-8 / tensor.size)
    # The unfoldings of a tensor in general position have the rank min(8, rank).
    assert ranks(bounds) == (min(8, rank), rank)
    loose = cp_rank(tensor, max_fits=6)
    assert_meets(loose, tensor, 1e-6)
    assert loose.upper <= rank


@pytest.mark.parametrize("order", [3, 4, 5])
def test_superdiagonal_tensors_have_full_rank(order):
    tensor = superdiagonal(order, 4)
    bounds = cp_rank(tensor, relative_error=1e-8)
    assert ranks(bounds) == (4, 4)
    assert_meets(bounds, tensor, 1e-16 * np.mean(tensor**2))


def test_matrix_multiplication_takes_strassens_seven():
    tensor = matrix_multiplication()
    bounds = cp_rank(tensor, relative_error=1e-9)
    assert_meets(bounds, tensor, 1e-18 * np.mean(tensor**2))
    assert ranks(bounds) == (4, 7)
    assert not bounds.certified


def test_a_rank_above_the_border_rank_shows_only_where_components_explode():
    """Rank 3, border rank 2: two components come near, with a norm growing like 1/distance."""
    tensor = w_state()
    for relative_error in (1e-1, 1e-3):
        bounds = cp_rank(tensor, relative_error=relative_error)
        assert ranks(bounds) == (2, 2)
        assert_meets(bounds, tensor, relative_error**2 * np.mean(tensor**2))
    # Further on, whether the doubles near rank 2 suffice is a matter of luck, but never a claim.
    fine = cp_rank(tensor, relative_error=1e-11)
    assert fine.lower == 2 <= fine.upper <= 3
    assert_meets_exactly(fine, tensor, 1e-11)


def rotated(tensor, seed) -> np.ndarray:
    generator = np.random.default_rng(seed)
    for mode, dim in enumerate(tensor.shape):
        turn = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
        tensor = np.moveaxis(np.tensordot(turn, tensor, (1, mode)), 0, mode)
    return tensor


def assert_meets_exactly(bounds, tensor, relative_error):
    """In rational arithmetic: rounding has no say."""
    distance = square_distance(tensor, bounds.factors)
    assert distance < Fraction(relative_error) ** 2 * square_norm(tensor)


@pytest.mark.parametrize("relative_error", [1e-3, 1e-7, 1e-8, 3e-9])
def test_factors_meet_the_tolerance_in_exact_arithmetic(relative_error):
    """Near border rank 2, components of size 1e8 cancel: in doubles their residual is rounding."""
    certified = 0
    for seed in range(21):
        tensor = rotated(w_state(), seed)
        bounds = cp_rank(tensor, relative_error=relative_error, max_fits=1)
        assert_meets_exactly(bounds, tensor, relative_error)
        assert bounds.lower == 2
        certified += bounds.certified
    assert certified == 21 if relative_error > 1e-8 else certified < 21


@pytest.mark.parametrize("relative_error", [0.3, 1e-2, 1e-6, 1e-10])
def test_random_factors_meet_the_tolerance_in_exact_arithmetic(relative_error):
    for seed, shape in enumerate([(3, 2, 2), (2, 2, 2, 2), (3, 3), (2, 4, 3)]):
        for tensor in (planted(shape, 2, seed, 1e-6), 1e80 * planted(shape, 2, seed)):
            bounds = cp_rank(tensor, relative_error=relative_error, max_fits=4)
            assert_meets_exactly(bounds, tensor, relative_error)


def test_the_second_group_of_modes_can_exceed_every_single_mode():
    """Rank 4 with modes of size 2: only unfoldings of three modes against three can show it."""
    tensor = planted((2,) * 6, 4, 0)
    bounds = cp_rank(tensor, relative_error=1e-6)
    assert ranks(bounds) == (4, 4)
    assert_meets(bounds, tensor, 1e-12 * np.mean(tensor**2))


@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 1), 1), ((1, 5), 1), ((6, 4), 6), ((1, 6, 4), 6), ((4, 1, 1, 6), 4)]
)
@pytest.mark.parametrize("mse", [1e-12, 0.02, 0.1, 0.3])
def test_matrices_are_exact(shape, rows, mse):
    tensor = np.random.default_rng(3).standard_normal(shape)
    squares = np.linalg.svd(tensor.reshape(rows, -1), compute_uv=False) ** 2
    enough = [np.sum(squares[r:]) / tensor.size < mse for r in range(len(squares) + 1)]
    bounds = cp_rank(tensor, mse)
    assert ranks(bounds) == (enough.index(True), enough.index(True))
    assert_meets(bounds, tensor, mse)


@pytest.mark.parametrize("shape", [(5, 6), (4, 4, 4)])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-9])
def test_factors_meet_a_tolerance_that_rounding_decides(shape, size):
    """The last component has exactly the size of the tolerance."""
    tensor = np.zeros(shape)
    tensor[(np.arange(4),) * len(shape)] = 1.0, 1.0, 1.0, size
    turns = np.linalg.qr(np.random.default_rng(0).standard_normal((shape[0], shape[0])))[0]
    tensor = np.tensordot(turns, tensor, 1)
    for factor in (1.0 - 1e-12, 1.0, 1.0 + 1e-12):
        mse = factor * size**2 / tensor.size
        bounds = cp_rank(tensor, mse, max_fits=2)
        assert_meets(bounds, tensor, mse)
        assert bounds.lower in (3, 4) and bounds.upper >= 3


def test_a_tensor_below_the_tolerance_has_rank_zero():
    for tensor, options in [
        (np.zeros((3, 4, 5)), {}),
        (np.zeros((3, 4)), {"relative_error": 0.1}),
        (np.full((3, 4, 5), 0.9e-3), {}),
        (np.full((2, 2, 2), 1e-300), {"mse": 1e-6}),
        (np.full((2, 2, 2), 5e-324), {"mse": 1e300}),
    ]:
        bounds = cp_rank(tensor, **options)
        assert ranks(bounds) == (0, 0) and bounds.certified
        assert [factor.shape for factor in bounds.factors] == [(d, 0) for d in tensor.shape]
    assert ranks(cp_rank(np.full((3, 4, 5), 1.1e-3))) == (1, 1)
    # At the tolerance to the last digit: not below it, and rounding decides no certificate.
    at = cp_rank(np.full((2, 2, 2), 2.0**-10), 2.0**-20)
    assert at.lower <= 1 == at.upper


# --- The two bounds


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 3, 3, 3), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("mse", [1e-8, 0.03, 0.2, 0.5])
def test_the_lower_bound_is_the_largest_rank_of_an_unfolding(shape, mse):
    tensor = np.random.default_rng(5).standard_normal(shape)
    expected = 0
    for count in range(1, len(shape)):
        for side in itertools.combinations(range(len(shape)), count):
            others = [mode for mode in range(len(shape)) if mode not in side]
            rows = math.prod(shape[mode] for mode in side)
            matrix = np.transpose(tensor, (*side, *others)).reshape(rows, -1)
            squares = np.linalg.svd(matrix, compute_uv=False) ** 2
            enough = [np.sum(squares[r:]) / tensor.size < mse for r in range(len(squares) + 1)]
            expected = max(expected, enough.index(True))
    assert cp_rank(tensor, mse, max_fits=0).lower == expected


def test_the_lower_bound_is_below_the_rank_at_a_distance_reached_exactly():
    """At a tolerance of exactly the distance to rank 2, a rank of 2 must not be excluded."""
    tensor = superdiagonal(3, 3)  # entries 1, 2, 3: the best of rank 2 is at a distance of 1
    for scale in (1.0, 1.0 / 3.0, 7.3):
        mse = (1.0 * scale) ** 2 / tensor.size
        at = cp_rank(scale * tensor, mse)
        assert at.lower == 2, scale
        assert_meets(at, scale * tensor, mse)
        assert ranks(cp_rank(scale * tensor, mse * (1.0 - 1e-6))) == (3, 3)
        assert ranks(cp_rank(scale * tensor, mse * (1.0 + 1e-6))) == (2, 2)


@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 3, 3, 3), (2,) * 9])
def test_slices_give_an_interval_without_a_fit(shape):
    tensor = np.random.default_rng(6).standard_normal(shape)
    bounds = cp_rank(tensor, relative_error=1e-9, max_fits=0)
    assert_meets(bounds, tensor, 1e-18 * np.mean(tensor**2))
    assert bounds.upper <= tensor.size // max(shape)
    assert not bounds.certified


def test_slices_leave_out_what_the_tolerance_allows():
    # Every slice along the first mode has the singular values 1 and 0.1.
    tensor = np.zeros((3, 4, 5))
    tensor[:, 0, 0], tensor[:, 1, 1] = 1.0, 0.1
    tensor[1] = np.roll(tensor[1], 1, axis=(0, 1))
    tensor[2] = np.roll(tensor[2], 2, axis=(0, 1))
    for dropped in (0, 1, 2, 3):
        mse = (dropped + 0.5) * 0.1**2 / tensor.size
        bounds = cp_rank(tensor, mse, max_fits=0)
        assert_meets(bounds, tensor, mse)
        assert bounds.upper <= 6 - dropped


def test_running_out_of_fits_leaves_an_interval():
    tensor = planted((8, 8, 8), 12, 0)
    intervals = [cp_rank(tensor, relative_error=1e-4, max_fits=n) for n in (0, 1, 2, 4, 9)]
    for bounds in intervals:
        assert_meets(bounds, tensor, 1e-8 / tensor.size)
        assert bounds.lower == 8 and not bounds.certified
    uppers = [bounds.upper for bounds in intervals]
    assert uppers == sorted(uppers, reverse=True)
    assert uppers[0] == uppers[1] == 64 and uppers[-1] == 12


@pytest.mark.parametrize(
    ("kept", "published"), [(50, 12), (100, 16), (200, 17), (300, 17), (450, 16), (511, 2)]
)
def test_masked_rank_one_tensors_need_no_more_than_alternating_least_squares(kept, published):
    tensor = masked_rank_one(kept)
    bounds = cp_rank(tensor, max_fits=6)
    assert_meets(bounds, tensor, 1e-6)
    assert bounds.upper <= published


# --- Searches that take long


def noise(shape=(15, 15, 15)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def test_a_search_of_noise_keeps_to_its_time_and_says_how_far_it_is():
    tensor, lines, start = noise(), [], time.monotonic()
    bounds = cp_rank(tensor, relative_error=0.1, time_budget=0.5, progress=lines.append)
    # The unbounded search takes half a minute; decompositions under way are waited for.
    assert time.monotonic() - start < 4.0
    assert bounds.ended == "out_of_time" and not bounds.complete and not bounds.certified
    assert bounds.lower == 15 < bounds.upper <= 225
    assert_meets(bounds, tensor, 0.1**2 * np.mean(tensor**2))
    assert "unfoldings: at least 15 components" in lines[0]
    assert any("slices: " in line for line in lines)
    assert repr(bounds) == f"RankBounds(rank 15 to {bounds.upper} of a 15 x 15 x 15 tensor, " + (
        "out_of_time)"
    )


def test_fits_too_large_for_the_time_left_are_not_begun():
    tensor, start = noise((64, 64, 3, 3)), time.monotonic()
    bounds = cp_rank(tensor, relative_error=0.1, time_budget=0.2)
    assert time.monotonic() - start < 6.0
    assert bounds.ended == "out_of_time"
    assert 64 < bounds.lower < bounds.upper <= 576
    assert_meets(bounds, tensor, 0.1**2 * np.mean(tensor**2))


@pytest.mark.parametrize("word", ["at least", "15 components", "slices", "17 components"])
def test_an_interrupted_search_gives_the_interval_so_far(word):
    interrupted = []

    def interrupt(line):
        if word in line and not interrupted:
            interrupted.append(line)
            raise KeyboardInterrupt

    tensor = noise()
    bounds = cp_rank(tensor, relative_error=0.1, progress=interrupt)
    assert interrupted
    assert bounds.ended == "interrupted" and not bounds.complete
    assert bounds.lower == 15 < bounds.upper <= 225
    assert_meets(bounds, tensor, 0.1**2 * np.mean(tensor**2))


def test_a_signal_interrupts_a_fit():
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    bounds = cp_rank(noise(), relative_error=0.1)
    assert time.monotonic() - start < 4.0
    timer.join()
    assert bounds.ended == "interrupted" and bounds.lower == 15


def test_a_search_that_ends_by_itself_is_complete():
    bounds = cp_rank(planted((4, 4, 4), 2, 0), time_budget=None)
    assert bounds.ended == "complete" and bounds.complete
    assert repr(bounds) == "RankBounds(rank 2 of a 4 x 4 x 4 tensor, complete)"
    assert cp_rank(noise((3, 3, 3)), relative_error=0.1, max_fits=1).complete


# --- Invariance


@pytest.mark.parametrize("exponent", [-310, -200, 200, 306])
def test_any_scale_works_with_a_relative_tolerance(exponent):
    tensor = planted((4, 5, 6), 3, 0)
    scaled = tensor * 10.0**exponent
    bounds = cp_rank(scaled, relative_error=1e-3)
    assert ranks(bounds) == (3, 3)
    # Entries near 1e-310 carry few digits, and compared as they are their squares would vanish.
    error = (scaled - compose(bounds.factors)) / 10.0**exponent
    assert np.linalg.norm(error) < 1e-3
    largest = [np.max(np.abs(factor)) for factor in bounds.factors]
    assert max(largest) / min(largest) < 1e3


def test_a_power_of_two_changes_nothing_but_the_scale():
    tensor = planted((5, 5, 5), 6, 0)
    small = cp_rank(tensor, 1e-6)
    large = cp_rank(8.0 * tensor, 64e-6)
    assert ranks(small) == ranks(large)
    for one, other in zip(small.factors, large.factors, strict=True):
        np.testing.assert_array_equal(2.0 * one, other)


def test_the_order_of_the_modes_does_not_matter():
    tensor = planted((3, 4, 5, 6), 4, 0, noise_mse=1e-9)
    for order in itertools.permutations(range(4)):
        assert ranks(cp_rank(np.transpose(tensor, order))) == (4, 4)


def test_the_answer_is_deterministic_and_the_input_untouched():
    tensor = planted((6, 6, 6), 9, 0)
    copy = tensor.copy()
    first, second = (cp_rank(tensor, relative_error=1e-3, seed=4, max_fits=3) for _ in range(2))
    for one, other in zip(first.factors, second.factors, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(tensor, copy)


def test_arrays_of_any_kind_are_computed_in_double_precision():
    tensor = planted((3, 4, 5), 2, 0)
    for array in (jnp.asarray(tensor, jnp.float32), tensor.astype(np.float32)):
        assert ranks(cp_rank(array)) == (2, 2)
        assert_meets(cp_rank(array), np.asarray(array, np.float64), 1e-6)
    integers = np.arange(24).reshape(2, 3, 4)
    assert_meets(cp_rank(integers, relative_error=1e-6), integers, 1e-12 * np.mean(integers**2))
    assert ranks(cp_rank(np.eye(3, dtype=bool))) == (3, 3)


def test_it_is_a_public_name():
    assert ff.cp_rank is cp_rank
    assert isinstance(ff.cp_rank(np.eye(2)), ff.RankBounds)


# --- TensorLy


def tensorly_errors(tensor, rank, starts) -> list[float]:
    """Mean squared errors of TensorLy's alternating least squares from random starts."""
    errors = []
    for seed in range(starts):
        weights, factors = parafac(
            tensorly.tensor(tensor),
            rank=rank,
            init="random",
            random_state=seed,
            n_iter_max=200,
            tol=1e-9,
        )
        errors.append(np.mean((tensor - compose([weights * factors[0], *factors[1:]])) ** 2))
    return errors


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("mse", [1e-6, 1e-3])
def test_tensorly_contradicts_neither_bound(rank, mse):
    tensor = planted((4, 4, 4), rank, 1, noise_mse=1e-8)
    bounds = cp_rank(tensor, mse)
    assert bounds.certified and bounds.lower >= 1
    for fewer in range(1, bounds.lower):
        assert min(tensorly_errors(tensor, fewer, 8)) >= mse
    # The factors of this upper bound are no fluke: TensorLy gets there as well.
    assert min(tensorly_errors(tensor, bounds.upper, 8)) < mse


@pytest.mark.parametrize("rank", [5, 6])
def test_where_tensorly_meets_the_tolerance_so_do_we(rank):
    tensor = planted((4, 4, 4), 6, 2)
    best = min(tensorly_errors(tensor, rank, 4))
    # A tolerance that TensorLy's best fit meets with nothing to spare but a percent.
    assert cp_rank(tensor, 1.01 * best).upper <= rank


# --- Bad input


@pytest.mark.parametrize(
    ("tensor", "options", "message"),
    [
        (np.float64(3.0), {}, r"order 2 or more, got shape \(\).*add modes"),
        (np.ones(3), {}, r"order 2 or more, got shape \(3,\).*add modes"),
        (np.ones((3, 0, 2)), {}, r"empty mode, got shape \(3, 0, 2\)"),
        (np.ones((2, 2), complex), {}, "must be real, got dtype complex128"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), {}, r"finite, got nan at \(1, 0\)"),
        (np.array([[[1.0, -np.inf]]]), {}, r"finite, got -inf at \(0, 0, 1\)"),
        (np.eye(2), {"mse": 0}, "mse must be > 0, got 0.*rounding error.*relative_error=1e-10"),
        (np.eye(2), {"relative_error": 0.0}, "relative_error must be > 0, got 0.0.*1e-10"),
        (np.eye(2), {"mse": -1e-6}, "positive and finite, got -1e-06: pass"),
        (np.eye(2), {"mse": math.nan}, "positive and finite, got nan"),
        (np.eye(2), {"mse": math.inf}, "positive and finite, got inf"),
        (np.eye(2), {"relative_error": 1.0}, "between 0 and 1, got 1.0"),
        (np.eye(2), {"relative_error": -0.1}, "between 0 and 1, got -0.1"),
        (np.eye(2), {"relative_error": math.nan}, "between 0 and 1, got nan"),
        (np.eye(2), {"relative_error": 1e-14}, "got 1e-14.*does not resolve.*1e-10"),
        (np.eye(2), {"mse": 1e-6, "relative_error": 0.1}, "two tolerances: give one"),
        (np.eye(2), {"mse": 1e-40}, "relative error of 1.4e-20.*relative_error=1e-10"),
        (1e200 * np.eye(2), {}, "mse=1e-06 is a relative error of 1.4e-203"),
        (np.eye(2), {"restarts": 0}, "restarts must be >= 1, got 0"),
        (np.eye(2), {"max_fits": -1}, "max_fits must be >= 0, got -1"),
        (np.eye(2), {"seed": -1}, "seed must be >= 0, got -1"),
        (np.eye(2), {"time_budget": 0}, "time_budget must be positive, got 0: seconds, or None"),
        (np.eye(2), {"time_budget": math.nan}, "time_budget must be positive, got nan"),
    ],
)
def test_bad_input_is_refused_with_its_value_and_a_remedy(tensor, options, message):
    with pytest.raises(ValueError, match=message):
        cp_rank(tensor, **options)


def test_a_traced_tensor_is_refused():
    with pytest.raises(ValueError, match=r"traced.*outside jit"):
        jax.jit(lambda x: jnp.asarray(cp_rank(x).upper))(jnp.eye(2))
