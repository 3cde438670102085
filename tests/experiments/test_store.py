"""The store: labelled results, exports."""

import numpy as np
import polars as pl
import pytest

import factorflow as ff
from experiments.common import base
from factorflow.experiments import Store, run, sweep

# Experiments name their precision: a store holds the same in any session.
pytestmark = pytest.mark.x64


@pytest.fixture(scope="module")
def runs():
    short = base(observe=ff.AtLosses([0.5, 1e-1]))
    return [*sweep(base(), factorization__depth=[2, 3]), short]


@pytest.fixture(scope="module")
def store(runs, tmp_path_factory):
    return run(runs, tmp_path_factory.mktemp("results") / "store", progress=False)


def test_runs_of_unequal_shape_are_padded(store, runs):
    dataset = store.dataset(runs)
    assert dataset["entry[0,0]"].dims == ("run", "row")
    assert dataset["log_singular_values"].dims == ("run", "row", "singular_value")
    assert dataset["reached"].values.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert np.isnan(dataset["entry[0,0]"].values[2, 2])
    assert dataset["step"].values[2, 2] == -1


def test_a_measure_that_only_the_shorter_run_took_is_padded_too(tmp_path):
    short = base(observe=ff.AtLosses([0.5]), measures=["balancedness_gap"])
    dataset = run([base(), short], tmp_path / "store", progress=False).dataset([base(), short])
    gap = dataset["balancedness_gap"].values
    assert np.isfinite(gap).tolist() == [[False] * 3, [True, False, False]]


def test_measures_of_unequal_lengths_without_names_are_padded(tmp_path):
    lengths = {2: [2.0, 3.0], 3: [2.0, 3.0, 4.0]}
    runs = sweep(base(), factorization__depth=[2, 3])
    store = run(runs, tmp_path / "store", progress=False)
    for one, values in zip(runs, lengths.values(), strict=True):
        name = store.index.row(by_predicate=pl.col("key") == one.key(), named=True)["file"]
        rows = np.tile(values, (1, 3, 1))
        dims = ("run", "row", f"size_{len(values)}")
        store._remembered[name] = store._open(name).assign(own=(dims, rows))
    own = store.dataset(runs)["own"].values
    assert own.shape == (2, 3, 3)
    assert np.isnan(own[0, :, 2]).all() and np.isfinite(own[1]).all()


def test_what_was_just_written_is_not_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr("xarray.open_dataset", lambda *_, **__: pytest.fail("read a file"))
    store = run(sweep(base(), seed=range(2)), tmp_path / "store", progress=False)
    assert len(store.snapshot()) == 2
    assert store.dataset().sizes["run"] == 2


def test_axes_become_coordinates_and_select(store, runs):
    dataset = store.dataset(runs)
    assert dataset["factorization.depth"].values.tolist() == [2, 3, 2]
    assert store.dataset(factorization__depth=3).sizes["run"] == 1
    assert store.dataset(result="loss_reached").sizes["run"] == 3


def test_the_index_has_a_row_per_experiment(store, runs):
    index = pl.read_parquet(store.path / "index.parquet")
    assert sorted(index["key"]) == sorted(run.key() for run in runs)
    assert set(index["verdict"]) <= {"unverified", "step_limited", "rounding_limited"}


def test_a_new_store_object_reads_the_same(store, runs):
    first, second = store.dataset(runs), Store(store.path).dataset(runs)
    assert first.identical(second)


def test_what_is_remembered_is_what_was_written(store):
    fresh = Store(store.path)
    names = [file.name for file in (store.path / "batches").iterdir()]
    assert set(store._remembered) == set(names) and not fresh._remembered
    for name in names:
        remembered, read = store.snapshot()._open(name), fresh._open(name)
        assert remembered is store._open(name) is not read
        assert remembered.identical(read)
        dtypes = {name: variable.dtype for name, variable in read.variables.items()}
        assert dtypes == {name: variable.dtype for name, variable in remembered.variables.items()}


def test_only_the_last_batches_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr("factorflow.experiments.store._REMEMBERED_BYTES", 1)
    store = run(base(), tmp_path / "store", progress=False)
    assert not store._remembered
    assert store.dataset().sizes["run"] == 1


def test_a_deleted_batch_is_not_remembered(tmp_path):
    store = run(base(), tmp_path / "store", progress=False)
    (file,) = (tmp_path / "store" / "batches").iterdir()
    file.unlink()
    with pytest.raises(ValueError, match="1 of 1 experiments are not in the store"):
        store.dataset([base()])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_hold_the_reached_rows(store, tmp_path, kind):
    path = getattr(store, f"to_{kind}")(tmp_path / f"rows.{kind}")
    table = pl.read_csv(path) if kind == "csv" else pl.read_parquet(path)
    assert table.height == 8
    dataset = store.dataset()
    expected = dataset["entry[0,0]"].values[dataset["reached"].values]
    # CSV holds the shortest text that reads back as the same float32.
    written = table["entry[0,0]"].to_numpy().astype(np.float32)
    np.testing.assert_array_equal(written, expected)
    assert {"factorization.depth", "level", "step", "log_singular_values.1"} <= set(table.columns)


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds something else \('thesis.tex'\)"):
        Store(tmp_path)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a store is a folder"):
        Store(tmp_path / "file")


def test_missing_experiments_are_named(store):
    with pytest.raises(ValueError, match="1 of 1 experiments are not in the store"):
        store.dataset([base(seed=99)])


def test_an_unknown_axis_is_named(store):
    with pytest.raises(ValueError, match="No axis 'dept'"):
        store.dataset(dept=2)


def test_two_stores_on_one_folder_lose_nothing(tmp_path):
    first, second = Store(tmp_path / "store"), Store(tmp_path / "store")
    run(base(), first, progress=False)
    assert len(second) == 1
    run(base(seed=1), second, progress=False)
    run(base(seed=2), first, progress=False)
    assert len(Store(tmp_path / "store")) == 3


def test_a_value_of_another_kind_is_named(store):
    with pytest.raises(ValueError, match=r"Axis .factorization\.depth. holds Int64, got .deep."):
        store.dataset(factorization__depth="deep")


def test_one_experiment_is_enough(store, runs):
    assert store.dataset(runs[0]).sizes["run"] == 1
