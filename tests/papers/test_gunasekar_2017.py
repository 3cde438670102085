"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import importlib

import cvxpy
import jax
import numpy as np
import pytest

from factorflow._problem.sensing_catalogue import commuting_sensing_problem
from factorflow.experiments import run
from factorflow.papers.gunasekar_2017.closed_form import diagonal_limit
from factorflow.papers.gunasekar_2017.results import curves, hidden
from papers.common import assert_holds_until_corrupted

pytestmark = pytest.mark.x64

# By its module: what is claimed of a paper does not hang on its place in the catalogue.
PAPER = importlib.import_module("factorflow.papers.gunasekar_2017").PAPER
FIGURES = {figure.name: figure for figure in PAPER.figures}
CLAIMS = {claim.id: claim for figure in PAPER.figures for claim in figure.claims}
SCALE = "initializer.product_scale"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Both figures at quick scale, with what is computed beside the runs."""
    wanted = {name: figure.experiments("quick") for name, figure in FIGURES.items()}
    everything = [experiment for group in wanted.values() for experiment in group]
    store = run(everything, tmp_path_factory.mktemp("paper") / "data", progress=False)
    return {
        name: FIGURES[name].derive(store.dataset(group), group) for name, group in wanted.items()
    }


def _of(claim_id, datasets):
    return datasets[claim_id.partition(".")[0]]


def _with(dataset, name, values):
    return dataset.assign({name: (dataset[name].dims, values)})


def _coordinate(name, change):
    def mutate(dataset):
        return dataset.assign_coords({name: ("run", change(dataset[name].values.copy()))})

    return mutate


def _norms(factor, depth):
    """Norms at one depth, multiplied."""

    def mutate(dataset):
        values = dataset["nuclear_norm"].values.copy()
        values[dataset["factorization.depth"].values == depth] *= factor
        return _with(dataset, "nuclear_norm", values)

    return mutate


def _rising(dataset):
    """The second largest initialization has more left than the largest."""
    values = dataset["nuclear_norm"].values.copy()
    values[dataset[SCALE].values == 1e-2] *= 2
    return _with(dataset, "nuclear_norm", values)


def _truths(dataset):
    """Every flow ends at the ground truth's norm."""
    values = np.broadcast_to(
        dataset["truth_nuclear_norm"].values[:, None], dataset["nuclear_norm"].shape
    )
    return _with(dataset, "nuclear_norm", values)


def _gone(values):
    return np.full(values.shape, np.nan)


NO_MINIMUM = _coordinate("least_nuclear_norm", _gone)
SEMIDEFINITE = [
    _coordinate("smallest_eigenvalue", lambda values: values - 1.0),
    _coordinate("asymmetry", lambda values: values + 1e-3),
    _coordinate("asymmetry", _gone),
]
MUTATIONS = {
    "commuting.nuclear_norm": [_norms(1.02, 2), _norms(0.98, 2), _norms(1.02, 3), NO_MINIMUM],
    "commuting.falls": [_rising, NO_MINIMUM],
    "commuting.closed_form": [
        _norms(1.001, 3),
        _coordinate("predicted_nuclear_norm", _gone),
        NO_MINIMUM,
    ],
    "commuting.not_the_truth": [_truths, NO_MINIMUM],
    "commuting.semidefinite": SEMIDEFINITE,
    "random_sensing.nuclear_norm": [_norms(1.06, 2), _norms(0.94, 3), NO_MINIMUM],
    "random_sensing.nears": [_norms(1.1, 2), _norms(0.9, 3), NO_MINIMUM],
    "random_sensing.semidefinite": SEMIDEFINITE,
}


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_holds_and_fails_when_its_data_are_corrupted(claim_id, datasets):
    claim, dataset = CLAIMS[claim_id], _of(claim_id, datasets)
    assert_holds_until_corrupted(claim, dataset, MUTATIONS[claim_id])


def test_every_claim_has_a_mutation():
    assert set(MUTATIONS) == set(CLAIMS)


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_without_its_data_does_not_hold(claim_id, datasets):
    claim, dataset = CLAIMS[claim_id], _of(claim_id, datasets)
    assert not claim(dataset.isel(run=[])).holds
    for flag in ("reached", "trusted[product]"):
        assert not claim(_with(dataset, flag, np.zeros(dataset[flag].shape, bool))).holds
    if not claim_id.endswith("semidefinite"):
        gone = _with(dataset, "nuclear_norm", np.full(dataset["nuclear_norm"].shape, np.nan))
        assert not claim(gone).holds


# Where a single semidefinite matrix fits there is no interior, which the method needs.
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("name", FIGURES)
def test_minima_are_those_of_cvxpy(name, datasets):
    """Over semidefinite solutions the nuclear norm is the trace: a semidefinite program."""
    for lane in (0, -1):
        experiment = FIGURES[name].experiments("quick")[lane]
        problem = experiment.problem()
        matrix = cvxpy.Variable(problem.shape, PSD=True)
        fits = [
            cvxpy.sum(cvxpy.multiply(np.asarray(measured), matrix)) == float(value)
            for measured, value in zip(problem.measurements, problem.values, strict=True)
        ]
        program = cvxpy.Problem(cvxpy.Minimize(cvxpy.trace(matrix)), fits)
        program.solve(solver="CLARABEL")
        # Interior point, to its default 1e-8 and the square root of that where it is degenerate.
        least = datasets[name]["least_nuclear_norm"].values[lane]
        np.testing.assert_allclose(least, program.value, rtol=1e-4)


# --- The closed form


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("product_scale", [1e-1, 1e-6])
def test_the_closed_form_fits_and_minimizes_its_potential(depth, product_scale):
    r"""Against a solver of constrained convex programs.

    With $q = 1 - 2/L$ the limit minimizes, among what fits, $\sum_i x_i (\ln (x_i / \alpha) - 1)$
    at depth 2 and $\sum_i \big( \alpha^{-q} x_i - x_i^{1 - q} / (1 - q) \big)$ beyond.
    """
    problem = commuting_sensing_problem(jax.random.key(3), 6, 2, 3, frobenius_norm=1.0)
    rows = np.diagonal(np.asarray(problem.measurements), axis1=1, axis2=2)
    found = diagonal_limit(problem, depth, product_scale)
    np.testing.assert_allclose(rows @ found, problem.values, atol=1e-9)
    x = cvxpy.Variable(6)
    if depth == 2:
        cost = -cvxpy.sum(cvxpy.entr(x)) - (1 + np.log(product_scale)) * cvxpy.sum(x)
    else:
        q = 1 - 2 / depth
        # Divided by its largest coefficient, for the solver's sake.
        power = cvxpy.sum(cvxpy.power(x, 1 - q)) * product_scale**q / (1 - q)
        cost = cvxpy.sum(x) - power
    cvxpy.Problem(cvxpy.Minimize(cost), [rows @ x == np.asarray(problem.values)]).solve(
        solver="CLARABEL"
    )
    # A solver to 1e-8 of the cost, which is flat at the minimum: the root of that.
    np.testing.assert_allclose(found, x.value, atol=3e-4)


def test_the_closed_form_is_for_diagonal_measurements():
    problem = commuting_sensing_problem(jax.random.key(3), 4, 1, 2, basis="random")
    with pytest.raises(ValueError, match="use basis='identity'"):
        diagonal_limit(problem, 2, 1e-2)


# --- Curves, figures, settings


@pytest.mark.parametrize("name", FIGURES)
def test_curves_are_read_off_by_falling_scale(name, datasets):
    dataset = datasets[name]
    turned = dataset.isel(run=slice(None, None, -1))
    for one, other in zip(curves(dataset), curves(turned), strict=True):
        assert np.all(np.diff(one.scales) < 0)
        np.testing.assert_array_equal(one.excess, other.excess)
        assert (one.depth, one.seed) == (other.depth, other.seed)


def test_what_the_residual_hides_is_far_below_the_first_excess(datasets):
    for dataset in datasets.values():
        assert 0 < hidden(dataset) < 0.1 * min(curve.excess[0] for curve in curves(dataset))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_from_its_dataset_alone(name, datasets):
    drawn = FIGURES[name].draw(datasets[name], {})
    assert len(drawn.axes) == 2
    for axes in drawn.axes:
        assert axes.get_xlabel()
        assert axes.lines


def test_captions_define_and_claims_have_sources():
    for figure in PAPER.figures:
        assert len(figure.caption) > 100
        for claim in figure.claims:
            assert claim.source
            assert claim.tolerance
            assert claim.id.startswith(figure.name)


@pytest.mark.parametrize("scale", ["quick", "paper", "beyond"])
def test_experiments_are_distinct(scale):
    keys = [e.key() for figure in PAPER.figures for e in figure.experiments(scale)]
    assert len(keys) == len(set(keys))
