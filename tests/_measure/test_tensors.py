"""Components and unfoldings of tensors: against numpy, their symmetries, and how they move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from _measure.references import (
    CASES,
    DTYPE,
    EXTREMES,
    assert_agrees,
    evaluated,
    orthogonal,
    rows,
)
from factorflow._measure import MEASURES, as_measure, as_measures
from tolerances import assert_close

COMPONENTS = (
    "component_norms",
    "largest_component_norms[1]",
    "component_alignment",
    "norm_differences",
)
UNFOLDINGS = ("multilinear_rank[0.001]", "unfolding_effective_rank")


def observe(names, factors, problem=None) -> dict[str, np.ndarray]:
    """Measures of a CP factorization, on the observation of one entry unless told otherwise."""
    factors = tuple(jnp.asarray(factor, DTYPE) for factor in factors)
    shape = tuple(factor.shape[0] for factor in factors)
    fz = ff.CP(shape, rank=factors[0].shape[1])
    if problem is None:
        problem = ff.Completion(shape, [[0] * len(shape)], np.ones(1, DTYPE))
    snapshot = ff.Snapshot(problem, ff.Factored(fz, factors), factorization=fz, factors=factors)
    return {measure.name: np.asarray(measure(snapshot)) for measure in as_measures(names)}


def unfoldings_of(tensor) -> dict[str, np.ndarray]:
    tensor = jnp.asarray(tensor, DTYPE)
    problem = ff.Completion(tensor.shape, [[0] * tensor.ndim], np.ones(1, DTYPE))
    snapshot = ff.Snapshot(problem, ff.Dense(tensor))
    return {name: np.asarray(as_measure(name)(snapshot)) for name in UNFOLDINGS}


def draw(shape=(3, 2, 4), rank: int = 2, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, rank)) for size in shape]


@pytest.mark.parametrize(("case", "measure", "family", "parameters"), rows("tensors"))
def test_against_numpy(case, measure, family, parameters):
    assert_agrees(case, measure, family, parameters)


# --- Components


def test_a_zero_component_has_no_direction():
    observed = evaluated(CASES["zero-component-cp"])
    norms, alignments = observed["component_norms"], observed["component_alignment"]
    assert (norms == 0).tolist() == (alignments == 0).tolist() == [False, True, False]
    assert observed["largest_component_norms[3]"][-1] == 0


def test_at_a_stationary_point_nothing_aligns():
    factors = draw()
    problem = ff.Completion((3, 2, 4), [[0, 0, 0]], [0.0])
    still = [np.zeros_like(factors[0]), *factors[1:]]
    still[0][1:] = factors[0][1:]
    alignment = observe(["component_alignment"], still, problem)["component_alignment"]
    assert alignment.tolist() == [0, 0]


def test_alignment_is_a_cosine():
    """1 where a component is along what is missing, -1 where it is too much of it."""
    first, second = draw(rank=2), draw(rank=1, seed=1)
    target = np.einsum("ai,bi,ci->abc", *second)
    indices = np.array(list(np.ndindex(target.shape)))
    for multiple, expected in [(0.5, 1.0), (2.0, -1.0)]:
        # A second component of 0 leaves the product to the first.
        factors = [np.hstack([multiple ** (1 / 3) * f, 0 * f]) for f in second]
        problem = ff.Completion(target.shape, indices, target.ravel())
        observed = observe(["component_alignment"], factors, problem)["component_alignment"]
        assert_close(observed, [expected, 0.0])
    problem = ff.Completion(target.shape, indices, target.ravel())
    cosines = observe(["component_alignment"], first, problem)["component_alignment"]
    assert np.all(np.abs(cosines) < 1)
    # Only the direction of a component matters.
    scaled = [first[0] * [3.0, 0.25], first[1] * [-1.0, 4.0], first[2] * [-2.0, 1.0]]
    moved = observe(["component_norms", "component_alignment"], scaled, problem)
    unscaled = observe(["component_norms"], first)["component_norms"]
    assert_close(moved["component_norms"], unscaled * [6.0, 1.0], scale=10.0)
    assert np.sign(moved["component_alignment"][0]) != 0


def test_balancing_a_component_changes_its_differences_only():
    factors = draw()
    moved = [factors[0] * 2, factors[1] / 2, factors[2]]
    one, other = (observe(COMPONENTS, f) for f in (factors, moved))
    for name in COMPONENTS[:3]:
        assert_close(one[name], other[name])
    assert np.all(np.abs(one["norm_differences"] - other["norm_differences"])[0] > 0.1)
    lengths = [np.linalg.norm(factor, axis=0) for factor in factors]
    size = np.prod(lengths, axis=0) ** (1 / 3)
    balanced = [factor * size / length for factor, length in zip(factors, lengths, strict=True)]
    assert_close(observe(COMPONENTS, balanced)["norm_differences"], np.zeros((2, 2)), scale=10.0)


def test_permuting_components_permutes_them():
    factors = draw(rank=4)
    order = [2, 0, 3, 1]
    names = (*COMPONENTS, "largest_component_norms[4]")
    one, other = (observe(names, f) for f in (factors, [factor[:, order] for factor in factors]))
    for name in ("component_norms", "component_alignment", "norm_differences"):
        assert_close(other[name], one[name][..., order], scale=10.0)
    largest = one["largest_component_norms[4]"]
    assert_close(other["largest_component_norms[4]"], largest)
    assert np.all(np.diff(largest) <= 0)
    assert sorted(one["component_norms"].tolist(), reverse=True) == largest.tolist()


def test_the_largest_components_are_those_of_all():
    factors = draw(rank=5)
    names = [f"largest_component_norms[{k}]" for k in range(1, 6)]
    observed = observe(names, factors)
    for k, name in enumerate(names, start=1):
        assert observed[name].shape == (k,)
        np.testing.assert_array_equal(observed[name], observed[names[-1]][:k])


def test_names_of_components_reach_the_dataset():
    fz = ff.CP((2, 2, 3), rank=2)
    trajectory = ff.simulate(
        ff.Completion(fz.shape, [[0, 0, 0], [1, 1, 2]], [1.0, -1.0]),
        fz,
        ff.GradientDescent(0.1),
        ff.Gaussian(product_scale=0.1)(fz, jax.random.key(0)),
        observe=ff.AtSteps([0, 2, 4, 6, 8]),
        stop=ff.Stop(max_steps=8),
        measures=[*COMPONENTS, *UNFOLDINGS, "product"],
    )
    dataset = trajectory.to_xarray()
    dims = {name: dataset[name].dims[1:] for name in (*COMPONENTS, *UNFOLDINGS, "product")}
    assert dims == {
        "component_norms": ("component",),
        "largest_component_norms[1]": ("largest_component",),
        "component_alignment": ("component",),
        "norm_differences": ("mode_pair", "component"),
        "multilinear_rank[0.001]": ("mode",),
        "unfolding_effective_rank": ("mode",),
        "product": ("size_2", "size_2_1", "size_3"),
    }


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 3, 2, 3)], ids=str)
def test_balanced_components_grow_by_their_alignment(shape):
    r"""$\tfrac{d}{dt} \|c\| = N \cos \|\nabla\ell\| \|c\|^{2 - 2/N}$ (Razin, Maman, Cohen 2021)."""
    order = len(shape)
    factors = draw(shape, rank=3)
    sizes = np.array([1.0, 0.5, 0.8])
    factors = [factor * sizes / np.linalg.norm(factor, axis=0) for factor in factors]
    fz = ff.CP(shape, rank=3)
    problem = ff.random_low_rank_problem(jax.random.key(0), shape, rank=1, n_observed=5)
    middle, step = 0.05, 1e-4
    trajectory = ff.simulate(
        problem,
        fz,
        ff.GradientFlow("Dopri8", rtol=1e-12, atol=1e-14),
        tuple(jnp.asarray(factor) for factor in factors),
        observe=ff.AtTimes([0.0, middle - step, middle, middle + step]),
        stop=ff.Stop(max_time=middle + step),
        measures=["component_norms", "component_alignment", "gradient_norm", "norm_differences"],
    )
    norms = trajectory.measures["component_norms"]
    alignment = trajectory.measures["component_alignment"][2]
    gradient = trajectory.measures["gradient_norm"][2]
    speed = (norms[3] - norms[1]) / (2 * step)
    expected = order * alignment * gradient * norms[2] ** (2 - 2 / order)
    assert np.max(np.abs(expected)) > 0.1
    # Central differences: step^2 / 6 times the third derivative, which is some tens.
    np.testing.assert_allclose(speed, expected, rtol=0, atol=1e-6)
    assert_close(trajectory.measures["norm_differences"], 0.0, "linear_algebra")


# --- Unfoldings


def test_ranks_of_a_tensor_whose_unfoldings_differ():
    observed = evaluated(CASES["unequal-ranks-dense"])
    assert observed["multilinear_rank"].tolist() == [2, 2, 1]


def test_an_outer_product_has_rank_one_in_every_mode():
    factors = draw((3, 1, 4, 2), rank=1)
    observed = observe(UNFOLDINGS, factors)
    assert observed["multilinear_rank[0.001]"].tolist() == [1, 1, 1, 1]
    assert_close(observed["unfolding_effective_rank"], np.ones(4), "linear_algebra")


def test_a_diagonal_tensor_of_ones_has_full_ranks():
    diagonal = np.zeros((3, 3, 3))
    diagonal[range(3), range(3), range(3)] = 1
    observed = unfoldings_of(diagonal)
    assert observed["multilinear_rank[0.001]"].tolist() == [3, 3, 3]
    assert_close(observed["unfolding_effective_rank"], np.full(3, 3.0), "linear_algebra")


def test_zero_has_rank_zero():
    for values in unfoldings_of(np.zeros((2, 3, 2))).values():
        assert values.tolist() == [0, 0, 0]


def test_of_a_matrix_they_are_its_rank_and_effective_rank():
    matrix = np.random.default_rng(3).normal(size=(4, 2)) @ [[1.0, 2.0, 3.0], [0.0, 1.0, 0.5]]
    matrix = jnp.asarray(matrix, DTYPE)
    problem = ff.Completion(matrix.shape, [[0, 0]], np.ones(1, DTYPE))
    snapshot = ff.Snapshot(problem, ff.Dense(matrix))
    observed = unfoldings_of(matrix)
    assert observed["multilinear_rank[0.001]"].tolist() == [2, 2]
    assert as_measure("rank[0.001]")(snapshot) == 2
    both = np.repeat(as_measure("effective_rank")(snapshot), 2)
    assert_close(observed["unfolding_effective_rank"], both, "linear_algebra")


@pytest.mark.parametrize("scale", [*EXTREMES, -3.0])
def test_scales_and_rotations_of_a_mode_do_not_matter(scale):
    tensor = np.einsum("ar,br,cr->abc", *draw())
    rotated = np.einsum("abc,da->dbc", scale * tensor, orthogonal(np.random.default_rng(4), 3))
    one, other = unfoldings_of(tensor), unfoldings_of(rotated)
    for name in UNFOLDINGS:
        assert_close(other[name], one[name], "linear_algebra", scale=10.0)


# --- What they are not about

OF_TENSORS = {
    "balancedness_gap",
    "frobenius_norm",
    "entrywise_norm",
    "max_norm",
    "loss",
    "reconstruction_error",
    "held_out_loss",
    "gradient_norm",
    "product",
    "multilinear_rank",
    "unfolding_effective_rank",
}
CP_ONLY = {
    "component_norms",
    "largest_component_norms",
    "component_alignment",
    "norm_differences",
}
DETERMINANTS = {"determinant", "log_abs_determinant", "determinant_sign"}
SPECTRAL = sorted(set(MEASURES) - OF_TENSORS - CP_ONLY - DETERMINANTS - {"entry"})


def example(name: str):
    return MEASURES[name].make(*MEASURES[name].example)


@pytest.mark.parametrize("kind", ["dense", "factored"])
@pytest.mark.parametrize("name", SPECTRAL)
def test_a_tensor_has_no_singular_values(name, kind):
    case = CASES["2x3x4-cp"]
    factors = tuple(map(jnp.asarray, case.factors))
    snapshot = case.snapshot(factors)
    if kind == "dense":
        snapshot = ff.Snapshot(snapshot.problem, ff.Dense(snapshot.dense))
    with pytest.raises(ValueError, match=r"tensor of order 3.*ask for `multilinear_rank`"):
        example(name)(snapshot)


@pytest.mark.parametrize("name", sorted(DETERMINANTS))
def test_a_tensor_has_no_determinant(name):
    case = CASES["3x2x2x3-cp"]
    with pytest.raises(ValueError, match=rf"{name} needs a square product.*\(3, 2, 2, 3\)"):
        example(name)(case.snapshot(tuple(map(jnp.asarray, case.factors))))


@pytest.mark.parametrize("kind", ["dense", "deep"])
@pytest.mark.parametrize("name", sorted(CP_ONLY))
def test_other_factorizations_have_no_components(name, kind):
    case = CASES[f"3x3-{kind}"]
    of = {"dense": "NoneType", "deep": "DeepMatrix"}[kind]
    with pytest.raises(ValueError, match=rf"{name}.* components of a CP .*not of a {of}"):
        example(name)(case.snapshot(tuple(map(jnp.asarray, case.factors))))


BAD_INPUT = [
    ("zero k", lambda: ff.largest_component_norms(0), r"counts components.*1 or more, got 0"),
    ("half k", lambda: ff.largest_component_norms(1.5), r"1 or more, got 1.5"),
    (
        "large k",
        lambda: observe(["largest_component_norms[3]"], draw(rank=2)),
        r"largest_component_norms\[3\] asks for more than the 2 there are",
    ),
    ("no k", lambda: as_measure("largest_component_norms"), r"largest_component_norms\[k\]"),
    ("tolerance 0", lambda: ff.multilinear_rank(0), r"relative to sigma_1, in \(0, 1\), got 0"),
    ("tolerance 1", lambda: as_measure("multilinear_rank[1]"), r"in \(0, 1\), got 1"),
    ("an index too few", lambda: observe(["entry[0,0]"], draw()), r"outside .*\(3, 2, 4\)"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
