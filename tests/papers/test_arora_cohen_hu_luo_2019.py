"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import numpy as np
import pytest

from factorflow.experiments import run
from factorflow.papers.arora_cohen_hu_luo_2019 import PAPER
from factorflow.papers.arora_cohen_hu_luo_2019.settings import FEW, MANY, SHARES
from papers.common import assert_holds_until_corrupted

pytestmark = pytest.mark.x64

CLAIMS = {claim.id: (figure, claim) for figure in PAPER.figures for claim in figure.claims}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs of each figure at quick scale, and their experiments."""
    wanted = {figure.name: figure.experiments("quick") for figure in PAPER.figures}
    everything = [experiment for found in wanted.values() for experiment in found]
    store = run(everything, tmp_path_factory.mktemp("paper") / "data", progress=False)
    return {name: (store.dataset(found), found) for name, found in wanted.items()}


@pytest.fixture(scope="module")
def datasets(runs):
    """What each figure is drawn from."""
    return {figure.name: figure.derive(*runs[figure.name]) for figure in PAPER.figures}


def _with(dataset, name, values):
    variable = dataset[name]
    return dataset.assign({name: (variable.dims, np.asarray(values))})


def _times(name, factor, **where):
    """A quantity multiplied, in the runs of a depth or a number of observations."""

    def mutate(dataset):
        hit = np.ones(dataset.sizes["run"], bool)
        for axis, value in where.items():
            hit &= dataset[axis.replace("__", ".")].values == value
        values = dataset[name].values.astype(float)
        return _with(
            dataset, name, np.where(hit.reshape(-1, *[1] * (values.ndim - 1)), factor, 1) * values
        )

    return mutate


def _filled(name, value):
    return lambda dataset: _with(dataset, name, np.full(dataset[name].shape, value))


def _only(depth):
    return lambda dataset: dataset.isel(
        run=np.flatnonzero(dataset["factorization.depth"].values == depth)
    )


def _swapped_inits(dataset):
    inits = dataset["initializer.product_scale"].values
    return _with(dataset, "initializer.product_scale", 1e-10 / inits)


def _swapped_depths(dataset):
    depth = dataset["factorization.depth"].values
    return _with(dataset, "factorization.depth", np.where(depth > 1, 5 - depth, depth))


def _from_the_start(dataset):
    """Vectors that are aligned before anything has happened."""
    values = dataset["alignment"].values.copy()
    values[:, 0] = 0.9
    return _with(dataset, "alignment", values)


FIGURE = "nuclear_norm_and_effective_rank"
MUTATIONS = {
    "completion_error.few": [
        _times("reconstruction_error", 30, factorization__depth=3, task__n_observed=FEW),
        _filled("least_certified", False),
    ],
    "completion_error.many": [
        _times("reconstruction_error", 20, factorization__depth=3, task__n_observed=MANY),
        _filled("least_error", 2e-3),
        _filled("least_certified", False),
    ],
    "completion_error.smaller": [_swapped_inits, _filled("reconstruction_error", 0.1)],
    "completion_error.flat": [_times("away_from_least_frobenius", 3)],
    f"{FIGURE}.few": [
        _times("nuclear_norm", 0.99, factorization__depth=2),
        _times("effective_rank", 1.5, factorization__depth=3),
        _filled("least_certified", False),
        _only(2),
    ],
    f"{FIGURE}.many": [
        _times("nuclear_norm", 1.02, factorization__depth=2),
        _times("effective_rank", 1.02, factorization__depth=3),
        _filled("least_certified", False),
        _only(3),
    ],
    "singular_values.gap": [_swapped_depths, _only(3), _filled("singular_values", 1.0)],
    "singular_values.sharper": [_swapped_depths, _only(3)],
    "alignment.rises": [
        _times("alignment", 0.5, factorization__depth=3),
        _from_the_start,
        _only(2),
    ],
    "alignment.law": [
        _times("along_gradient", 1.02, factorization__depth=3),
        _swapped_depths,
        _only(2),
    ],
    "sensing.few": [_times("reconstruction_error", 50), _filled("least_certified", False)],
    "sensing.norm": [
        _times("nuclear_norm", 0.9),
        _times("effective_rank", 3),
        _filled("least_certified", False),
    ],
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
    nan = dataset
    for name in dataset.data_vars:
        if dataset[name].dtype.kind == "f" and dataset[name].dims[:2] == ("run", "row"):
            nan = _filled(name, np.nan)(nan)
    if claim_id != "completion_error.flat":
        assert not claim(nan).holds
    else:
        assert not claim(_filled("away_from_least_frobenius", np.nan)(dataset)).holds


def test_runs_that_did_not_reach_their_loss_are_counted(datasets):
    figure, claim = CLAIMS["completion_error.few"]
    dataset = datasets[figure.name]
    assert "all runs reached" in claim(dataset).measured
    ending = np.array(["step_limit_reached"] * dataset.sizes["run"])
    assert "did not reach" in claim(dataset.assign_coords(result=("run", ending))).measured


def test_ends_are_those_of_the_products(runs, datasets):
    dataset, experiments = runs["completion_error"]
    ended = datasets["completion_error"]
    for index in (0, len(experiments) - 1):
        product = dataset["product"].values[index, -1]
        target = np.asarray(experiments[index].problem().target)
        error = np.linalg.norm(product - target) / np.linalg.norm(target)
        np.testing.assert_allclose(ended["reconstruction_error"].values[index, 0], error)
        np.testing.assert_allclose(
            ended["nuclear_norm"].values[index, 0], np.linalg.norm(product, "nuc")
        )
    assert "product" not in ended
    # The least nuclear norm lies below that of the ground truth, which fits too.
    gap = ended["truth_nuclear_norm"] / ended["least_nuclear_norm_lower"]
    assert np.all(gap.values > 1 - 1e-9)


def test_the_gradient_in_the_singular_bases_is_that_of_the_loss(runs, datasets):
    import jax
    import jax.numpy as jnp

    import factorflow as ff

    dataset, experiments = runs["alignment"]
    derived, run_index, row = datasets["alignment"], 1, 20
    problem = experiments[run_index].problem()
    product = jnp.asarray(dataset["product"].values[run_index, row])
    gradient = np.asarray(jax.grad(lambda w: problem.loss(ff.Dense(w)))(product))
    left, values, right = np.linalg.svd(np.asarray(product))
    inner = left.T @ gradient @ right.T
    np.testing.assert_allclose(
        derived["along_gradient"].values[run_index, row, :5], np.diag(inner)[:5], rtol=1e-6
    )
    np.testing.assert_allclose(derived["singular_values"].values[run_index, row], values[:8])
    block = inner[:5, :5]
    off = np.sqrt(1 - np.sum(np.diag(block) ** 2) / np.sum(block**2))
    np.testing.assert_allclose(derived["off_diagonal"].values[run_index, row], off, rtol=1e-6)


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_from_its_dataset_alone(figure, datasets):
    drawn = figure.draw(datasets[figure.name], {})
    assert drawn.axes
    for axes in drawn.axes:
        assert axes.get_lines()
    assert any(axes.get_title(loc="left") for axes in drawn.axes)


def test_captions_define_and_claims_have_sources():
    for figure in PAPER.figures:
        assert len(figure.caption) > 100
        for claim in figure.claims:
            assert claim.source
            assert claim.tolerance
            assert claim.id.startswith(figure.name)


def test_settings_are_the_papers():
    assert sorted(SHARES, reverse=True) == list(SHARES)
    completions = PAPER.figure("completion_error").experiments("paper")
    axes = [experiment.axes() for experiment in completions]
    assert {axis["factorization.depth"] for axis in axes} == {1, 2, 3, 4}
    assert {axis["task.n_observed"] for axis in axes} == {2000, 5000}
    assert {axis["initializer.product_scale"] for axis in axes} == {1e-3, 1e-4, 1e-5, 1e-6}
    keys = {experiment.key() for f in PAPER.figures for experiment in f.experiments("paper")}
    # Two figures share the completions, two the flows that are watched.
    assert len(keys) == 32 + 4 + 16
    assert all(e.certify == "full" for e in PAPER.figure("alignment").experiments("paper"))
