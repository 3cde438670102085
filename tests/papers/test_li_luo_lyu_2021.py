"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import numpy as np
import pytest

from factorflow.experiments import run
from factorflow.papers.li_luo_lyu_2021 import PAPER
from papers.common import assert_holds_until_corrupted

pytestmark = pytest.mark.x64

CLAIMS = {claim.id: (figure, claim) for figure in PAPER.figures for claim in figure.claims}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """What each figure is drawn from, at quick scale."""
    folder = tmp_path_factory.mktemp("paper") / "data"
    found = {}
    for figure in PAPER.figures:
        experiments = figure.experiments("quick")
        store = run(experiments, folder, progress=False)
        found[figure.name] = figure.derive(store.dataset(experiments), experiments)
    return found


def _with(dataset, name, values):
    return dataset.assign({name: (dataset[name].dims, values)})


def _filled(name, value):
    return lambda dataset: _with(dataset, name, np.full(dataset[name].shape, value))


def _rising(dataset):
    """One run is no closer than the one before it."""
    values = dataset["distance"].values.copy()
    values[1] = values[0]
    return _with(dataset, "distance", values)


def _too_slow(dataset):
    """Strictly falling, yet by little."""
    depth = dataset["factorization.depth"].values
    init = dataset["initializer.product_scale"].values
    return _with(dataset, "distance", np.where(depth == 3, init**0.01, init))


def _one_depth(dataset):
    return dataset.isel(run=np.flatnonzero(dataset["factorization.depth"].values == 2))


def _another_rank(dataset):
    values = dataset["greedy_rank"].values.copy()
    values[-1] += 1
    return _with(dataset, "greedy_rank", values)


def _together(dataset):
    """The second value rises with the first."""
    values = dataset["singular_values"].values.copy()
    values[:, :, 1] = 0.5 * values[:, :, 0]
    return _with(dataset, "singular_values", values)


def _swapped_inits(dataset):
    inits = dataset["initializer.product_scale"].values
    return _with(dataset, "initializer.product_scale", inits.max() * inits.min() / inits)


def _swapped_depths(dataset):
    return _with(dataset, "factorization.depth", 5 - dataset["factorization.depth"].values)


def _proportional(dataset):
    """At depth 2 as at depth 3: shares proportional to the initialization."""
    values = dataset["singular_values"].values.copy()
    init = dataset["initializer.product_scale"].values
    factor = np.where(dataset["factorization.depth"].values == 2, 10.0, 1.0)
    values[:, :, 1] = (init * factor)[:, None] * values[:, :, 0]
    return _with(dataset, "singular_values", values)


MUTATIONS = {
    "greedy_distance.falls": [
        _rising,
        _too_slow,
        _one_depth,
        _filled("tied", True),
        _filled("gap", 0.9),
    ],
    "greedy_distance.rank": [_another_rank, _filled("greedy_ending", "max_rank")],
    "greedy_phases.one_at_a_time": [_together, _swapped_inits],
    "greedy_phases.deeper": [_swapped_depths, _together, _proportional],
    "greedy_tie.reported": [_filled("tied", False), _filled("gap", 0.999)],
    "greedy_tie.stays": [_filled("distance", 0.05)],
}


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_holds_and_fails_when_its_data_are_corrupted(claim_id, datasets):
    figure, claim = CLAIMS[claim_id]
    assert_holds_until_corrupted(claim, datasets[figure.name], MUTATIONS[claim_id])


def test_every_claim_has_a_mutation():
    assert set(MUTATIONS) == set(CLAIMS)


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_without_its_data_does_not_hold(claim_id, datasets):
    figure, claim = CLAIMS[claim_id]
    dataset = datasets[figure.name]
    assert not claim(dataset.isel(run=[])).holds
    for name in ("distance", "gap", "plateau", "singular_values"):
        gone = _filled(name, np.nan)(dataset)
        needed = {
            "greedy_distance.falls": {"distance"},
            "greedy_distance.rank": set(),
            "greedy_phases.one_at_a_time": {"plateau", "singular_values"},
            "greedy_phases.deeper": {"plateau", "singular_values"},
            "greedy_tie.reported": {"gap"},
            "greedy_tie.stays": {"distance"},
        }[claim_id]
        if name in needed:
            assert not claim(gone).holds


def test_runs_that_did_not_reach_their_loss_are_counted(datasets):
    figure, claim = CLAIMS["greedy_distance.falls"]
    dataset = datasets[figure.name]
    assert "all runs reached" in claim(dataset).measured
    ending = np.array(["step_limit_reached"] * dataset.sizes["run"])
    assert "did not reach" in claim(dataset.assign_coords(result=("run", ending))).measured


def test_near_ties_are_left_out_and_counted(datasets):
    figure, claim = CLAIMS["greedy_distance.falls"]
    dataset = datasets[figure.name]
    near = dataset["seed"].values == 0
    gaps = np.where(near[:, None], 0.9, dataset["gap"].values)
    # No matter what they do.
    distances = np.where(near, 1.0, dataset["distance"].values)
    verdict = claim(_with(_with(dataset, "gap", gaps), "distance", distances))
    assert verdict.holds
    assert "on 2 of 2 problems" in verdict.measured
    assert "1 left out" in verdict.measured


def test_distances_are_the_largest_of_the_rows(datasets):
    for dataset in datasets.values():
        largest = np.nanmax(dataset["away"].values, axis=1)
        np.testing.assert_allclose(dataset["distance"].values, largest)
        assert np.array_equal(np.isfinite(dataset["away"].values), dataset["reached"].values)
        assert "product" not in dataset


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_from_its_dataset_alone(figure, datasets):
    drawn = figure.draw(datasets[figure.name], {})
    assert drawn.axes
    for axes in drawn.axes:
        assert axes.get_xlabel()
        assert axes.get_title(loc="left")
        assert axes.get_lines()


def test_captions_define_and_claims_have_sources():
    for figure in PAPER.figures:
        assert len(figure.caption) > 100
        for claim in figure.claims:
            assert claim.source
            assert claim.tolerance
            assert claim.id.startswith(figure.name)


def test_figures_share_their_experiments_which_are_distinct():
    distance, phases, tie = (figure.experiments for figure in PAPER.figures)
    assert distance is phases
    keys = [experiment.key() for experiment in (*distance("quick"), *tie("quick"))]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("scale", "depths", "runs"), [("paper", 3, 210), ("beyond", 3, 210)])
def test_larger_scales_have_more_depths_and_problems(scale, depths, runs):
    experiments = PAPER.figures[0].experiments(scale)
    assert len(experiments) == runs
    assert len({experiment.factorization.degree for experiment in experiments}) == depths
