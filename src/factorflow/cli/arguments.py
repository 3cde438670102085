"""What can be asked for on the command line; what would be misread in silence is refused."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from factorflow._names import named

__all__ = ["Command", "List", "Reproduce", "Run", "Sweep", "parse"]

_DESCRIPTION = (
    "Follow gradient flow and gradient descent over deep matrix and tensor factorizations "
    "started near zero, and measure what they implicitly minimize.\n\n"
    "Exits with 0 when all is done; 1 when a claim does not hold, a run failed, or all runs of a "
    "sweep did; 2 when something was refused or could not be written; 70 after a defect of "
    "factorflow; 130 after Ctrl-C; 141 when what it prints is its work and nobody reads it. "
    "Results go to stdout, everything else to stderr.\n\n"
    "`factorflow --version` prints the version."
)


@dataclasses.dataclass
class Reproduce:
    """Reproduce a paper: run its experiments, draw its figures, check its claims, write a report.

    Writes OUT/index.html (the report), OUT/figures, OUT/claims.json and OUT/data (the results).
    Run again, it computes only what is missing. Exits with 1 when a claim does not hold.
    """

    # Options that take several values; whether what it prints is all there is of its work; whether
    # results are kept when it is interrupted.
    lists: ClassVar[tuple[str, ...]] = ("figure",)
    printed: ClassVar[bool] = False
    kept: ClassVar[bool] = True

    paper: tyro.conf.Positional[str]
    """Which paper; `factorflow list papers` names them."""
    out: Path
    """Folder for the report: new, empty, or one of an earlier reproduction. The results in it are
    reused; the report is written anew, with the figures asked for this time."""
    scale: Literal["quick", "paper", "beyond"] = "paper"
    """quick: about a minute; paper: the authors' settings; beyond: more seeds and depths."""
    figure: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only these figures, `--figure NAME NAME`; all by default."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass
class List:
    """List what there is, one line each: papers, problems, measures, initializers, optimizers."""

    lists: ClassVar[tuple[str, ...]] = ()
    printed: ClassVar[bool] = True
    kept: ClassVar[bool] = False

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

    lists: ClassVar[tuple[str, ...]] = ()

    experiment: tyro.conf.Positional[Path | None] = None
    """The experiment, a JSON file, or - for standard input."""
    store: Path | None = None
    """Keep the results in this store, and reuse them from it."""
    out: Path | None = None
    """Write the rows to this .csv or .parquet file instead of printing them."""
    example: bool = False
    """Print an example experiment and exit."""

    @property
    def printed(self) -> bool:
        """Rows go to stdout unless a table takes them."""
        return self.example or self.out is None

    @property
    def kept(self) -> bool:
        return self.store is not None


@dataclasses.dataclass
class Sweep:
    """Run every combination of some axes around one experiment, into a store.

    `factorflow sweep base.json --store results --axis factorization.depth=[2,3] seed=[0,1,2]`

    Exits with 1 when every run failed, and says how many did.
    """

    lists: ClassVar[tuple[str, ...]] = ("axis",)
    printed: ClassVar[bool] = False
    kept: ClassVar[bool] = True

    experiment: tyro.conf.Positional[Path]
    """The experiment to vary, a JSON file, or - for standard input."""
    store: Path
    """Folder of the results; a sweep that was interrupted resumes."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Axes, `--axis field=[value, ...] field=[value, ...]`, the values as a JSON list."""
    out: Path | None = None
    """Also write all rows to this .csv or .parquet file."""
    chunk: int = 64
    """At most this many runs per batch; results do not depend on it."""
    progress: bool = True
    """Show a progress bar."""


Command = Reproduce | List | Run | Sweep

_COMMANDS: dict[str, type[Command]] = {
    "reproduce": Reproduce,
    "list": List,
    "run": Run,
    "sweep": Sweep,
}

_Subcommand = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
)


def parse(arguments: Sequence[str]) -> tuple[Command, dict[str, str]]:
    """The command that was asked for, and the fields of its experiment that are to be changed.

    Options may stand anywhere; those of `run` that are not its own are changes, `--field value`.
    Values of `--axis` and `--figure` may follow one flag or several. `--help`, and what does not
    fit, end the process as `tyro.cli` does: with 0 and with 2.

    **Raises:** `ValueError` for an option that is unknown, given twice, or without its values, and
    for text that is not Unicode.
    """
    for argument in arguments:
        _refuse_bytes(argument)
    rest, changes = list(arguments), {}
    if rest and not rest[0].startswith("-"):
        kind = _COMMANDS[named("command", rest[0], _COMMANDS)]
        if not {"-h", "--help"} & set(rest):
            tail, changes = _normal(kind, rest[1:])
            rest = [rest[0], *tail]
    command = tyro.cli(
        _Subcommand,  # pyright: ignore[reportArgumentType]
        args=rest,
        prog="factorflow",
        description=_DESCRIPTION,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    return command, changes


def _normal(kind: type[Command], arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments with one flag before each value of a list, and, apart, the changes."""
    name = kind.__name__.lower()
    flags = _flags(kind)
    switches = [field.name for field in dataclasses.fields(kind) if field.type is bool]
    rest: list[str] = []
    changes: dict[str, str] = {}
    seen: set[str] = set()
    place: str | None = None  # the one argument without a flag
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--"):
            if argument.startswith("-") and argument != "-":
                raise ValueError(f"Unknown argument {argument!r}; see `factorflow {name} --help`.")
            if place is not None:
                changing = "; overrides are written --field value" if kind is Run else ""
                raise ValueError(f"Unexpected {argument!r} after {place!r}{changing}.")
            place = argument
            rest.append(argument)
            continue
        flag, equals, value = argument[2:].partition("=")
        option = flags.get(flag.replace("_", "-"))
        if option is None and kind is not Run:
            known = [f"--{known}" for known in flags]
            raise ValueError(_unknown(name, f"--{flag}", known))
        if option in kind.lists:
            values = [value] if equals else []
            while waiting and _is_value(option, waiting[0]):
                values.append(waiting.pop(0))
            if not any(values):
                raise ValueError(_needs(option))
            rest += [f"--{option}={value}" for value in values]
            continue
        if option in seen or flag in changes:
            raise ValueError(f"--{flag} is given twice; give it once.")
        if option is None:
            if not equals and (not waiting or waiting[0].startswith("--")):
                raise ValueError(f"--{flag} needs a value, as in `--{flag} 3`.")
            changes[flag] = value if equals else waiting.pop(0)
        else:
            seen.add(option)
            rest.append(argument)
            if not equals and option not in switches and waiting:
                rest.append(waiting.pop(0))
    return rest, changes


def _flags(kind: type[Command]) -> dict[str, str]:
    """The options by the ways to write them; `--no-progress` is an option's other value."""
    flags = {}
    for field in dataclasses.fields(kind):
        if field.name in ("paper", "what", "experiment"):
            continue
        flags[field.name] = field.name
        if field.type is bool:
            flags[f"no-{field.name}"] = field.name
    return flags


def _is_value(option: str, argument: str) -> bool:
    # A file that follows axes is no axis: these have an equals sign.
    return not argument.startswith("-") and (option != "axis" or "=" in argument)


def _needs(option: str) -> str:
    example = "field=[value, ...]" if option == "axis" else "NAME"
    return f"--{option} needs one value or more: `--{option} {example}`."


def _unknown(name: str, flag: str, known: Sequence[str]) -> str:
    try:
        named("argument", flag, known)
    except ValueError as error:
        return f"{error} See `factorflow {name} --help`."
    raise AssertionError("unreachable: the flag is unknown")


def _refuse_bytes(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{argument!a} is not text in the encoding of this system, and files of such names are "
            "not read or written; rename it, or change to its folder and give a relative path."
        ) from None
