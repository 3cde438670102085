"""Verdicts of flows on problems whose answer is known, and what is refused.

Flows compile for seconds: problems share their shapes, and runs of as many lanes a compilation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import factorflow as ff
from conftest import X64
from factorflow._initializer import AbstractInitializer
from factorflow._spec import prepare
from factorflow.analysis._runs import _off_balance

NORMS = ("nuclear_norm", "frobenius_norm", "spectral_norm")
SCALES = (1e-2, 1e-3, 1e-4, 1e-5)
DEEP = ff.DeepMatrix((2, 2), depth=2)
NAMES = [*NORMS, "rank", "effective_rank"]
COLUMNS = {
    "limit",
    "limit_error",
    "infimum_lower",
    "infimum_upper",
    "attained",
    "ratio",
    "status",
    "loss_slope",
    "trend",
}


def quantities(answer):
    return {quantity.name: quantity for quantity in answer.quantities}


def ask_two_by_two(**options):
    """The 2x2 problem; the quasi-norm is left out, whose search takes as long as all flows."""
    options = {"scales": SCALES, "seeds": (0, 5), "norms": NORMS} | options
    return ff.what_is_minimized(ff.razin_cohen_problem(), DEEP, **options)


@pytest.fixture(scope="module")
def two_by_two():
    lines = []
    answer = ask_two_by_two(progress=lines.append)
    return answer, lines


@pytest.fixture(scope="module")
def negative():
    return ask_two_by_two(determinant="negative", norms=NORMS[:1])


# Two complete blocks of rank one, in rows 0 and columns 0, 1 and in rows 1, 2 and column 2.
BLOCKS = np.array([[3.0, 4.0]]), np.array([[1.0], [2.0]])
INDICES = [[0, 0], [0, 1], [1, 2], [2, 2]]


@pytest.fixture(scope="module")
def disconnected():
    problem = ff.Completion((3, 3), INDICES, np.concatenate([b.ravel() for b in BLOCKS]), room=7)
    return ff.what_is_minimized(
        problem,
        ff.DeepMatrix((3, 3), depth=2),
        determinant=None,
        scales=SCALES,
        seeds=2,
        norms=NORMS[:2],
    )


@pytest.fixture(scope="module")
def rank_one():
    """A rank-one target with its diagonal and an unobserved corner, of the flows' shape above."""
    at = [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 1], [2, 2]]
    vector = np.array([1.0, 2.0, 1.0])
    problem = ff.Completion((3, 3), at, [vector[i] * vector[j] for i, j in at], room=7)
    return ff.what_is_minimized(
        problem,
        ff.DeepMatrix((3, 3), depth=2),
        scales=SCALES,
        seeds=2,
        determinant=None,
        norms=("spectral_norm", "nuclear_norm"),
    )


# --- The 2x2 problem: every norm diverges, the rank is infimal


def test_rank_is_minimized_and_no_norm_on_the_two_by_two_problem(two_by_two):
    answer, _ = two_by_two
    assert answer.verdict == "rank"
    found = quantities(answer)
    for name in NORMS:
        assert found[name].status == "diverges"
        assert found[name].limit == found[name].ratio == np.inf
        # The entry in the corner grows like the root of one over the loss.
        assert abs(found[name].loss_slope + 0.5) < 1e-3
    assert np.all(answer.runs.certified)
    assert np.all(answer.runs.verdicts == "flow_faithful")


def test_its_minimum_norms_are_those_of_the_swap(two_by_two):
    """The solution with zero in the corner: singular values 1 and 1."""
    found = quantities(two_by_two[0])
    for name, value in zip(NORMS, (2.0, np.sqrt(2), 1.0), strict=True):
        np.testing.assert_allclose(found[name].infimum_upper, value, rtol=1e-6)
        np.testing.assert_allclose(found[name].infimum_lower, value, rtol=1e-6)
        assert found[name].attained
        assert found[name].decisive


def test_its_infimal_rank_is_one_and_not_attained(two_by_two):
    answer, _ = two_by_two
    rank, effective = (quantities(answer)[name] for name in ("rank", "effective_rank"))
    assert (rank.status, rank.limit, rank.limit_error) == ("minimized", 1, 0)
    assert rank.infimum_lower == rank.infimum_upper == 1
    assert rank.attained is False
    assert answer.minima.ranks.minimal_lower == answer.minima.ranks.minimal_upper == 2
    assert "attained by no solution (minimal rank 2 or more)" in answer.explanation
    assert effective.status == "minimized"
    # At a loss of 1e-10 the second singular value is 1e-10 of the first.
    np.testing.assert_allclose(effective.limit, 1.0, atol=1e-6)
    assert effective.infimum_upper == 1
    assert effective.attained is False


def test_the_runs_are_flows_on_the_problem(two_by_two):
    """The recorded products have the recorded losses, and the closed form relates their entries."""
    answer, _ = two_by_two
    losses, products = answer.runs.losses, answer.runs.products
    assert products.shape == (4, 2, 2, 2)
    misfit = (products[..., 0, 1] - 1) ** 2 + (products[..., 1, 0] - 1) ** 2
    misfit += products[..., 1, 1] ** 2
    # Half the sum of squares, met at a crossing that is found to the flow's accuracy.
    np.testing.assert_allclose(misfit / 2, losses[-1], rtol=1e-4)
    assert np.all(np.linalg.det(products) > 0)
    np.testing.assert_allclose(
        np.exp(answer.runs.log_singular_values[..., -1, 0]),
        np.linalg.svd(products, compute_uv=False)[..., 0],
        rtol=1e-6,
    )


def test_what_is_drawn_along_the_loss(two_by_two):
    answer, _ = two_by_two
    ratios = answer.along_loss("nuclear_norm")
    assert ratios.shape == (4, 2, len(answer.runs.losses))
    sizes = np.exp(answer.runs.log_singular_values)
    np.testing.assert_allclose(ratios, sizes.sum(axis=-1) / 2, rtol=1e-6)
    assert np.all(answer.along_loss("effective_rank")[..., -1] < 1 + 1e-6)
    for name in ("rank", "foo"):
        with pytest.raises(ValueError, match=f"{name}.*nuclear_norm"):
            answer.along_loss(name)


def test_asked_twice_the_numbers_are_the_same(two_by_two):
    first, second = two_by_two[0], ask_two_by_two()
    xr.testing.assert_identical(first.table, second.table)
    np.testing.assert_array_equal(first.runs.products, second.runs.products)


def test_seeds_are_starts_of_their_own(two_by_two):
    answer, _ = two_by_two
    assert answer.seeds == (0, 5)
    other = ask_two_by_two(seeds=(5, 7))
    np.testing.assert_allclose(other.runs.products[:, 0], answer.runs.products[:, 1], rtol=1e-6)
    gap = answer.runs.products[:, 0] - answer.runs.products[:, 1]
    assert np.all(np.linalg.norm(gap, axis=(-2, -1)) > 1e-6)


def test_the_table_is_labelled(two_by_two):
    answer, _ = two_by_two
    table = answer.table
    assert isinstance(table, xr.Dataset)
    assert set(table.data_vars) == COLUMNS | {"ratios", "certificate"}
    assert {name: table[name].dims for name in COLUMNS} == dict.fromkeys(COLUMNS, ("quantity",))
    assert table.ratios.dims == ("quantity", "scale", "seed")
    assert table.certificate.dims == ("scale", "seed")
    assert table.quantity.values.tolist() == NAMES
    assert table.scale.values.tolist() == list(SCALES)
    assert table.seed.values.tolist() == [0, 5]
    assert table.attrs == {"verdict": "rank", "start": "Balanced, positive determinant"}
    assert table.status.sel(quantity="rank").item() == "minimized"
    assert table.limit.dtype == table.ratios.dtype == np.float64
    assert np.all(table.certificate == "flow_faithful")
    assert "nuclear_norm" in str(table)


def test_an_infimum_that_is_not_known_shows_as_an_upper_bound(two_by_two):
    """A quasi-norm's best known value is none: 31.4756 was shown where 31.47256 is attained."""
    answer, _ = two_by_two
    assert "<=" not in str(answer)
    norm, *rest = answer.quantities
    found = dataclasses.replace(norm, infimum_lower=9.62, infimum_upper=31.4756, decisive=False)
    changed = dataclasses.replace(answer, quantities=(found, *rest))
    assert "  9.62 .. <= 31.4756  " in str(changed)
    assert "a .. <= b: the infimum is at least a, proved, and at most b" in str(changed)


def test_a_notebook_shows_the_table_and_the_prompt_one_line(two_by_two):
    answer, _ = two_by_two
    assert len(repr(answer)) < 300 and "\n" not in repr(answer)
    assert repr(answer).startswith("Minimized('rank': nuclear_norm diverges, ")
    shown = dataclasses.replace(answer, explanation="a < b")._repr_html_()
    assert shown.startswith("<pre>rank") and "a &lt; b" in shown and len(shown) < 3000


def test_it_prints_as_a_table(two_by_two):
    answer, _ = two_by_two
    lines = str(answer).splitlines()
    assert lines[0] == "rank (Balanced, positive determinant)"
    rows = {line.split()[0]: line.split() for line in lines[2 : 2 + len(NAMES)]}
    assert list(rows) == NAMES
    assert rows["nuclear_norm"] == ["nuclear_norm", "inf", "2", "inf", "-0.50", "diverges"]
    assert rows["rank"] == ["rank", "1", "1*", "1", "nan", "minimized"]
    assert "8 of 8 flows certified as a whole" in lines[2 + len(NAMES)]
    assert "0.01 to 1e-05" in lines[2 + len(NAMES)]
    assert lines[-1] == answer.explanation


def test_progress_is_told_before_each_stage(two_by_two):
    _, lines = two_by_two
    assert lines[0] == "solutions of minimum nuclear_norm, frobenius_norm, spectral_norm"
    assert "ranks" in lines[1]
    assert lines[2].startswith("8 flows (")


def test_with_a_negative_determinant_norms_stay_finite(negative):
    """Its own table: the solutions with a negative determinant hold the one of least norm."""
    assert negative.start == negative.table.attrs["start"] == "Balanced, negative determinant"
    nuclear = quantities(negative)["nuclear_norm"]
    assert nuclear.status != "diverges"
    assert 2 * (1 - 1e-3) < nuclear.limit < 3
    assert np.all(np.isfinite(nuclear.ratios))
    assert np.all(np.linalg.det(negative.runs.products) < 0)
    assert quantities(negative)["rank"].status == "above"
    assert quantities(negative)["rank"].limit == 2


def test_the_error_covers_the_seeds_limits(negative):
    """Each solution is [[w, 1], [1, 0]]: its nuclear norm is the root of w^2 + 4."""
    nuclear = quantities(negative)["nuclear_norm"]
    w = negative.runs.products[-1, :, 0, 0]
    # The last scale's products are near their limits, as far as scale and loss are small.
    assert np.all(np.abs(np.sqrt(w**2 + 4) - nuclear.limit) <= nuclear.limit_error + 1e-3)


# --- Completions with known answers


@pytest.mark.x64
def test_disconnected_blocks_minimize_the_nuclear_norm(disconnected):
    """The least nuclear norm is the blocks' sum: what is between them can be zero."""
    assert disconnected.verdict == "norm: nuclear_norm"
    nuclear = quantities(disconnected)["nuclear_norm"]
    blocks = sum(np.linalg.svd(block, compute_uv=False).sum() for block in BLOCKS)
    np.testing.assert_allclose(blocks, 5 + np.sqrt(5))
    np.testing.assert_allclose(nuclear.limit, blocks, rtol=1e-3)
    assert abs(nuclear.limit - blocks) <= nuclear.limit_error + 1e-6 * blocks
    np.testing.assert_allclose(nuclear.infimum_upper, blocks, rtol=1e-6)
    np.testing.assert_allclose(nuclear.ratio, 1.0, atol=1e-3)
    assert nuclear.trend > 10


@pytest.mark.x64
def test_where_the_rank_is_the_sum_of_the_blocks(disconnected):
    rank = quantities(disconnected)["rank"]
    assert (rank.status, rank.limit) == ("above", 2)
    assert rank.infimum_lower == rank.infimum_upper == 1
    assert quantities(disconnected)["frobenius_norm"].status == "above"
    np.testing.assert_allclose(
        quantities(disconnected)["frobenius_norm"].infimum_upper, np.sqrt(30), rtol=1e-6
    )


def test_a_rank_one_target_has_the_least_of_both(rank_one):
    assert rank_one.verdict == "both"
    nuclear, rank, effective = (
        quantities(rank_one)[name] for name in ("nuclear_norm", "rank", "effective_rank")
    )
    np.testing.assert_allclose(nuclear.limit, 6.0, rtol=1e-3)  # the squared norm of the vector
    assert abs(nuclear.limit - 6) <= nuclear.limit_error + 1e-6
    assert (rank.limit, rank.infimum_upper, rank.status) == (1, 1, "minimized")
    assert rank.attained
    assert effective.infimum_upper == 1
    assert quantities(rank_one)["spectral_norm"].status in ("above", "minimized")


# --- Precision


def test_observations_in_single_precision(two_by_two):
    """Everything is computed in double precision, whatever the session's."""
    with jax.enable_x64(False):
        single = ff.Completion((2, 2), [[0, 1], [1, 0], [1, 1]], np.array([1, 1, 0], np.float32))
    assert single.values.dtype == jnp.float32
    answer = ff.what_is_minimized(single, DEEP, scales=SCALES, seeds=(0, 5), norms=NORMS)
    assert answer.verdict == "rank"
    assert answer.runs.products.dtype == np.float64
    np.testing.assert_allclose(answer.runs.products, two_by_two[0].runs.products, rtol=1e-6)


def test_the_sessions_precision_is_left_alone(two_by_two):
    del two_by_two
    assert (jnp.zeros(1).dtype == jnp.float64) == X64


# --- What is refused, before anything is compiled


def refused(problem=None, factorization=DEEP, initializer=None, words="", **options):
    with pytest.raises(ValueError, match=words):
        ff.what_is_minimized(
            problem or ff.razin_cohen_problem(), factorization, initializer, **options
        )


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (ff.Sensing(np.ones((2, 2, 2)), [1.0, 2.0]), "residual below 0.707107"),
        (ff.Completion((2, 2), [[0, 0], [0, 1], [1, 0], [1, 1]], np.ones(4)), "single solution"),
        (ff.Completion((2, 2), [[0, 1], [1, 0]], np.zeros(2)), "zero matrix"),
        (ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0]), r"\(2, 2, 2\)"),
    ],
)
def test_problems_without_a_question_are_refused(problem, words):
    refused(problem, words=words)


def test_no_room_is_suggested_that_cannot_be_given():
    """`tolerance` of this function is no residual."""
    with pytest.raises(ValueError, match="contradict") as caught:
        ff.what_is_minimized(ff.Sensing(np.ones((2, 2, 2)), [1.0, 2.0]), DEEP)
    assert "tolerance" not in str(caught.value)


@pytest.mark.parametrize(
    "scales",
    [(1e-3, 1e-2), (1e-3, 1e-3), (1e-2, 0.0), (1e-2, -1e-3), (1e-2,), (np.inf, 1.0), (np.nan, 1.0)],
)
def test_scales_that_do_not_fall_are_refused(scales):
    refused(scales=scales, words="two or more positive numbers that fall")


def test_scales_that_underflow_are_refused():
    refused(scales=(1e-2, 1e-200), words="1e-200 underflows.*1e-150")


def test_starts_that_have_no_scale_are_refused():
    class Given(AbstractInitializer):
        def __call__(self, factorization, key=None):
            return (jnp.eye(2), jnp.eye(2))

    lines = []
    refused(initializer=Given(), words="Given has no product_scale", progress=lines.append)
    refused(
        factorization=ff.CP((2, 2), rank=2), words="CP; give `initializer=`", progress=lines.append
    )
    assert not lines  # nothing was searched first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 0}, r"seeds must be .* got \[\]"),
        ({"seeds": ()}, r"seeds must be .* got \[\]"),
        ({"seeds": (1, 1)}, r"different integers, got \[1, 1\]"),
        ({"norms": ()}, "norms must be a list"),
        ({"norms": ("foo",)}, "foo.*nuclear_norm"),
        ({"norms": ("foo",), "semidefinite": True}, "foo.*nuclear_norm"),
        ({"norms": ("schatten_norm[-1]",)}, "-1"),
        ({"loss_ratio": 0.0}, "loss_ratio must be .* got 0.0"),
        ({"loss_ratio": 1e-3}, "at most 1e-4, got 0.001"),
        ({"tolerance": 0.0}, "tolerance must lie .* got 0.0"),
        ({"tolerance": 0.1}, "tolerance must lie .* got 0.1"),
        ({"dynamics": ff.GradientDescent(1e-2)}, "dynamics must be a flow, got GradientDescent"),
    ],
)
def test_bad_options_are_refused(options, words):
    refused(words=words, **options)


@pytest.mark.parametrize("scale", [1e-1, 1e-6])
def test_a_flow_is_shaken_by_more_than_it_has_drifted(scale):
    """Balanced factors get an imbalance well above the drift, whichever of the two is larger."""
    drift, fz = 1e-9, ff.DeepMatrix((3, 3), depth=3)
    with jax.enable_x64(True):
        spec = prepare(
            ff.random_low_rank_problem(jax.random.key(0), (3, 3), 1, 7),
            fz,
            ff.GradientFlow("Stabilized"),
            ff.Balanced(product_scale=scale)(fz, jax.random.key(1)),
            observe=ff.AtLosses([1e-2]),
            stop=ff.Stop(loss=1e-2),
            measures=["loss"],
        )
        gaps = [np.linalg.norm(gap, 2) for gap in fz.conserved(_off_balance(spec, drift).factors)]
    # Each factor brings up to 30 times the drift; two of them meet in each gap.
    assert all(5 * drift < gap < 60 * drift for gap in gaps)
