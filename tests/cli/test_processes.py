"""The command line as a newcomer meets it: real processes, stdout, stderr and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from factorflow.experiments import Experiment

# Processes of their own, in double precision whatever this session's: once is enough.
pytestmark = pytest.mark.x64

COMMAND = [sys.executable, "-m", "factorflow"]


def factorflow(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.parametrize("name", ["reproduce", "list", "run", "sweep"])
def test_help_explains(name, command):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert out.startswith(f"usage: factorflow {name}")


def test_list_names_everything(command):
    status, out, _ = command("list")
    assert status == 0
    for name in ("razin_cohen_2020", "schatten_norm[p]", "Completion", "Balanced", "group_rmsprop"):
        assert name in out
    assert all(len(line.split()) > 1 or line.endswith(":") for line in out.splitlines())


def test_the_example_runs_as_it_is_printed(example):
    result = factorflow("run", "--example")
    assert result.returncode == 0, result.stderr
    assert result.stdout == example.read_text() + "\n"


def test_run_prints_rows_and_says_how_it_ended(example, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ("--stop.loss", "0.1", "--observe.levels", "[0.5, 0.1]")
    status, out, err = command("run", example, *changes)
    assert status == 0, err
    header, *rows = out.splitlines()
    assert header.startswith("time,step,level")
    assert len(rows) == 2
    assert "loss_reached" in err
    assert not list(tmp_path.iterdir())


def test_work_is_done_and_its_exit_status_true_when_nobody_reads(example, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    table = tmp_path / "rows.parquet"
    streams = {"stdout": writer, "stderr": writer, "timeout": 300}
    for changes, status, files in (
        (["--seed=3", "--out", str(table)], 0, 1),
        (["--dynamics.optimizer", "100.0", "--out", str(table)], 1, 1),
        (["--seed=3"], 141, 0),
    ):
        end = subprocess.run([*COMMAND, "run", str(example), *changes], **streams)
        assert end.returncode == status
        assert len(list(tmp_path.iterdir())) == files
        table.unlink(missing_ok=True)
    os.close(writer)


def test_sweep_fills_a_store_and_resumes(example, command, tmp_path):
    arguments = ["sweep", example, "--store", tmp_path / "store", "--no-progress"]
    arguments += ["--axis", "seed=[0, 1, 1.0]"]
    status, out, err = command(*arguments)
    assert status == 0, err
    assert out.startswith("2 runs in") and "0 of them failed" in out
    status, _, err = command(*arguments, "--out", tmp_path / "rows.csv")
    assert status == 0, err
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 7


def test_a_run_prints_every_measure_whatever_is_in_its_name(example, command):
    measures = '["schatten_norm[0.5]", "log_singular_values"]'
    status, out, err = command("run", example, "--measures", measures)
    assert status == 0, err
    columns = "level,time,step,schatten_norm[0.5],log_singular_values.0,log_singular_values.1"
    flags = "reached,trusted,doubt,contradicted,on_invariant_set"
    header = out.splitlines()[0].split(",")
    assert {*columns.split(","), *flags.split(","), "trusted[schatten_norm[0.5]]"} <= set(header)


@pytest.mark.parametrize(("rates", "failed", "status"), [([100, 200], 2, 1), ([0.006, 100], 1, 0)])
def test_a_sweep_fails_when_all_runs_do(rates, failed, status, example, command, tmp_path):
    axis = f"dynamics.optimizer={rates}"
    end, out, _ = command("sweep", example, "--store", tmp_path / "store", "--axis", axis)
    assert end == status
    assert f", {failed} of them failed" in out


def test_a_full_disk_is_one_sentence_and_nothing_half_written(example, tmp_path):
    """Files of more than 4 kB fail, as on a disk that is full: HDF5's own writing then crashed."""
    arguments = ["sweep", str(example), "--store", "store", "--no-progress", "--axis", "seed=[0]"]
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", *COMMAND, *arguments]
    # Without a cache of compilations, whose files would fail too.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    options = {"capture_output": True, "text": True, "timeout": 300}
    end = subprocess.run(limited, cwd=tmp_path, env=clean, **options)
    assert end.returncode == 2, end.stderr
    assert end.stderr.startswith("factorflow: Cannot write to the store store: ")
    assert end.stderr.count("\n") == 1
    assert not [item for item in tmp_path.rglob("*") if item.is_file()]


def test_reproduce_one_figure_then_from_the_store_then_from_one_that_was_tampered_with(tmp_path):
    arguments = ("reproduce", "razin_cohen_2020", "--out", tmp_path / "report", "--scale", "quick")
    arguments = (*arguments, "--figure", "step_size")
    # Nobody reads what it prints, as in `2>&1 | head -1`: the report is made all the same.
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": writer, "stderr": writer, "timeout": 300}
    first = subprocess.run([*COMMAND, *map(str, arguments)], **streams)
    os.close(writer)
    assert first.returncode == 0
    report = tmp_path / "report"
    produced = {"index.html", "claims.json", "data", "figures"}
    assert {item.name for item in report.iterdir()} == produced
    assert {file.name for file in (report / "figures").iterdir()} == {
        "step_size.svg",
        "step_size.png",
        "step_size.csv",
    }
    claims = json.loads((report / "claims.json").read_text())
    keys = {"id", "statement", "source", "expected", "measured", "tolerance", "holds"}
    assert all(set(claim) == keys for claim in claims)
    before = {file: file.stat().st_mtime_ns for file in (report / "data").rglob("*.nc")}
    again = factorflow(*arguments)
    assert again.returncode == 0
    assert "The claim holds." in again.stdout
    assert "all 7 runs are in the store" in again.stderr
    assert before == {file: file.stat().st_mtime_ns for file in (report / "data").rglob("*.nc")}

    # A store whose results were tampered with, checksums too: claims are judged on the data, not
    # by name.
    import xarray as xr

    from factorflow.experiments.batch import file_name, to_bytes

    for file in before:
        with xr.open_dataset(file, engine="h5netcdf") as dataset:
            changed = dataset.load()
        changed["entry[0,0]"] = 0 * changed["entry[0,0]"] + 1
        data = to_bytes(changed)
        (file.parent / file_name(data)).write_bytes(data)
        file.unlink()
    result = factorflow(*arguments)
    assert result.returncode == 1
    assert "FAILS" in result.stdout


def test_ctrl_c_ends_cleanly_and_running_again_resumes(example, tmp_path):
    """Interrupt a sweep whose second batch is long: the first stays, nothing is half-written."""
    store = tmp_path / "store"
    endless = json.loads(example.read_text())
    endless["stop"]["max_steps"] = 10**9  # at a rate of 1e-7 a quarter of an hour and more
    spec = tmp_path / "endless.json"
    spec.write_text(json.dumps(endless))
    axes = ["dynamics.optimizer=[0.006, 0.0000001]", "factorization.depth=[2]"]
    arguments = [*COMMAND, "sweep", str(spec), "--store", str(store), "--axis", *axes]
    arguments += ["--chunk", "1"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    while not (store / "index.parquet").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 10
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not list(store.rglob("*.tmp"))
    from factorflow.experiments import Store

    assert len(Store(store)) == 1


def test_an_error_ends_a_sweep_whatever_has_begun(example, tmp_path):
    """Of two shapes the larger begins, and would run on; the other does not fit the problem."""
    spec = tmp_path / "endless.json"
    endless = json.loads(example.read_text())
    endless["task"]["dim"], endless["factorization"]["shape"] = 3, [3, 3]
    endless["stop"]["max_steps"], endless["dynamics"]["optimizer"] = 10**9, 1e-7
    spec.write_text(json.dumps(endless))
    axes = ["--axis", "factorization.shape=[[3, 3], [2, 2]]"]
    start = time.monotonic()
    result = factorflow("sweep", spec, "--store", tmp_path / "store", *axes)
    assert result.returncode == 2
    assert "factorization's product has shape (2, 2)" in result.stderr
    assert time.monotonic() - start < 60
    assert not (tmp_path / "store").exists()


def test_a_failed_run_exits_with_1(example, command):
    status, _, err = command("run", example, "--dynamics.optimizer", "100.0")
    assert status == 1
    assert "loss_nonfinite" in err


def test_a_defect_is_no_traceback(example, command, monkeypatch):
    def defect(text):
        raise ZeroDivisionError(text)

    monkeypatch.setattr(Experiment, "from_json", defect)
    status, _, err = command("run", example)
    assert status == 70
    assert "defect" in err and "ZeroDivisionError" in err and err.count("\n") == 1
