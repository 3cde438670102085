"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import numpy as np
import pytest

from factorflow.experiments import run
from factorflow.papers import PAPERS, load_paper

pytestmark = pytest.mark.x64

PAPER = load_paper("razin_cohen_2020")
CLAIMS = {claim.id: (figure, claim) for figure in PAPER.figures for claim in figure.claims}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The whole paper at quick scale, run once."""
    experiments = [e for figure in PAPER.figures for e in figure.experiments("quick")]
    return run(experiments, tmp_path_factory.mktemp("paper") / "data", progress=False)


@pytest.fixture(scope="module")
def datasets(store):
    return {figure.name: store.dataset(figure.experiments("quick")) for figure in PAPER.figures}


def _scaled(name, factor, **axes):
    """Multiply a variable in the runs with these axes."""

    def mutate(dataset):
        keep = np.ones(dataset.sizes["run"], bool)
        for axis, value in axes.items():
            keep &= dataset[axis.replace("__", ".")].values == value
        assert keep.any()
        values = dataset[name].values.copy()
        values[keep] *= factor
        return dataset.assign({name: (dataset[name].dims, values)})

    return mutate


def _flat_tail(name, level):
    """Freeze a variable below a loss: it no longer grows or falls."""

    def mutate(dataset):
        values = dataset[name].values.copy()
        below = np.nan_to_num(dataset["level"].values, nan=np.inf) <= level
        for lane in range(values.shape[0]):
            if below[lane].any():
                values[lane, below[lane]] = values[lane, np.argmax(below[lane])]
        return dataset.assign({name: (dataset[name].dims, values)})

    return mutate


def _entry_for_low_loss(dataset):
    """Entries a millionth below the bound, where it is nearly attained."""
    bound = 1 / np.sqrt(2 * dataset["loss"].values) - np.sqrt(2 * dataset["loss"].values)
    side = dataset["determinant_sign"].values * np.sign(
        (dataset["task.z"] * dataset["task.z_prime"]).values[:, None]
    )
    values = np.where(side >= 0, bound * (1 - 1e-6), dataset["entry[0,0]"].values)
    if np.any(dataset["task.eps"].values != 0):
        values = np.where(side >= 0, 0.0, values)
    return dataset.assign({"entry[0,0]": (dataset["entry[0,0]"].dims, values)})


def _untrusted(dataset):
    """One row in doubt."""
    trusted = dataset["trusted"].values.copy()
    kinds = dataset["dynamics.kind"].values
    trusted[np.argmax(kinds == "GradientFlow"), 3] = False
    return dataset.assign(trusted=(dataset["trusted"].dims, trusted))


def _scaled_at(name, factor, level, **axes):
    """Multiply a variable at one loss in the runs with these axes."""

    def mutate(dataset):
        keep = np.isclose(dataset["level"].values, level, rtol=1e-6, atol=0)
        for axis, value in axes.items():
            keep &= (dataset[axis.replace("__", ".")].values == value)[:, None]
        assert keep.any()
        values = dataset[name].values.copy()
        values[keep] *= factor
        return dataset.assign({name: (dataset[name].dims, values)})

    return mutate


MUTATIONS = {
    "deep_matrix_factorization.bounds": _entry_for_low_loss,
    "deep_matrix_factorization.frontier": _scaled("entry[0,0]", 1.02, factorization__depth=3),
    "deep_matrix_factorization.norms_diverge": _flat_tail("schatten_norm[0.5]", 2e-4),
    "deep_matrix_factorization.effective_rank_falls": _flat_tail("effective_rank_excess", 1e-2),
    "deep_matrix_factorization.effective_rank_tenfold": _flat_tail("effective_rank_excess", 1e-3),
    "deep_matrix_factorization.flow_norms_diverge": _flat_tail("nuclear_norm", 1e-11),
    "deep_matrix_factorization.certified": _untrusted,
    "deep_matrix_factorization.plateau_float64": _scaled("entry[0,0]", 10, dtype="float64"),
    "deep_matrix_factorization.plateau_float32": _scaled(
        "determinant_sign", 0, dtype="float32", seed=5
    ),
    "negative_determinant.converges": lambda dataset: _scaled(
        "max_norm", dataset["loss"].values[:1] ** -0.5
    )(dataset),
    "negative_determinant.flow_converges": _scaled_at("nuclear_norm", 1.06, 1e-8),
    "slow_manifold.reference": _scaled_at("entry[0,0]", 1 + 1e-10, 1e-6, task__eps=0.05),
    "slow_manifold.certified": _untrusted,
    "slow_manifold.entry": _scaled_at("entry[0,0]", 1 + 1e-9, 1e-6, factorization__depth=3),
    "slow_manifold.sigma2": _scaled_at(
        "log_singular_values", 1 + 1e-4, 1e-12, factorization__depth=3, seed=0
    ),
    "slow_manifold.time": _scaled_at("time", 1.001, 1e-12, factorization__depth=2),
    "escape_horizon.exponent": _scaled("entry[0,0]", 2, initializer__imbalance=1e-8),
    "escape_horizon.scale": _scaled("entry[0,0]", 30, initializer__imbalance=1e-5),
    "escape_horizon.saturates": _scaled_at("entry[0,0]", 1.1, 1e-14, initializer__imbalance=1e-6),
    "step_size.first_order": _scaled("entry[0,0]", 1 + 1e-3, dynamics__kind="GradientFlow"),
    "perturbed.bounds": _entry_for_low_loss,
    "perturbed.limit": _scaled("entry[0,0]", 0.97, task__eps=0.5),
    "perturbed.diverges": _flat_tail("entry[0,0]", 1e-2),
    "dimension.bounds": _entry_for_low_loss,
    "dimension.norms_diverge": _scaled("nuclear_norm", np.nan, task__dim=3),
    "dimension.certified": _untrusted,
    "dimension.no_square_root_bound": _scaled_at("effective_rank_excess", 0.5, 1e-8, task__dim=3),
}


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_holds_and_fails_when_its_data_are_corrupted(claim_id, datasets):
    figure, claim = CLAIMS[claim_id]
    dataset = datasets[figure.name]
    verdict = claim(dataset)
    assert verdict.holds, verdict.measured
    mutated = claim(MUTATIONS[claim_id](dataset))
    assert not mutated.holds, mutated.measured


def test_every_claim_has_a_mutation():
    assert set(MUTATIONS) == set(CLAIMS)


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_without_its_data_does_not_hold(claim_id, datasets):
    figure, claim = CLAIMS[claim_id]
    dataset = datasets[figure.name]
    nothing = dataset.assign(reached=(("run", "row"), np.zeros(dataset["reached"].shape, bool)))
    assert not claim(nothing).holds


@pytest.mark.parametrize("figure", PAPER.figures, ids=lambda figure: figure.name)
def test_a_figure_is_drawn_from_its_dataset_alone(figure, datasets):
    drawn = figure.draw(datasets[figure.name], {})
    assert drawn.axes
    for axes in drawn.axes:
        assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title(loc="left")


def test_an_overlay_is_drawn_on_every_panel(datasets):
    figure = PAPER.figure("deep_matrix_factorization")
    drawn = figure.draw(datasets[figure.name], {"my own bound": lambda loss: 0.5 / loss**0.5})
    for axes in drawn.axes:
        assert "my own bound" in axes.get_legend_handles_labels()[1]


def test_captions_define_and_claims_have_sources():
    for figure in PAPER.figures:
        assert len(figure.caption) > 100
        for claim in figure.claims:
            assert claim.source
            assert claim.tolerance
            assert claim.id.startswith(figure.name)


def test_papers_are_listed_under_their_own_name():
    assert PAPERS.keys() == {PAPER.name}
    with pytest.raises(ValueError, match="Did you mean 'razin_cohen_2020'"):
        load_paper("razin_cohen_2021")
    with pytest.raises(ValueError, match="Did you mean 'perturbed'"):
        PAPER.figure("perturbd")


@pytest.mark.parametrize("scale", ["quick", "paper", "beyond"])
def test_experiments_are_distinct_within_a_figure(scale):
    for figure in PAPER.figures:
        keys = [experiment.key() for experiment in figure.experiments(scale)]
        assert len(keys) == len(set(keys))
