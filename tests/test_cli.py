"""The command line as a newcomer meets it: real processes, stdout, stderr and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Processes of their own, in double precision whatever this session's: once is enough.
pytestmark = pytest.mark.x64

COMMAND = [sys.executable, "-m", "factorflow.cli"]


def factorflow(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    result = factorflow("run", "--example")
    assert result.returncode == 0, result.stderr
    path = tmp_path_factory.mktemp("cli") / "example.json"
    path.write_text(result.stdout)
    return path


@pytest.mark.parametrize("command", [[], ["reproduce"], ["list"], ["run"], ["sweep"]])
def test_help_explains_and_loads_no_jax(command):
    code = (
        "import sys\n"
        "from factorflow.cli import main\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules, 'help loaded JAX'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage: factorflow" in result.stdout


def test_list_names_everything():
    result = factorflow("list")
    assert result.returncode == 0, result.stderr
    for name in ("razin_cohen_2020", "schatten_norm[p]", "Completion", "Balanced", "group_rmsprop"):
        assert name in result.stdout
    assert all(len(line.split()) > 1 or line.endswith(":") for line in result.stdout.splitlines())


def test_run_prints_rows_and_says_how_it_ended(example):
    result = factorflow("run", example, "--stop.loss", "0.1", "--observe.levels", "[0.5, 0.1]")
    assert result.returncode == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.startswith("time,step,level")
    assert len(rows) == 2
    assert "loss_reached" in result.stderr


def test_run_writes_tables(example, tmp_path):
    out = tmp_path / "rows.parquet"
    result = factorflow("run", example, "--seed=3", "--out", out)
    assert result.returncode == 0, result.stderr
    assert out.stat().st_size > 0
    assert result.stdout == ""


def test_sweep_fills_a_store_and_resumes(example, tmp_path):
    store = tmp_path / "store"
    arguments = ["sweep", example, "--store", store, "--axis", "seed=[0,1]"]
    first = factorflow(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("2 runs in")
    assert "0 of them failed" in first.stdout
    again = factorflow(*arguments, "--out", tmp_path / "rows.csv")
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 7


BAD_INPUT = [
    ("unknown paper", ["reproduce", "razin", "--out", "x"], "Unknown paper 'razin'"),
    (
        "unknown figure",
        ["reproduce", "razin_cohen_2020", "--out", "x", "--figure", "norms"],
        "Unknown figure 'norms'",
    ),
    ("missing file", ["run", "nowhere.json"], "Cannot read nowhere.json"),
    ("no experiment", ["run"], "or --example for one"),
    ("unknown field", ["run", "{example}", "--factorization.dept", "3"], "Did you mean 'depth'"),
    ("override without value", ["run", "{example}", "--seed"], "--seed needs a value"),
    ("stray word", ["run", "{example}", "seed"], "overrides are written --field value"),
    ("stray flag", ["list", "papers", "--all"], "Unknown argument '--all'"),
    (
        "axis is no list",
        ["sweep", "{example}", "--store", "x", "--axis", "seed=1"],
        "needs a JSON list",
    ),
    ("table of another kind", ["run", "{example}", "--out", "x.xls"], ".csv or .parquet"),
    ("no such folder", ["run", "{example}", "--out", "x/y.csv"], "does not exist; create it"),
    ("a word for a loss", ["run", "{example}", "--stop.loss", "abc"], "Stop.loss must be float"),
    ("a fraction", ["run", "{example}", "--seed", "1.7"], "Experiment.seed must be int"),
    ("null", ["run", "{example}", "--dynamics.optimizer", "null"], "takes a learning rate"),
]


@pytest.mark.parametrize(("arguments", "message"), [row[1:] for row in BAD_INPUT])
def test_bad_input_is_one_clear_line(arguments, message, example, tmp_path):
    arguments = [str(argument).format(example=example) for argument in arguments]
    result = factorflow(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_reproduce_refuses_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = factorflow("reproduce", "razin_cohen_2020", "--out", tmp_path)
    assert result.returncode == 2
    assert "holds something else" in result.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.x64
def test_reproduce_one_figure_then_from_the_store_then_from_one_that_was_tampered_with(tmp_path):
    arguments = ("reproduce", "razin_cohen_2020", "--out", tmp_path / "report", "--scale", "quick")
    arguments = (*arguments, "--figure", "step_size")
    first = factorflow(*arguments)
    assert first.returncode == 0, first.stderr
    assert "The claim holds." in first.stdout
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
    assert "all 7 runs are in the store" in again.stderr
    assert before == {file: file.stat().st_mtime_ns for file in (report / "data").rglob("*.nc")}

    # A store whose results were tampered with: claims are judged on the data, not by name.
    import xarray as xr

    for file in before:
        with xr.open_dataset(file, engine="h5netcdf") as dataset:
            changed = dataset.load()
        changed["entry[0,0]"] = 0 * changed["entry[0,0]"] + 1
        changed.to_netcdf(file, engine="h5netcdf")
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


def test_a_failed_run_exits_with_1(example):
    result = factorflow("run", example, "--dynamics.optimizer", "100.0")
    assert result.returncode == 1
    assert "loss_nonfinite" in result.stderr


def test_nothing_else_is_written(example, tmp_path):
    result = factorflow("run", example, "--stop.loss", "0.5", cwd=tmp_path)
    assert result.returncode == 0
    assert not list(Path(tmp_path).iterdir())
