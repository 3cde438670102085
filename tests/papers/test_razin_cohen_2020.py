"""Every claim holds on what was just computed, and fails when its dataset is corrupted."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest

from factorflow.experiments import run
from factorflow.papers import PAPERS, load_paper
from factorflow.papers.razin_cohen_2020.tensors.claims import wilson_interval
from factorflow.papers.razin_cohen_2020.tensors.results import derive
from factorflow.papers.razin_cohen_2020.tensors.settings import MSE
from factorflow.reference import cp_rank
from papers.common import assert_holds_until_corrupted

pytestmark = pytest.mark.x64

PAPER = load_paper("razin_cohen_2020")
# Without runs at quick scale, a figure is left out, and so are its claims.
FIGURES = [figure for figure in PAPER.figures if figure.experiments("quick")]
CLAIMS = {claim.id: (figure, claim) for figure in FIGURES for claim in figure.claims}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The whole paper at quick scale, run once."""
    experiments = [e for figure in FIGURES for e in figure.experiments("quick")]
    return run(experiments, tmp_path_factory.mktemp("paper") / "data", progress=False)


@pytest.fixture(scope="module")
def datasets(store):
    found = {}
    for figure in FIGURES:
        experiments = figure.experiments("quick")
        found[figure.name] = figure.derive(store.dataset(experiments), experiments)
    return found


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


def _tensor_mutations(name):
    """Ranks of twice the truth, large errors, and a baseline that is as good."""
    return {
        f"{name}.rank": _scaled("rank_lower", 2),
        f"{name}.error": _scaled("reconstruction_error", 1e4, initializer__factor_scale=1e-3),
        f"{name}.baseline": _scaled("baseline_error", 1e-6),
    }


def _rising(name):
    return {f"{name}.init": _scaled("reconstruction_error", 1e4, initializer__factor_scale=1e-3)}


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
    **_tensor_mutations("tensor_order_3_rank_1"),
    **_tensor_mutations("tensor_order_3_rank_3"),
    **_rising("tensor_order_3_rank_1"),
    **_rising("tensor_order_3_rank_3"),
    **_tensor_mutations("tensor_order_4_rank_1"),
    **_tensor_mutations("tensor_order_4_rank_3"),
}


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_holds_and_fails_when_its_data_are_corrupted(claim_id, datasets):
    figure, claim = CLAIMS[claim_id]
    dataset = datasets[figure.name]
    assert_holds_until_corrupted(claim, dataset, [MUTATIONS[claim_id]])


def test_every_claim_has_a_mutation():
    assert set(MUTATIONS) == set(CLAIMS)


@pytest.mark.parametrize("claim_id", CLAIMS)
def test_a_claim_without_its_data_does_not_hold(claim_id, datasets):
    figure, claim = CLAIMS[claim_id]
    assert not claim(_without_rows(datasets[figure.name])).holds


def _without_rows(dataset):
    """As if every run had failed before its first row."""
    blank = {"reached": (("run", "row"), np.zeros(dataset["reached"].shape, bool))}
    for name in {"reconstruction_error", "rank_lower", "rank_upper"} & set(dataset.variables):
        blank[name] = dataset[name].dims, np.full(dataset[name].shape, np.nan)
    return dataset.assign(blank)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
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
    assert PAPER.name in PAPERS
    with pytest.raises(ValueError, match="Did you mean 'razin_cohen_2020'"):
        load_paper("razin_cohen_2021")
    with pytest.raises(ValueError, match="Did you mean 'perturbed'"):
        PAPER.figure("perturbd")


@pytest.mark.parametrize("scale", ["quick", "paper", "beyond"])
def test_experiments_are_distinct_within_a_figure(scale):
    figures = PAPER.figures
    if scale == "beyond":
        # Tens of thousands, nearly all made as at the paper's scale.
        figures = [PAPER.figure("perturbed")]
    for figure in figures:
        keys = [experiment.key() for experiment in figure.experiments(scale)]
        assert len(keys) == len(set(keys))


# --- Tensors


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 5), (5, 5), (7, 10), (99, 100)])
def test_the_interval_of_a_share_is_that_of_wilson(hits, count):
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    interval = expected.low, expected.high
    np.testing.assert_allclose(wilson_interval(hits, count), interval, rtol=1e-6, atol=1e-12)


def test_derived_are_ranks_of_the_products_and_of_zeros_filled_in():
    """On products made here: their own ranks, and a run that has failed."""
    experiments = PAPER.figure("tensor_order_3_rank_1").experiments("quick")[:4]
    shape = experiments[0].task.shape
    rng = np.random.default_rng(0)
    components = [np.einsum("i,j,k", *(rng.normal(size=d) for d in shape)) for _ in range(2)]
    products = np.stack([components[0], sum(components), np.zeros(shape), np.full(shape, np.nan)])
    dataset = xr.Dataset({"product": (("run", "row", "i", "j", "k"), products[:, None])})
    derived = derive(dataset, experiments)
    assert "product" not in derived
    for side in ("rank_lower", "rank_upper"):
        np.testing.assert_array_equal(derived[side], [1, 2, 0, np.nan])
    for run_, experiment in enumerate(experiments):
        problem = experiment.problem()
        target, hidden = np.asarray(problem.target), np.ones(shape, bool)
        hidden[tuple(np.asarray(problem.indices).T)] = False
        # What is not observed is all of the error.
        expected = np.linalg.norm(target[hidden]) / np.linalg.norm(target)
        np.testing.assert_allclose(derived["baseline_error"][run_], expected, rtol=1e-12)
        low, high = (int(derived[f"baseline_rank_{side}"][run_]) for side in ("lower", "upper"))
        unfoldings = [np.moveaxis(np.where(hidden, 0, target), n, 0) for n in range(3)]
        ranks = [np.linalg.matrix_rank(u.reshape(u.shape[0], -1), tol=0.1) for u in unfoldings]
        assert max(ranks) <= low <= high <= np.prod(shape[1:])


def test_baselines_of_order_4_without_fits(datasets):
    """Fits would not narrow their intervals; with one entry hidden, they are the truth's rank."""
    experiments = PAPER.figure("tensor_order_4_rank_3").experiments("quick")
    dataset = datasets["tensor_order_4_rank_3"]
    lows, highs = (dataset[f"baseline_rank_{side}"].values for side in ("lower", "upper"))
    for experiment, low, high in zip(experiments, lows, highs, strict=True):
        problem = experiment.problem()
        if experiment.task.n_observed == problem.target.size - 1:
            assert (low, high) == (3, 3)
        else:
            fitted = cp_rank(problem.observed_entries(), mse=MSE, max_fits=2)
            assert (low, high) == (fitted.lower, fitted.upper)
    assert {low > 3 for low in lows} == {True, False}


def test_runs_that_share_their_data_share_the_baseline(datasets):
    dataset = datasets["tensor_order_3_rank_3"]
    seeds, counts = dataset["seed"].values, dataset["task.n_observed"].values
    for seed, count in {*zip(seeds.tolist(), counts.tolist(), strict=True)}:
        errors = dataset["baseline_error"].values[(seeds == seed) & (counts == count)]
        # One for each initialization.
        assert len(errors) == 2
        assert errors[0] == errors[1]
    assert np.all(dataset["baseline_rank_lower"] <= dataset["baseline_rank_upper"])
    assert np.all(dataset["rank_lower"] <= dataset["rank_upper"])
