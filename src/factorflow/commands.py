"""What the commands do. Results go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorflow.papers.catalogue import PAPERS, load_paper

if TYPE_CHECKING:
    from factorflow.cli import List, Reproduce, Run, Sweep
    from factorflow.experiments import Experiment

__all__ = ["list_names", "reproduce_paper", "run_experiment", "run_sweep"]


def reproduce_paper(command: "Reproduce") -> int:
    """Reproduce a paper; 1 when a claim does not hold."""
    _double_precision()
    from factorflow.report import claims_table, reproduce

    result = reproduce(
        load_paper(command.paper),
        command.out,
        scale=command.scale,
        figures=command.figure,
        progress=command.progress,
        say=_say,
    )
    print(claims_table(result.verdicts))
    print(f"report: {result.report}")
    return 0 if result.holds else 1


def list_names(command: "List") -> int:
    """Print names with a line each."""
    for title, lines in _catalogue(command.what).items():
        print(f"{title}:")
        width = max(len(name) for name in lines)
        for name, line in lines.items():
            print(f"  {name:<{width}}  {line}")
    return 0


def run_experiment(command: "Run", overrides: Sequence[str]) -> int:
    """Run one experiment, with `--field value` overrides, and print or write its rows."""
    _double_precision()
    if command.example:
        print(_example().to_json())
        return 0
    if command.experiment is None:
        raise ValueError("Give an experiment: `factorflow run FILE.json`, or --example for one.")
    from tempfile import TemporaryDirectory

    from factorflow.experiments import Store, run

    _check_table(command.out)
    experiment = _read(command.experiment)
    changes = _overrides(overrides)
    experiment = experiment.replace(**changes) if changes else experiment
    with TemporaryDirectory() as scratch:
        store = Store(command.store or Path(scratch) / "store")
        run(experiment, store, progress=False)
        dataset = store.dataset([experiment])
        _write(dataset, command.out)
    ending = str(dataset["result"].item())
    _say(f"{ending}: {experiment.key()}")
    return _failures([ending])


def run_sweep(command: "Sweep") -> int:
    """Run a sweep into a store."""
    _double_precision()
    from factorflow.experiments import run, sweep

    _check_table(command.out)
    base = _read(command.experiment)
    axes = dict(_assignment(text) for text in command.axis)
    for name, values in axes.items():
        if not isinstance(values, list):
            raise ValueError(f"Axis {name!r} needs a JSON list of values, got {values!r}.")
    experiments = sweep(base, **axes)
    store = run(experiments, command.store, progress=command.progress, chunk=command.chunk)
    dataset = store.dataset(experiments)
    if command.out is not None:
        _write(dataset, command.out)
    endings = dataset["result"].values.tolist()
    count = len({experiment.key() for experiment in experiments})
    print(f"{count} runs in {store.path}, {_failures(endings)} of them failed")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _double_precision() -> None:
    # The library never touches the configuration; the command line is where it is decided.
    import jax

    jax.config.update("jax_enable_x64", True)


def _read(path: Path) -> "Experiment":
    from factorflow.experiments import Experiment

    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from None
    return Experiment.from_json(text)


def _overrides(arguments: Sequence[str]) -> dict[str, Any]:
    changes = {}
    rest = iter(arguments)
    for argument in rest:
        name, separator, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise ValueError(f"Unexpected {argument!r}; overrides are written --field value.")
        if not separator:
            value = next(rest, None)
        if value is None:
            raise ValueError(f"--{name} needs a value, as in `--{name} 3`.")
        changes[name] = _value(value)
    return changes


def _assignment(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is no assignment; write field=value.")
    return name, _value(value)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a bare word is a string


def _failures(endings: Sequence[str]) -> int:
    """How many endings are errors; limits that were asked for are not."""
    from factorflow._results import LIMITS

    return sum(ending not in LIMITS for ending in endings)


def _check_table(out: Path | None) -> None:
    """Refuse a table that could not be written, before anything is computed."""
    if out is None:
        return
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out must end in .csv or .parquet, got {out}.")
    if not out.parent.is_dir():
        raise ValueError(f"Cannot write {out}: the folder {out.parent} does not exist; create it.")


def _write(dataset: Any, out: Path | None) -> None:
    from factorflow._trajectory import write_table
    from factorflow.experiments.store import long_columns

    if out is not None:
        write_table(long_columns(dataset), out, out.suffix.removeprefix("."))
        return
    import polars as pl

    columns = {"level", "time", "step", "reached", "contradicted"}
    kept = {
        name: values
        for name, values in long_columns(dataset).items()
        if name in columns or name.split(".")[0] in dataset.data_vars
    }
    sys.stdout.write(pl.DataFrame(kept).write_csv())


def _example() -> "Experiment":
    import factorflow as ff
    from factorflow.experiments import Experiment, RazinCohenTask

    return Experiment(
        task=RazinCohenTask(),
        factorization=ff.DeepMatrix((2, 2), depth=3),
        initializer=ff.Balanced(product_scale=1e-3, determinant="positive"),
        dynamics=ff.GradientDescent(6e-3),
        observe=ff.AtLosses([1e-1, 1e-2, 1e-3]),
        stop=ff.Stop(loss=1e-3, max_steps=1_000_000),
        measures=["loss", "entry[0,0]", "nuclear_norm", "effective_rank"],
    )


def _catalogue(what: str) -> dict[str, dict[str, str]]:
    sections = {"papers": lambda: PAPERS, **_sections()}
    chosen = sections if what == "all" else {what: sections[what]}
    return {title: make() for title, make in chosen.items()}


def _sections():
    def first_line(item: Any) -> str:
        return (item.__doc__ or "").strip().partition("\n")[0]

    def figures():
        return {
            f"{name} --figure {figure.name}": figure.title
            for name in PAPERS
            for figure in load_paper(name).figures
        }

    def problems():
        from factorflow import _problem
        from factorflow.experiments.task import TASKS

        names = ("Completion", "Sensing", "razin_cohen_problem", "random_low_rank_problem")
        lines = {name: first_line(getattr(_problem, name)) for name in names}
        return lines | {task.__name__: first_line(task) for task in TASKS}

    def measures():
        from factorflow._measure import MEASURES

        return {family.usage: family.summary for _, family in sorted(MEASURES.items())}

    def initializers():
        from factorflow import _initializer

        names = ("Balanced", "Gaussian", "Identity", "Imbalanced", "Orthogonal")
        return {name: first_line(getattr(_initializer, name)) for name in names}

    def optimizers():
        from factorflow._dynamics import OPTIMIZERS

        return {name: first_line(make) for name, make in sorted(OPTIMIZERS.items())}

    return {
        "figures": figures,
        "problems": problems,
        "measures": measures,
        "initializers": initializers,
        "optimizers": optimizers,
    }
