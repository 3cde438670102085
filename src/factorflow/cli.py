"""The command line. Nothing here imports JAX until a command needs it."""

import dataclasses
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from factorflow._interrupt import guarded

__all__ = ["main"]


@dataclasses.dataclass
class Reproduce:
    """Reproduce a paper: run its experiments, draw its figures, check its claims, write a report.

    Writes OUT/index.html (the report), OUT/figures, OUT/claims.json and OUT/data (the results).
    Run again, it computes only what is missing. Exits with 1 when a claim does not hold.
    """

    paper: tyro.conf.Positional[str]
    """Which paper; `factorflow list papers` names them."""
    out: Path
    """Folder for the report: new, empty, or one of an earlier reproduction. The results in it are
    reused; the report is written anew, with the figures asked for this time."""
    scale: Literal["quick", "paper", "beyond"] = "paper"
    """quick: about a minute; paper: the authors' settings; beyond: more seeds and depths."""
    figure: tuple[str, ...] = ()
    """Only these figures; all by default."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass
class List:
    """List what there is, one line each: papers, problems, measures, initializers, optimizers."""

    what: tyro.conf.Positional[
        Literal["all", "papers", "figures", "problems", "measures", "initializers", "optimizers"]
    ] = "all"
    """Which of them."""


@dataclasses.dataclass
class Run:
    """Run one experiment from a JSON file, and print its rows as CSV.

    Any field of the experiment can be changed on the command line by its dotted name, e.g.
    `--factorization.depth 3 --seed 1`. `factorflow run --example` prints a file to start from.
    """

    experiment: tyro.conf.Positional[Path | None] = None
    """The experiment, a JSON file."""
    store: Path | None = None
    """Keep the results in this store, and reuse them from it."""
    out: Path | None = None
    """Write the rows to this .csv or .parquet file instead of printing them."""
    example: bool = False
    """Print an example experiment and exit."""


@dataclasses.dataclass
class Sweep:
    """Run every combination of some axes around one experiment, into a store.

    `factorflow sweep base.json --store results --axis factorization.depth=[2,3] seed=[0,1,2]`
    """

    experiment: tyro.conf.Positional[Path]
    """The experiment to vary, a JSON file."""
    store: Path
    """Folder of the results; a sweep that was interrupted resumes."""
    axis: tuple[str, ...]
    """Axes, `field=[value, ...]` with the values as a JSON list."""
    out: Path | None = None
    """Also write all rows to this .csv or .parquet file."""
    chunk: int = 64
    """At most this many runs per batch; results do not depend on it."""
    progress: bool = True
    """Show a progress bar."""


_Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
)


@guarded()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `factorflow` command."""
    command, rest = tyro.cli(
        _Command,
        args=arguments,
        prog="factorflow",
        description=(
            "Follow gradient flow and gradient descent over deep matrix and tensor factorizations "
            "started near zero, and measure what they implicitly minimize."
        ),
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
        return_unknown_args=True,
    )
    try:
        status = _dispatch(command, rest)
    except KeyboardInterrupt:
        kept = getattr(command, "store", True) is not None
        resume = "; finished batches are kept, run again to resume" if kept else ""
        print(f"\ninterrupted{resume}", file=sys.stderr)
        _leave(130)
    except BrokenPipeError:
        os._exit(0)
    except (ValueError, ImportError, FileNotFoundError) as error:
        print(f"factorflow: {error}", file=sys.stderr)
        status = 2
        others = set(threading.enumerate()) - {threading.main_thread()}
        if any(not thread.daemon for thread in others):
            _leave(status)
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    """End at once: compiled code in other threads cannot be stopped, and would be waited for."""
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)


def _dispatch(command: _Command, rest: Sequence[str]) -> int:
    if rest and not isinstance(command, Run):
        name = type(command).__name__.lower()
        raise ValueError(f"Unknown argument {rest[0]!r}; see `factorflow {name} --help`.")
    from factorflow.commands import list_names, reproduce_paper, run_experiment, run_sweep

    if isinstance(command, Run):
        return run_experiment(command, rest)
    if isinstance(command, Reproduce):
        return reproduce_paper(command)
    return list_names(command) if isinstance(command, List) else run_sweep(command)


if __name__ == "__main__":
    main()
