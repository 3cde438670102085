"""What a run leaves behind, and the tables and datasets made of it."""

import copy
import pickle

import numpy as np
import polars as pl
import pytest

import factorflow as ff
from factorflow._certificate import DOUBTS
from runs import DTYPE, GENERIC, limits

LEVELS = [3.0, 2e-1, 1e-1, 1e-4]


def last_factor(snapshot: ff.Snapshot):
    """A user's function of no named dimensions, square like many."""
    return snapshot.factors[-1]


def first_row(snapshot: ff.Snapshot):
    return snapshot.dense[0]


MEASURES = ["loss", ff.schatten_norm(0.5), "log_singular_values", first_row, last_factor]


@pytest.fixture(scope="module")
def trajectory() -> ff.Trajectory:
    fz = ff.DeepMatrix((2, 2), depth=2)
    return ff.simulate(
        ff.razin_cohen_problem(),
        fz,
        ff.GradientDescent(0.05),
        ff.balanced_factors(fz, GENERIC.astype(DTYPE)),
        observe=ff.AtLosses(LEVELS),
        stop=limits(loss=1e-2),
        measures=MEASURES,
    )


def test_shapes_and_dtypes(trajectory):
    assert trajectory.observed_at == "loss"
    assert trajectory.reached.tolist() == [True, True, True, False]
    assert trajectory.times.dtype == trajectory.levels.dtype == DTYPE
    assert trajectory.steps.dtype == np.int32
    shapes = {name: values.shape for name, values in trajectory.measures.items()}
    assert shapes == {
        "loss": (4,),
        "schatten_norm[0.5]": (4,),
        "log_singular_values": (4, 2),
        "first_row": (4, 2),
        "last_factor": (4, 2, 2),
    }
    assert {values.dtype for values in trajectory.measures.values()} == {DTYPE}
    assert [factor.shape for factor in trajectory.factors] == [(2, 2), (2, 2)]


def test_unreached_rows_are_blank(trajectory):
    assert trajectory.steps[-1] == -1
    assert np.isnan(trajectory.times[-1])
    for values in trajectory.measures.values():
        assert np.all(np.isnan(values[-1]))
        assert np.all(np.isfinite(values[:-1]))
    np.testing.assert_array_equal(trajectory.levels, np.asarray(LEVELS, DTYPE))


def test_the_end_is_reported(trajectory):
    assert trajectory.result_name == "loss_reached"
    assert "`Stop(loss=...)`" in str(trajectory.result)
    assert trajectory.stats["loss"] <= 1e-2
    assert trajectory.stats["num_gradients"] == trajectory.stats["num_steps"] + 1


def test_what_followed_the_run_is_named_before_what_it_cost(trajectory):
    assert trajectory.stats["integrator"] == trajectory.integrator == "descent"
    assert list(trajectory.stats) == ["integrator", *trajectory.counters]


def test_dataset(trajectory):
    dataset = trajectory.to_xarray()
    assert dataset.sizes["row"] == 4
    assert set(dataset.coords) == {"time", "step", "level"}
    assert dataset["loss"].dims == ("row",)
    assert dataset["log_singular_values"].dims == ("row", "singular_value")
    assert dataset["first_row"].dims == ("row", "size_2")
    assert dataset["last_factor"].dims == ("row", "size_2", "size_2_1")
    assert dataset.attrs == {
        "result": "loss_reached",
        "verdict": "unverified",
        "explanation": trajectory.certificate.explanation,
        "integrator": "descent",
        "observed_at": "loss",
    }
    doubts = [tuple(DOUBTS)[code] for code in dataset["doubt"].values]
    assert doubts == trajectory.certificate.doubts == ["unconfirmed"] * 3 + ["not_reached"]
    for name in ("reached", "trusted", "contradicted"):
        assert dataset[name].dtype == bool
    np.testing.assert_array_equal(dataset["step"], trajectory.steps)
    np.testing.assert_array_equal(dataset["last_factor"], trajectory.measures["last_factor"])


@pytest.mark.parametrize(
    ("kind", "read"), [("csv", pl.read_csv), ("parquet", pl.read_parquet)], ids=["csv", "parquet"]
)
def test_tables_keep_every_digit(trajectory, tmp_path, kind, read):
    path = getattr(trajectory, f"to_{kind}")(tmp_path / f"run.{kind}")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    frame = read(path)
    assert frame.columns[:3] == ["level", "time", "step"]
    assert set(frame.columns[3:]) == {
        "loss",
        "schatten_norm[0.5]",
        *(f"log_singular_values.{i}" for i in range(2)),
        *(f"first_row.{i}" for i in range(2)),
        *(f"last_factor.{i}" for i in range(4)),
        "reached",
        "trusted",
        "doubt",
        "contradicted",
        "on_invariant_set",
        *(f"trusted[{name}]" for name in trajectory.measures),
    }
    for name, expected in [
        ("time", trajectory.times),
        ("step", trajectory.steps),
        ("reached", trajectory.reached),
        ("loss", trajectory.measures["loss"]),
        ("last_factor.2", trajectory.measures["last_factor"][:, 1, 0]),
    ]:
        # CSV has no dtypes: the shortest digits of a float32 read back as the nearest double.
        actual = frame[name].to_numpy().astype(expected.dtype)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_unwritable_paths_are_named(trajectory, tmp_path, kind):
    write = getattr(trajectory, f"to_{kind}")
    with pytest.raises(ValueError, match=r"missing does not exist; create it"):
        write(tmp_path / "missing" / "run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"Cannot write .*folder.*Choose a writable"):
        write(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_trajectory_shows_its_rows_and_survives_pickling(trajectory):
    title, head, *rows = repr(trajectory).splitlines()
    assert "4 rows" in title and trajectory.certificate.verdict in title
    assert head.split()[:4] == ["loss", "time", "step", "schatten_norm[0.5]"]
    assert len(rows) == 4 and rows[-1].split()[1:3] == ["nan", "-"]
    for row, time, loss in zip(rows, trajectory.times, trajectory.measures["loss"], strict=True):
        np.testing.assert_allclose([float(x) for x in row.split()[:2]], [loss, time], rtol=1e-5)
    other = pickle.loads(pickle.dumps(trajectory))
    assert repr(other) == repr(copy.deepcopy(trajectory)) == repr(trajectory)
    np.testing.assert_array_equal(other.measures["loss"], trajectory.measures["loss"])
