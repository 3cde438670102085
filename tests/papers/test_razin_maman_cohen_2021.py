"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import numpy as np
import pytest

from factorflow.experiments import run
from factorflow.papers import PAPERS, load_paper
from papers.common import assert_holds_until_corrupted

pytestmark = pytest.mark.x64

PAPER = load_paper("razin_maman_cohen_2021")
CLAIMS = {claim.id: (figure, claim) for figure in PAPER.figures for claim in figure.claims}
NORMS = "largest_component_norms[10]"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The runs at quick scale, which both figures share."""
    experiments = PAPER.figures[0].experiments("quick")
    store = run(experiments, tmp_path_factory.mktemp("paper") / "data", progress=False)
    return store.dataset(experiments)


def _smallest(dataset):
    return dataset["initializer.factor_scale"].values == 1e-2


def _with(dataset, name, values):
    return dataset.assign({name: (dataset[name].dims, values)})


def _another_component(dataset):
    """One run that ends with one component too many."""
    values = dataset[NORMS].values.copy()
    values[_smallest(dataset), :, 3] = 0.5 * values[_smallest(dataset), :, 2]
    return _with(dataset, NORMS, values)


def _a_rest(dataset):
    """A component too many that is small, yet not negligible."""
    values = dataset[NORMS].values.copy()
    values[:, :, 3] = 0.02 * values[:, :, 0]
    return _with(dataset, NORMS, values)


def _together(dataset):
    """The last component rises with the first."""
    values = dataset[NORMS].values.copy()
    values[:, :, 1:3] = [0.9, 0.8] * values[:, :, :1]
    return _with(dataset, NORMS, values)


def _swapped(name):
    """The runs trade their initializations."""

    def mutate(dataset):
        return _with(dataset, name, dataset[name].values[::-1])

    return mutate


def _straight(dataset):
    """The error falls by the same amount in every row."""
    values = dataset["reconstruction_error"].values
    rows = np.linspace(1, 0, values.shape[1])
    return _with(dataset, "reconstruction_error", np.broadcast_to(rows, values.shape))


MUTATIONS = {
    "component_norms.rank": [_another_component, _a_rest],
    "component_norms.one_at_a_time": [_together],
    "component_norms.sharper": [_swapped("initializer.factor_scale")],
    "error_staircase.error": [_swapped("initializer.factor_scale")],
    "error_staircase.falls": [_straight],
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
    nothing = _with(dataset, "reached", np.zeros(dataset["reached"].shape, bool))
    assert not claim(nothing).holds
    assert not claim(dataset.isel(run=[])).holds
    gone = _with(dataset, NORMS, np.full(dataset[NORMS].shape, np.nan))
    if claim_id.startswith("component_norms"):
        assert not claim(gone).holds
    lost = np.full(dataset["reconstruction_error"].shape, np.nan)
    if claim_id.startswith("error_staircase"):
        assert not claim(_with(dataset, "reconstruction_error", lost)).holds


@pytest.mark.parametrize("name", ["component_norms.rank", "error_staircase.error"])
def test_runs_that_did_not_converge_are_counted(name, dataset):
    _, claim = CLAIMS[name]
    assert "all converged" in claim(dataset).measured
    ending = np.array(["step_limit_reached"] * dataset.sizes["run"])
    assert "did not converge" in claim(dataset.assign_coords(result=("run", ending))).measured


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_from_its_dataset_alone(figure, dataset):
    drawn = figure.draw(dataset, {})
    assert drawn.axes
    for axes in drawn.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left")
        # What was drawn is in view.
        right = max(line.get_xdata()[-1] for line in axes.get_lines() if line.get_xdata().size)
        assert axes.get_xlim()[1] >= right


def test_captions_define_and_claims_have_sources():
    for figure in PAPER.figures:
        assert len(figure.caption) > 100
        for claim in figure.claims:
            assert claim.source
            assert claim.tolerance
            assert claim.id.startswith(figure.name)


def test_the_paper_is_listed_under_its_own_name():
    assert PAPER.name in PAPERS


@pytest.mark.parametrize("scale", ["quick", "paper", "beyond"])
def test_figures_share_their_experiments_which_are_distinct(scale):
    first, second = (figure.experiments for figure in PAPER.figures)
    assert first is second
    keys = [experiment.key() for experiment in first(scale)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
def test_settings_in_units_of_the_ground_truth_are_the_papers(loss):
    for experiment in PAPER.figures[0].experiments("paper"):
        if experiment.task.loss == loss:
            unit = experiment.task.frobenius_norm**0.25
            assert round(experiment.initializer.factor_scale / unit, 12) in (5e-2, 1e-2, 5e-3)
            assert experiment.task.n_observed == 2000
            assert experiment.task.rank == 5
