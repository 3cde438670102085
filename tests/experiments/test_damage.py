"""What is damaged, foreign, older or too large is named and set aside, and the rest is served."""

import fcntl
import hashlib
import json
import os
import shutil
import time
import warnings

import h5py
import numpy as np
import polars as pl
import pytest
import xarray as xr

from experiments.common import base
from factorflow.experiments import Store, files, index, run, sweep
from factorflow.experiments.batch import file_name, to_bytes
from factorflow.experiments.experiment import NUMERICS_REVISION, key_of

# Files are the same in either precision.
pytestmark = pytest.mark.x64

DEAD = 2**22 + 1  # no process of Linux has a larger number


@pytest.fixture(scope="module")
def runs():
    return sweep(base(), factorization__depth=[2, 3], seed=range(2))


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """A store of two batches, one per depth."""
    return run(runs, tmp_path_factory.mktemp("whole") / "store", progress=False)


@pytest.fixture
def store(whole, tmp_path):
    """A copy to damage."""
    shutil.copytree(whole.path, tmp_path / "store")
    return tmp_path / "store"


def batch(store, depth):
    """The file that holds one depth."""
    names = Store(store).index.filter(pl.col("factorization.depth") == depth)["file"]
    return store / "batches" / names[0]


def aged(file, change=lambda file: None):
    """The file as earlier versions wrote it, without checksum, after a change."""
    with h5py.File(file, "a") as content:
        del content.attrs["schema"]
        rows = json.loads(content.attrs["index"])
        for row in rows:
            del row["written"], row["numerics_revision"]
            row["file"] = "of an older name.nc"
        content.attrs["index"] = json.dumps(rows)
        change(content)
    older = file.with_name("0123456789abcdef0123.nc")
    file.rename(older)
    return older


def without_index(content):
    del content.attrs["index"]


def index_of_no_rows(content):
    content.attrs["index"] = json.dumps({"key": 1})


def index_of_other_runs(content):
    rows = json.loads(content.attrs["index"])
    content.attrs["index"] = json.dumps([{**row, "run": 7} for row in rows])


def array_of_nothing(content):
    """40 GB in a file of 36 kB: chunks that were never written read as zeros."""
    content.create_dataset("huge", (5 * 10**9,), "f8", chunks=(10**6,))


def contiguous_array_of_nothing(content):
    content.create_dataset("huge", (5 * 10**9,), "f8")


def compressed(content):
    content.create_dataset("huge", data=np.zeros(10**7), chunks=(10**6,), compression=9)


def soft_link(content):
    content["elsewhere"] = h5py.SoftLink("/loss")


def external_link(content):
    content["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def external_storage(content):
    content.create_dataset("elsewhere", (4,), "u1", external="/etc/passwd")


def virtual(content):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    content.create_virtual_dataset("elsewhere", layout)


def many_texts(content):
    """A thousand entries may all stand for one long text."""
    content["loss"].attrs.create("texts", ["text"] * 1000, dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_index, "no attribute `index`"),
        (index_of_no_rows, "no list of rows"),
        (index_of_other_runs, "speaks of run 7"),
        (array_of_nothing, "claims 40,000,000,000 bytes"),
        (contiguous_array_of_nothing, "claims 40,000,000,000 bytes"),
        (compressed, "compressed"),
        (soft_link, "has a link"),
        (external_link, "has a link"),
        (external_storage, "in another file"),
        (virtual, "in another file"),
        (many_texts, "list of texts"),
        # Any change of a file of today is one of its checksum.
        ("truncated", "its checksum is not its name"),
        ("renamed", "its checksum is not its name"),
        ("no netCDF", "truncated or not netCDF"),
    ],
)
def test_a_bad_batch_is_named_set_aside_and_run_again(store, whole, runs, change, reason):
    file = batch(store, 3)
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "renamed":
        file = file.rename(file.with_name("f" * 40 + ".nc"))
    elif change == "no netCDF":
        file.unlink()
        file = file.with_name("0" * 20 + ".nc")
        file.write_bytes(b"text")
    else:
        file = aged(file, change)
    before = file.read_bytes()
    fresh = Store(store)
    with pytest.warns(UserWarning, match=rf"Set aside.*{file.name} .*{reason}"):
        assert len(fresh) == 2
    assert fresh.dataset(runs[:2]).identical(whole.dataset(runs[:2]))
    with pytest.raises(ValueError, match=f"2 of 4 experiments are not in.*aside.*{file.name}"):
        fresh.dataset(runs)
    if change in (without_index, "truncated"):
        run(runs, fresh, progress=False)
        assert without_places(fresh.dataset(runs)).identical(without_places(whole.dataset(runs)))
    assert file.read_bytes() == before


def without_places(dataset):
    return dataset.drop_vars(("written", "batch_seconds"), errors="ignore")


def test_any_flipped_byte_is_detected_before_its_numbers_are_served(store, whole, runs):
    file, right = batch(store, 3), whole.dataset(runs[:2])
    data = file.read_bytes()
    for position in np.random.default_rng(0).integers(len(data), size=8):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        fresh = Store(store)
        assert len(fresh) == 4  # the index speaks of it: nothing was read so far
        with pytest.warns(UserWarning, match=rf"{file.name} is truncated or damaged"):
            assert fresh.dataset().identical(right)
        assert fresh.holds(run.key() for run in runs) == {run.key() for run in runs[:2]}


def test_a_flipped_byte_of_the_index_is_detected(store, whole, runs):
    file, right = store / "index.parquet", whole.index
    data = file.read_bytes()
    for position in np.random.default_rng(0).integers(len(data), size=8):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        with pytest.warns(UserWarning, match=r"index\.parquet"):
            assert Store(store).index.equals(right)


def test_an_index_that_is_not_ours_is_set_aside(store, whole, runs):
    file = store / "index.parquet"
    pl.DataFrame({"file": ["mine"]}).write_parquet(file)
    theirs = file.read_bytes()
    with pytest.warns(UserWarning, match=r"index\.parquet lacks the column 'key'"):
        fresh = run(runs, store, progress=False)
    assert (store / "index.set-aside.parquet").read_bytes() == theirs
    assert pl.read_parquet(file).equals(whole.index) and fresh.dataset(runs).equals(
        whole.dataset(runs)
    )


@pytest.mark.parametrize("damage", ["truncated", "deleted", "older"])
def test_a_lost_index_is_made_anew_from_the_batches(store, whole, runs, damage):
    file = store / "index.parquet"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:20])
    elif damage == "deleted":
        file.unlink()
    else:
        whole.index.drop("written", "numerics_revision").write_parquet(file)
    fresh = Store(store)
    if damage == "truncated":
        with pytest.warns(UserWarning, match="not Parquet; the batches are read instead"):
            assert fresh.index.equals(whole.index)
    assert fresh.index.equals(whole.index)
    assert fresh.dataset().identical(whole.dataset())


def test_foreign_files_are_named_once_and_left(store, whole, runs):
    (store / ".DS_Store").write_bytes(b"mac")
    (store / "batches" / "folder.nc").mkdir()
    os.mkfifo(store / "batches" / ("a" * 40 + ".nc"))  # reading it would never end
    xr.Dataset({"x": ("run", [1.0])}).to_netcdf(store / "batches" / "mine.nc", engine="h5netcdf")
    fresh = Store(store)
    with pytest.warns(UserWarning) as warned:
        assert fresh.dataset(runs).identical(whole.dataset(runs))
    (text,) = {str(warning.message) for warning in warned}
    for name in (".DS_Store", "batches/folder.nc", "batches/mine.nc"):
        assert f"{name} is no file of a store" in text
    assert f"{'a' * 40}.nc is no regular file" in text
    with warnings.catch_warnings(action="error"):
        assert fresh.snapshot().dataset(runs).sizes["run"] == 4


def test_what_systems_leave_in_an_empty_folder_does_not_make_it_somebody_elses(tmp_path):
    (tmp_path / ".DS_Store").touch()
    assert Store(tmp_path).path == tmp_path
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "mine.nc").touch()
    with pytest.raises(ValueError, match=r"holds something else \('batches/mine.nc'\)"):
        Store(tmp_path)


def test_a_sparse_file_is_not_read_into_memory(store):
    huge = store / "batches" / ("b" * 40 + ".nc")
    with open(huge, "wb") as handle:
        handle.truncate(2**43)
    with pytest.warns(UserWarning, match=rf"{huge.name} cannot be read: 8,796,093,022,208 bytes"):
        assert len(Store(store)) == 4


def test_batches_of_older_versions_are_read_as_they_are(store, whole, runs):
    for depth in 2, 3:
        older = aged(batch(store, depth))
        older.rename(older.with_name(f"{depth}" * 20 + ".nc"))
    whole.index.drop("written", "numerics_revision").write_parquet(store / "index.parquet")
    assert Store(store).dataset(runs).identical(whole.dataset(runs))
    run(runs, store, progress=False)  # computes nothing and writes the index
    assert set(pl.read_parquet(store / "index.parquet")["file"]) == {
        "2" * 20 + ".nc",
        "3" * 20 + ".nc",
    }


def test_the_revision_of_an_older_row_is_that_of_its_key(runs):
    """Rows of versions before this column; 1 and 1.0 were two experiments then."""
    text = runs[0].replace(stop__loss=1.0).to_json()
    assert '"loss": 1.0' in text
    for revision in 3, NUMERICS_REVISION:
        plain = json.dumps([revision, json.loads(text)], sort_keys=True, separators=(",", ":"))
        key = hashlib.sha256(plain.encode()).hexdigest()[:20]
        assert index._revision({"key": key, "experiment": text}) == revision
        key = key_of(json.loads(text), revision)
        assert index._revision({"key": key, "experiment": text}) == revision
    assert index._revision({"key": "0" * 20, "experiment": text}) is None


def test_results_of_another_revision_are_kept_apart(store, whole, runs, monkeypatch):
    before = whole.dataset()
    today = int(before["numerics_revision"].values[0])
    monkeypatch.setattr("factorflow.experiments.experiment.NUMERICS_REVISION", today + 1)
    only_older = Store(store)
    with pytest.raises(ValueError, match=rf"4 of 4 runs.*\({today}; today's is {today + 1}\)"):
        only_older.dataset()
    run(runs[0], store, progress=False)
    fresh = Store(store)
    message = rf"4 of 5 runs .*run their experiments again.*numerics_revision={today}\)"
    with pytest.warns(UserWarning, match=message):
        assert fresh.dataset()["numerics_revision"].values.tolist() == [today + 1]
    assert fresh.dataset(runs[0])["seed"].values.tolist() == [0]
    with pytest.raises(ValueError, match="3 of 4 experiments are not in the store"):
        fresh.dataset(runs)
    older = fresh.dataset(numerics_revision=today)
    assert older.identical(before)


def test_an_experiment_in_two_batches_has_one_run(store, whole, runs):
    """What two processes write that run the same at once; the first written counts."""
    copy = xr.load_dataset(batch(store, 3), engine="h5netcdf")
    rows = json.loads(copy.attrs["index"])
    later = [{**row, "written": row["written"] + 1.0, "batch_seconds": 1e9} for row in rows]
    data = to_bytes(copy.assign_attrs(index=json.dumps(later)))
    (store / "batches" / file_name(data)).write_bytes(data)
    for copy_is in "behind", "lost":
        fresh = Store(store)
        assert fresh.index.equals(whole.index) and len(fresh) == 4, copy_is
        assert fresh.dataset().identical(whole.dataset())
        (store / "index.parquet").unlink(missing_ok=True)
    # The other one serves where the first is damaged.
    fresh.tidy()
    batch(store, 3).write_bytes(b"")
    with pytest.warns(UserWarning, match="truncated or damaged"):
        assert fresh.dataset(runs).identical(whole.dataset(runs))
    assert fresh.index["batch_seconds"].max() == 1e9


def test_temporary_files_of_dead_writers_are_removed(store, runs):
    machine, batches = files._machine(), store / "batches"
    old = time.time() - 2 * files._GIVEN_UP_AFTER
    dead = [
        (batches / f"write-{machine}-{DEAD}-{'0' * 16}.tmp", None),
        (store / f"write-{machine}-{DEAD}-{'0' * 16}.tmp", None),
        (batches / f"write-{'f' * 12}-1-{'0' * 16}.tmp", old),
        (batches / f"{'0' * 20}.nc.tmp", old),
        (store / "index.parquet.tmp", old),
    ]
    alive = [
        (batches / f"write-{machine}-{os.getpid()}-{'0' * 16}.tmp", old),
        (batches / f"write-{'f' * 12}-1-{'1' * 16}.tmp", None),
        (batches / f"{'1' * 20}.nc.tmp", None),
        (batches / "mine.tmp", old),
    ]
    for file, date in (*dead, *alive):
        file.touch()
        if date is not None:
            os.utime(file, (date, date))
    run(runs, store, progress=False)
    assert not any(file.exists() for file, _ in dead)
    assert all(file.exists() for file, _ in alive)


def test_a_full_disk_is_one_message_and_leaves_the_store_as_it_was(store, runs, monkeypatch):
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"Cannot write to .*No space left on device.*run again"):
        run(base(seed=9), store, progress=False)
    assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before
    assert len(Store(store)) == 4


def test_what_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses to sync anything else."""
    synced, original = [], os.fsync

    def fsync(descriptor):
        synced.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.publish(tmp_path / "new" / "file", b"data")
    assert (tmp_path / "new" / "file").read_bytes() == b"data"
    assert synced == [os.O_WRONLY, os.O_RDONLY]  # the file, then its folder, which may fail


def test_a_temporary_file_that_somebody_removes_is_written_again(tmp_path, monkeypatch):
    original, losses = os.replace, [2]

    def replace(source, target):
        if losses[0]:
            losses[0] -= 1
            os.unlink(source)
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    files.publish(tmp_path / "file", b"data")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
