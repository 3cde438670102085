"""What is refused before anything is computed: one sentence, exit status 2, and no file."""

import json
import math
import sys

import pytest

pytestmark = pytest.mark.x64

SWEEP = ["sweep", "{example}", "--store", "x", "--axis"]
SHAPES = ["--factorization.shape", "[2000000, 2000000]"]

REFUSED = [
    # commands, options and their values
    (["reprodce", "x"], "Unknown command 'reprodce'. Did you mean 'reproduce'?"),
    (["reproduce", "razin", "--out", "x"], "Unknown paper 'razin'"),
    (
        ["reproduce", "razin_cohen_2020", "--out", "x", "--figure", "norms"],
        "Unknown figure 'norms'",
    ),
    (["reproduce", "razin_cohen_2020", "--out", "x", "--figure"], "--figure needs one value"),
    (["reproduce", "razin_cohen_2020", "--out", "x", "--scal", "quick"], "Did you mean '--scale'?"),
    (["reproduce", "razin_cohen_2020", "--out", "x", "--out", "y"], "--out is given twice"),
    (["list", "papers", "--all"], "Unknown argument '--all'"),
    (["list", "papers", "-a"], "Unknown argument '-a'"),
    (["run", "nowhere.json"], "Cannot read nowhere.json"),
    (["run", "."], "Cannot read .: Is a directory"),
    (["run"], "or --example for one"),
    (["run", "{example}", "seed"], "overrides are written --field value"),
    (["run", "\udcff.json"], r"'\udcff.json' is not text"),
    # changes
    (["run", "{example}", "--factorization.dept", "3"], "Did you mean 'depth'"),
    (["run", "{example}", "--seed"], "--seed needs a value"),
    (["run", "{example}", "--seed", "--out", "x.csv"], "--seed needs a value"),
    (["run", "--seed", "1", "{example}", "--seed", "2"], "--seed is given twice"),
    (["run", "{example}", "--stop.loss", "abc"], "Stop.loss must be float"),
    (["run", "{example}", "--stop.loss", "NaN"], "finite numbers, got NaN"),
    (["run", "{example}", "--seed", "1.7"], "Experiment.seed must be int"),
    (["run", "{example}", "--seed", "9" * 5000], "of 5000 digits is too long"),
    (["run", "{example}", "--task.eps", "1" * 400], "RazinCohenTask.eps must be float"),
    (["run", "{example}", "--stop", "[" * 10**5], "levels deep"),
    (["run", "{example}", "--dynamics.optimizer", "null"], "takes a learning rate"),
    # axes
    ([*SWEEP[:-1]], "A sweep needs axes"),
    ([*SWEEP], "--axis needs one value or more"),
    ([*SWEEP, "seed"], "--axis needs one value or more"),
    ([*SWEEP, "seed=1"], "needs a JSON list"),
    ([*SWEEP, "seed=[]"], "Axis 'seed' is empty"),
    ([*SWEEP, "seed=[0,1]", "seed=[2]"], "Axis 'seed' is given twice"),
    ([*SWEEP, "stop.loss=[1]", "--axis=stop__loss=[2]"], "Axis 'stop.loss' is given twice"),
    ([*SWEEP, *(f"{axis}={[*range(200)]}" for axis in "abc")], "combine to 8000000 experiments"),
    # what could not be written
    (["run", "{example}", "--out", "x.xls"], ".csv or .parquet"),
    (["run", "{example}", "--out", "x/y.csv"], "does not exist; create it"),
    (["run", "{example}", "--out", "/proc/x.csv"], "Cannot write /proc/x.csv"),
    (["run", "{example}", "--store", "/proc/x/store"], "Cannot write /proc/x/store"),
    ([*SWEEP, "seed=[0]", "--store=/proc/store"], "given twice"),
    (["sweep", "{example}", "--store", "{example}", "--axis", "seed=[0]"], "is a file"),
    (["reproduce", "razin_cohen_2020", "--out", "/proc/x"], "Cannot write to /proc/x"),
    # what memory could not hold: two factors of (2e6)^2 numbers of 8 bytes, and their product
    (["run", "{example}", "--factorization.depth=2", *SHAPES], "takes 64000000000000 bytes"),
    (
        ["run", "{example}", *SHAPES, "--factorization.hidden", "3"],
        "takes 128000000000000 bytes",
    ),
    (["run", "{example}", "--task.dim", "2000000"], "razin_cohen_problem(dim=2000000)"),
    (["run", "{example}", "--factorization.depth", "10000000000000"], "takes 320000000000000 byt"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_input_is_one_clear_sentence(
    arguments, message, example, command, tmp_path, monkeypatch
):
    if "/proc" in message and sys.platform != "linux":
        pytest.skip("no folder here that nobody can write to")
    monkeypatch.chdir(tmp_path)
    status, out, err = command(
        *(argument.replace("{example}", str(example)) for argument in arguments)
    )
    assert (status, out) == (2, ""), err
    assert message in err
    assert err.startswith("factorflow: ") and err.count("\n") == 1
    assert len(err) < 1000
    assert not list(tmp_path.iterdir())


def file_of(data, **changes):
    return json.dumps(json.loads(data) | changes).encode()


FILES = [
    ("not JSON", lambda text: b"{", "invalid JSON"),
    ("binary", lambda text: bytes(range(128, 256)), "is no text in UTF-8 (byte 0)"),
    ("no object", lambda text: b"[1]", "expected a JSON object"),
    ("a name twice", lambda text: text.replace(b'"seed"', b'"seed": 1, "seed"'), "'seed' is given"),
    ("deep", lambda text: b'{"task":' * 10**5, "more than 20 levels deep"),
    ("infinite", lambda text: file_of(text, seed=math.inf), "finite numbers, got Infinity"),
    ("400 digits", lambda text: file_of(text, seed=10**400), "The number 1000000000... of 401"),
    ("other types", lambda text: file_of(text, task=3), "task must be a AbstractTask, got 3"),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in FILES])
def test_a_bad_file_is_named(data, message, example, command, tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(data(example.read_bytes()))
    status, out, err = command("run", path)
    assert (status, out) == (2, "")
    assert err.startswith(f"factorflow: {path}: ") or f"Cannot read {path}: " in err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_refused_before_anything_is_computed(
    missing, command, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    ours = ("factorflow.drawing", "factorflow.report")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    status, out, err = command("reproduce", "razin_cohen_2020", "--out", tmp_path / "report")
    assert (status, out) == (2, "")
    assert 'pip install "factorflow[plot]"' in err
    assert not list(tmp_path.iterdir())


def test_a_report_keeps_what_is_in_its_way(command, tmp_path):
    arguments = ("reproduce", "razin_cohen_2020", "--out", tmp_path)
    (tmp_path / "index.html").mkdir()
    assert "index.html is no file" in command(*arguments)[2]
    (tmp_path / "thesis.tex").write_text("years of work")
    status, _, err = command(*arguments)
    assert status == 2
    assert "holds something else" in err
    assert {item.name for item in tmp_path.iterdir()} == {"thesis.tex", "index.html"}
