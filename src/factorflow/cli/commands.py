"""What the commands do. Results go to stdout, everything else to stderr."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorflow.cli.arguments import Command, List, Reproduce, Run, Sweep

if TYPE_CHECKING:
    from factorflow.experiments import Experiment

__all__ = ["carry_out"]


def carry_out(command: Command, changes: Mapping[str, str]) -> int:
    """Do what the command says; an exit status. `changes` are those of `run`."""
    if isinstance(command, List):
        return _list_names(command)
    if isinstance(command, Reproduce):
        return _reproduce_paper(command)
    return _run(command, changes) if isinstance(command, Run) else _run_sweep(command)


def _reproduce_paper(command: Reproduce) -> int:
    """Reproduce a paper; 1 when a claim does not hold."""
    from factorflow.papers.catalogue import load_paper, named_paper

    named_paper(command.paper)
    _start_jax()
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


def _list_names(command: List) -> int:
    """Print names with a line each."""
    from factorflow.cli.names import catalogue

    for title, lines in catalogue(command.what).items():
        print(f"{title}:")
        width = max(len(name) for name in lines)
        for name, line in lines.items():
            print(f"  {name:<{width}}  {line}")
    return 0


def _run(command: Run, changes: Mapping[str, str]) -> int:
    """Run one experiment, with its fields changed, and print or write its rows."""
    if command.experiment is None and not command.example:
        raise ValueError("Give an experiment: `factorflow run FILE.json`, or --example for one.")
    _check_table(command.out)
    _check_folder(command.store)
    _start_jax()
    if command.experiment is None or command.example:
        print(_example().to_json())
        return 0
    from factorflow.cli.reading import read_changes, read_experiment
    from factorflow.experiments import Store, run

    experiment = read_experiment(command.experiment)
    experiment = experiment.replace(**read_changes(changes)) if changes else experiment
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(command.store or Path(scratch) / "store")
        run(experiment, store, progress=False)
        dataset = store.dataset([experiment])
        _write(dataset, command.out)
    ending = str(dataset["result"].item())
    _say(f"{ending}: {experiment.key()}")
    return _failures([ending])


def _run_sweep(command: Sweep) -> int:
    """Run a sweep into a store; 1 when every run failed."""
    _check_table(command.out)
    _check_folder(command.store)
    _start_jax()
    from factorflow.cli.reading import read_axes, read_experiment
    from factorflow.experiments import run, sweep

    axes = read_axes(command.axis)
    experiments = {e.key(): e for e in sweep(read_experiment(command.experiment), **axes)}
    experiments = list(experiments.values())
    store = run(experiments, command.store, progress=command.progress, chunk=command.chunk)
    dataset = store.dataset(experiments)
    if command.out is not None:
        _write(dataset, command.out)
    failed = _failures(dataset["result"].values.tolist())
    print(f"{len(experiments)} runs in {store.path}, {failed} of them failed")
    return int(failed == len(experiments))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _start_jax() -> None:
    """Import JAX, in double precision: the library never touches the configuration, this does."""
    try:
        import jax

        jax.config.update("jax_enable_x64", True)
        jax.devices()
    except (RuntimeError, ValueError) as error:
        given = [f"{name}={value}" for name, value in os.environ.items() if name[:4] == "JAX_"]
        look = f" Look at the environment: {', '.join(sorted(given))}." if given else ""
        raise ValueError(f"JAX does not start: {error}{look}") from error


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
    if out.is_dir():
        raise ValueError(f"Cannot write {out}: it is a folder; choose another name.")
    if not out.parent.is_dir():
        raise ValueError(f"Cannot write {out}: the folder {out.parent} does not exist; create it.")
    _try_writing(out.parent, out)


def _check_folder(store: Path | None) -> None:
    """The same for a store, whose folder is made with the first results."""
    if store is None:
        return
    there = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    if there.is_dir():  # a file is refused by Store, in its own words
        _try_writing(there, store)


def _try_writing(folder: Path, what: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"something")
    except OSError as error:
        raise ValueError(
            f"Cannot write {what}: {error.strerror}. Choose a writable folder with free space."
        ) from error


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
        if name in columns or {name, name.rpartition(".")[0]} & set(map(str, dataset.data_vars))
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
