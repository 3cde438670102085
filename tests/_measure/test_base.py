"""Naming measures: strings, objects, functions; what is refused; what a run does with them."""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from _measure.references import CASES, DTYPE, REFERENCES, measures_of, observe
from factorflow._measure import MEASURES, as_measure, as_measures
from tolerances import assert_close


def dense(matrix=((2.0, 0.0), (0.0, 1.0)), problem=None) -> ff.Snapshot:
    matrix = jnp.asarray(matrix, DTYPE)
    problem = ff.Completion(matrix.shape, [[0, 0]], [1.0]) if problem is None else problem
    return ff.Snapshot(problem, ff.Dense(matrix))


def run(measures, steps: int = 3, problem=None, factors=None) -> ff.Trajectory:
    fz = ff.DeepMatrix((2, 2), depth=2)
    return ff.simulate(
        ff.razin_cohen_problem() if problem is None else problem,
        fz,
        ff.GradientDescent(0.1),
        ff.Identity(product_scale=0.5)(fz) if factors is None else factors,
        observe=ff.AtSteps([0, steps]),
        stop=ff.Stop(max_steps=steps),
        measures=measures,
    )


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("loss", "loss"),
        (" nuclear_norm ", "nuclear_norm"),
        ("loss[]", "loss"),
        ("schatten_norm[0.5]", "schatten_norm[0.5]"),
        ("schatten_norm[.5]", "schatten_norm[0.5]"),
        ("schatten_norm[1.0]", "schatten_norm[1]"),
        ("schatten_norm [ 5e-1 ]", "schatten_norm[0.5]"),
        ("schatten_norm[inf]", "schatten_norm[inf]"),
        ("entry[0,0]", "entry[0,0]"),
        ("entry[ 0 , 1 ]", "entry[0,1]"),
        ("entry[1,0,2]", "entry[1,0,2]"),
        ("rank", "rank"),
        ("rank[1e-3]", "rank[0.001]"),
        ("rank[1e-9]", "rank[1e-09]"),
        ("distance_to_rank[0]", "distance_to_rank[0]"),
    ],
)
def test_names_parse_to_one_spelling(written, name):
    measure = as_measure(written)
    assert measure.name == name
    assert as_measure(name) is measure


@pytest.mark.parametrize("half", [0.5, "0.5", np.float32(0.5), np.array(0.5), jnp.asarray(0.5)])
def test_equal_parameters_are_the_same_measure(half):
    measure = ff.schatten_norm(half)
    assert measure is ff.schatten_norm(p=0.5) is as_measure("schatten_norm[0.5]")
    assert measure == ff.schatten_norm(0.5) and hash(measure) == hash(ff.schatten_norm(0.5))
    assert len({measure, ff.schatten_norm(0.5), ff.schatten_norm(0.25)}) == 2
    assert as_measure(measure) is measure


def test_integers_by_any_type_are_the_same_measure():
    assert ff.ky_fan_norm(1) is ff.ky_fan_norm(1.0) is ff.ky_fan_norm(np.int32(1))
    assert ff.entry(0, 1) is as_measure("entry[0,1]") is ff.entry(np.int64(0), jnp.asarray(1))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_constructors_and_strings_agree(case):
    for family in REFERENCES:
        for measure, parameters in measures_of(family, case):
            assert as_measure(measure.name) is MEASURES[family].make(*parameters)


def test_functions_and_constructors_are_measures():
    def trace(snapshot: ff.Snapshot):
        return jnp.trace(snapshot.dense)

    measure = as_measure(trace)
    assert measure.name == "trace" and measure.dims == ()
    assert measure == as_measure(trace) and hash(measure) == hash(as_measure(trace))
    assert measure(dense()) == 3.0
    assert as_measure(ff.rank) is as_measure("rank")  # a constructor that needs no parameters

    class Squared(eqx.Module):
        def __call__(self, snapshot):
            return snapshot.loss**2

    assert as_measure(Squared()).name == "Squared"


def test_measures_in_any_container():
    def trace(snapshot: ff.Snapshot):
        return jnp.trace(snapshot.dense)

    mixed = ("loss", ff.entry(0, 0), trace)
    assert [measure.name for measure in as_measures(mixed)] == ["loss", "entry[0,0]", "trace"]
    assert as_measures(list(mixed)) == as_measures(mixed)
    for single in mixed:
        assert as_measures(single) == as_measures([single])
    assert as_measures([]) == ()


BAD_INPUT = [
    ("unknown", lambda: as_measure("nuclear_nrm"), r"'nuclear_nrm'.*mean 'nuclear_norm'.*: bal"),
    ("nonsense", lambda: as_measure("xyzzy"), r"measure 'xyzzy'\. Known: balancedness_gap, "),
    ("empty", lambda: as_measure(""), r"Unknown measure ''"),
    ("unclosed", lambda: as_measure("schatten_norm[1"), r"mean 'schatten_norm'\?"),
    (
        "no p",
        lambda: as_measure("schatten_norm"),
        r"fit its parameters; write 'schatten_norm\[p\]'",
    ),
    ("no p, by constructor", lambda: as_measure(ff.schatten_norm), r"write 'schatten_norm\[p\]'"),
    ("two p", lambda: as_measure("schatten_norm[1,2]"), r"write 'schatten_norm\[p\]'"),
    ("takes none", lambda: as_measure("loss[2]"), r"'loss\[2\]' does not fit.*write 'loss'"),
    ("no number", lambda: as_measure("schatten_norm[a]"), r"are numbers, got 'a'"),
    ("no number, by constructor", lambda: ff.entry(None, 0), r"are numbers, got None"),
    ("zero p", lambda: as_measure("schatten_norm[0]"), r"p must be positive, got 0"),
    ("negative p", lambda: ff.schatten_norm(-0.5), r"p must be positive, got -0.5"),
    ("NaN p", lambda: ff.schatten_norm(float("nan")), r"p must be positive, got nan"),
    ("zero p, entrywise", lambda: ff.entrywise_norm(0.0), r"p must be positive, got 0"),
    ("zero k", lambda: ff.ky_fan_norm(0), r"k must be an integer of 1 or more, got 0"),
    ("half k", lambda: ff.ky_fan_norm(1.5), r"k must be an integer of 1 or more, got 1.5"),
    ("large k", lambda: ff.ky_fan_norm(3)(dense()), r"ky_fan_norm\[3\] asks for more than the 2"),
    (
        "negative rank",
        lambda: ff.distance_to_rank(-1),
        r"k must be an integer of 0 or more, got -1",
    ),
    (
        "rank of a shape",
        lambda: ff.distance_to_rank(2)(dense()),
        r"to_rank\[2\].*k must be below 2",
    ),
    ("no tolerance", lambda: ff.rank(0), r"relative to sigma_1, in \(0, 1\), got 0"),
    ("tolerance", lambda: as_measure("rank[1]"), r"relative to sigma_1, in \(0, 1\), got 1"),
    ("one index", lambda: ff.entry(0), r"entry takes two or more indices.*got \[0\]"),
    ("negative index", lambda: ff.entry(-1, 0), r"counted from 0.*got \[-1, 0\]"),
    ("half an index", lambda: ff.entry(0.5, 0), r"entry takes two or more indices.*got \[0.5, 0\]"),
    ("outside", lambda: ff.entry(0, 2)(dense()), r"entry\[0, 2\] is outside.*\(2, 2\)"),
    ("twice", lambda: as_measures(["loss", "loss"]), r"'loss' is requested twice"),
    (
        "twice, in two spellings",
        lambda: as_measures([ff.schatten_norm(0.5), "nuclear_norm", "schatten_norm[ 0.50]"]),
        r"'schatten_norm\[0.5\]' is requested twice",
    ),
    (
        "twice, unnamed",
        lambda: as_measures([lambda snapshot: snapshot.loss, lambda snapshot: snapshot.time]),
        r"'<lambda>' is requested twice",
    ),
    (
        "a column's name",
        lambda: as_measures([ff.Measure("trusted", lambda snapshot: snapshot.loss)]),
        r"cannot be called 'trusted', a column that results have anyway: rename",
    ),
    (
        "a flag's name",
        lambda: as_measures([ff.Measure("trusted[loss]", lambda snapshot: snapshot.loss)]),
        r"cannot be called 'trusted\[loss\]'",
    ),
    ("no target", lambda: as_measure("reconstruction_error")(dense()), r"needs .* target.*target="),
    (
        "no target, held out",
        lambda: as_measure("held_out_loss")(dense()),
        r"needs .* target.*target=",
    ),
    (
        "no factors",
        lambda: as_measure("balancedness_gap")(dense()),
        r"balancedness_gap needs factors",
    ),
    (
        "no square",
        lambda: as_measure("log_abs_determinant")(dense([[1.0, 2.0]])),
        r"log_abs_determinant needs a square product, this one has shape \(1, 2\)",
    ),
    ("in a run", lambda: run(["los"]), r"Unknown measure 'los'\. Did you mean 'loss'"),
    ("shape, in a run", lambda: run([ff.entry(5, 5)]), r"entry\[5, 5\] is outside"),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["2x2-deep", "4x2-dense", "2x3x4-cp"])
def test_narrow_products_have_narrow_measures(name):
    """float32 in, float32 out, also where float64 is enabled and is the default."""
    case = CASES[name]

    def values(problem, factors):
        snapshot = case.snapshot(factors, problem)
        return {
            measure.name: measure(snapshot)
            for family in REFERENCES
            for measure, _ in measures_of(family, case)
        }

    def narrow(leaf):
        return leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf

    arguments = jax.tree.map(narrow, (case.problem(), tuple(map(jnp.asarray, case.factors))))
    # Dtypes are known from the trace alone; strict promotion refuses any mixture on the way.
    for name, value in jax.eval_shape(values, *arguments).items():
        assert value.dtype == jnp.float32, name


def test_batches_agree_with_single_products():
    names = ("loss", "effective_rank", "schatten_norm[0.5]", "singular_values", "determinant")
    matrices = np.random.default_rng(0).normal(size=(4, 2, 2)).astype(DTYPE)
    matrices[-1] = 0  # a lane of zeros must not spoil the others
    batched = jax.jit(jax.vmap(lambda matrix: observe(names, matrix)))(jnp.asarray(matrices))
    for lane, matrix in enumerate(matrices):
        for name, alone in observe(names, matrix).items():
            assert_close(batched[name][lane], alone)


def test_the_same_measures_do_not_compile_again():
    traced = []

    def counting(snapshot: ff.Snapshot):
        traced.append(1)
        return snapshot.loss

    run([ff.schatten_norm(0.5), "rank", counting])
    once = len(traced)
    assert once > 0
    fz = ff.DeepMatrix((2, 2), depth=2)
    factors = ff.Identity(product_scale=0.25)(fz)
    run(["schatten_norm[0.5]", ff.rank(), counting], factors=factors)
    assert len(traced) == once


@pytest.fixture
def entry_sum():
    """The recipe of the documentation: a measure with a parameter, from definition to a run."""

    @ff.measure(example=(2,))
    def entry_sum(snapshot: ff.Snapshot, power):
        r"""Sum of powers of the entries $\sum_{ij} w_{ij}^p$."""
        return jnp.sum(snapshot.dense**power)

    yield entry_sum
    del MEASURES["entry_sum"]


def test_a_registered_measure_works_in_a_run(entry_sum):
    trajectory = run(["loss", "entry_sum[3]", entry_sum(2)])
    assert set(trajectory.measures) == {"loss", "entry_sum[3]", "entry_sum[2]"}
    end = np.asarray(trajectory.factors[1] @ trajectory.factors[0])
    for power in (2, 3):
        values = trajectory.measures[f"entry_sum[{power}]"]
        assert_close(values, [2 * 0.5**power, np.sum(end.astype(float) ** power)])
    assert as_measure(entry_sum(2).name) is entry_sum(2)
    assert entry_sum(2).summary == r"Sum of powers of the entries $\sum_{ij} w_{ij}^p$."
    with pytest.raises(ValueError, match=r"write 'entry_sum\[power\]'"):
        as_measure(entry_sum)


def test_the_recipe_leaves_nothing_behind():
    with pytest.raises(ValueError, match="Unknown measure 'entry_sum'"):
        as_measure("entry_sum[2]")


def test_measures_of_a_run_are_labelled():
    def trace(snapshot: ff.Snapshot):
        return jnp.trace(snapshot.dense)

    dataset = run(["singular_values", "product", trace]).to_xarray()
    assert dataset["singular_values"].dims == ("row", "singular_value")
    assert dataset["product"].dims == ("row", "product_row", "product_column")
    assert dataset["trace"].dims == ("row",)
    assert_close(dataset["trace"].values[0], 1.0)
    assert_close(dataset["product"].values[0], 0.5 * np.eye(2))


FACTOR = 2.0
TABLE = [2.0]


def test_functions_made_anew_are_the_same_measure_where_nothing_in_them_can_differ(monkeypatch):
    def closed(value):
        return as_measure(lambda snapshot: value * snapshot.loss)

    def named():
        return as_measure(lambda snapshot: FACTOR * snapshot.loss)

    def within():
        return as_measure(lambda snapshot: max(FACTOR * item for item in [snapshot.loss]))

    def through_another():
        return as_measure(lambda snapshot: scale_by_factor(snapshot.loss))

    def tabled():
        return as_measure(lambda snapshot: TABLE[0] * snapshot.loss)

    assert closed(2.0) == closed(2.0) != closed(3.0)
    assert closed(0.0) != closed(-0.0) and closed(1) != closed(1.0)
    # What can change in place is never the same, even unchanged.
    assert closed(np.ones(())) != closed(np.ones(()))
    assert tabled() != tabled()
    makers = named, within, through_another
    first = [make() for make in makers]
    assert first == [make() for make in makers]
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert all(make() != before for make, before in zip(makers, first, strict=True))


def scale_by_factor(value):
    return FACTOR * value


def trace_of(snapshot: ff.Snapshot):
    return jnp.trace(snapshot.dense)


def test_measures_are_pickled_by_name_and_copied():
    for measure in ("loss", "schatten_norm[0.5]", ff.entry(0, 1), trace_of):
        measure = as_measure(measure)
        assert pickle.loads(pickle.dumps(measure)) == measure
        assert copy.deepcopy(measure) == copy.copy(measure) == measure
