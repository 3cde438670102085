"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import importlib

import cvxpy
import numpy as np
import pytest

from factorflow.experiments import run
from factorflow.papers.bai_2024.results import LEAST, curves
from papers.common import assert_holds_until_corrupted

pytestmark = pytest.mark.x64

# By its module: what is claimed of a paper does not hang on its place in the catalogue.
PAPER = importlib.import_module("factorflow.papers.bai_2024").PAPER
CLAIMS = {claim.id: (figure, claim) for figure in PAPER.figures for claim in figure.claims}
SCALE = "initializer.product_scale"


@pytest.fixture(scope="module")
def experiments():
    return PAPER.figures[0].experiments("quick")


@pytest.fixture(scope="module")
def dataset(experiments, tmp_path_factory):
    """The runs at quick scale, which both figures share, with what is computed beside them."""
    store = run(experiments, tmp_path_factory.mktemp("paper") / "data", progress=False)
    return PAPER.figures[0].derive(store.dataset(experiments), experiments)


def _with(dataset, name, values):
    return dataset.assign({name: (dataset[name].dims, values)})


def _graph(dataset, kind):
    return dataset[kind].values.astype(bool)


def _norm(kind, factor):
    """The last norms of one kind, multiplied."""

    def mutate(dataset):
        values = dataset["nuclear_norm"].values.copy()
        values[_graph(dataset, kind) & (dataset[SCALE].values < 1e-3)] *= factor
        return _with(dataset, "nuclear_norm", values)

    return mutate


def _least_connected(dataset):
    """All connected instances end at the least norm."""
    values = dataset["nuclear_norm"].values.copy()
    chosen = _graph(dataset, "connected")
    values[chosen] = dataset["least_nuclear_norm"].values[chosen][:, None]
    return _with(dataset, "nuclear_norm", values)


def _values(kind, share):
    """The first singular value beyond the infimal rank has this share at the smallest scale."""

    def mutate(dataset):
        values = dataset["log_singular_values"].values.copy()
        for lane in np.flatnonzero(_graph(dataset, kind) & (dataset[SCALE].values < 1e-7)):
            place = int(dataset["upper_rank"].values[lane])
            values[lane, :, place] = values[lane, :, 0] + np.log(share)
        return _with(dataset, "log_singular_values", values)

    return mutate


def _open_ranks(dataset):
    """Nothing is known of the infimal rank but an interval."""
    return dataset.assign_coords(upper_rank=("run", dataset["lower_rank"].values + 1))


def _no_minimum(dataset):
    gone = np.full(dataset.sizes["run"], np.nan)
    return dataset.assign_coords(least_nuclear_norm=("run", gone))


MUTATIONS = {
    "nuclear_norm.disconnected": [_norm("complete", 1.03), _norm("complete", 0.97), _no_minimum],
    "nuclear_norm.disconnected_rank": [_values("complete", 1e-5), _open_ranks],
    "nuclear_norm.connected": [_least_connected, _no_minimum],
    "singular_values.connected": [_values("connected", 2e-3), _open_ranks],
    "singular_values.vanish": [_values("connected", 0.5), _open_ranks],
    "singular_values.disconnected": [_values("complete", 1e-5), _open_ranks],
}


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_holds_and_fails_when_its_data_are_corrupted(claim_id, dataset):
    _, claim = CLAIMS[claim_id]
    assert_holds_until_corrupted(claim, dataset, MUTATIONS[claim_id])


def test_every_claim_has_a_mutation():
    assert set(MUTATIONS) == set(CLAIMS)


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_without_its_data_does_not_hold(claim_id, dataset):
    _, claim = CLAIMS[claim_id]
    assert not claim(dataset.isel(run=[])).holds
    for flag in ("reached", "trusted[nuclear_norm]"):
        assert not claim(_with(dataset, flag, np.zeros(dataset[flag].shape, bool))).holds
    for name in ("nuclear_norm", "log_singular_values"):
        gone = _with(dataset, name, np.full(dataset[name].shape, np.nan))
        norms = claim_id in ("nuclear_norm.disconnected", "nuclear_norm.connected")
        if norms == (name == "nuclear_norm"):
            assert not claim(gone).holds


def test_runs_without_a_certificate_do_not_count(dataset):
    """A wrong norm at the smallest scale is ignored once its certificate is gone."""
    last = dataset[SCALE].values == 1e-16
    wrong = dataset["nuclear_norm"].values.copy()
    wrong[last] *= 2
    trusted = dataset["trusted[nuclear_norm]"].values.copy()
    trusted[last] = False
    _, claim = CLAIMS["nuclear_norm.disconnected"]
    wrong, flag = _with(dataset, "nuclear_norm", wrong), "trusted[nuclear_norm]"
    assert not claim(_with(wrong, flag, np.ones_like(trusted))).holds
    assert claim(_with(wrong, flag, trusted)).holds


def test_minima_and_patterns_are_those_of_the_problems(dataset, experiments):
    """Against cvxpy, and masks against the indices."""
    for lane in (0, len(experiments) - 1):
        problem = experiments[lane].problem()
        weights, values = (np.asarray(array) for array in problem.masked)
        np.testing.assert_array_equal(dataset["mask"].values[lane], weights > 0)
        matrix = cvxpy.Variable(problem.shape)
        program = cvxpy.Problem(
            cvxpy.Minimize(cvxpy.normNuc(matrix)),
            [cvxpy.multiply(weights > 0, matrix) == np.where(weights > 0, values, 0)],
        )
        program.solve(solver="CLARABEL")
        # Interior point, to its default 1e-8 and the square root of that where it is degenerate.
        np.testing.assert_allclose(
            dataset["least_nuclear_norm"].values[lane], program.value, rtol=1e-5
        )


def test_disconnected_minima_are_the_sums_over_the_blocks(dataset, experiments):
    for lane, experiment in enumerate(experiments):
        if dataset["complete"].values[lane]:
            target = np.asarray(experiment.problem().target)
            blocks = target[:3, :3], target[3:, 3:]
            norm = sum(np.linalg.norm(block, "nuc") for block in blocks)
            # The certificate's accuracy.
            least = dataset["least_nuclear_norm"].values[lane]
            np.testing.assert_allclose(least, norm, rtol=1e-6)


def test_curves_are_read_off_by_falling_scale(dataset):
    turned = dataset.isel(run=slice(None, None, -1))
    key = lambda curve: (curve.kind, curve.seed)  # noqa: E731
    pairs = zip(sorted(curves(dataset), key=key), sorted(curves(turned), key=key), strict=True)
    for one, other in pairs:
        assert np.all(np.diff(one.scales) < 0)
        np.testing.assert_array_equal(one.excess, other.excess)
        np.testing.assert_array_equal(one.shares, other.shares)
        assert one.rank == np.sum(one.shares[one.last] >= LEAST)


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_from_its_dataset_alone(figure, dataset):
    drawn = figure.draw(dataset, {})
    assert len(drawn.axes) == (8 if figure.name == "nuclear_norm" else 4)
    for axes in drawn.axes:
        assert axes.get_xlabel() or axes.get_title(loc="left")
        assert axes.lines or axes.images


def test_captions_define_and_claims_have_sources():
    for figure in PAPER.figures:
        assert len(figure.caption) > 100
        for claim in figure.claims:
            assert claim.source
            assert claim.tolerance
            assert claim.id.startswith(figure.name)


@pytest.mark.parametrize("scale", ["quick", "paper", "beyond"])
def test_figures_share_their_experiments_which_are_distinct(scale):
    first, second = (figure.experiments for figure in PAPER.figures)
    assert first is second
    keys = [experiment.key() for experiment in first(scale)]
    assert len(keys) == len(set(keys))
