"""Experiments, changes and axes as they are given on the command line."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorflow.experiments.codec import parse_json

if TYPE_CHECKING:
    from factorflow.experiments import Experiment

__all__ = ["read_axes", "read_changes", "read_experiment"]

# An experiment takes a kilobyte; one that gives a product takes what the product takes.
_MOST_BYTES = 2**26


def read_experiment(path: Path) -> "Experiment":
    """The experiment in a JSON file, or on standard input for `-`.

    UTF-8, and UTF-16 and UTF-32 as PowerShell and editors write them, with or without their mark.
    """
    from factorflow.experiments import Experiment

    name = "standard input" if str(path) == "-" else str(path)
    text = _text(_bytes(path, name), name)
    try:
        return Experiment.from_json(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def read_changes(changes: Mapping[str, str]) -> dict[str, Any]:
    """Values by dotted field name."""
    return {name: _value(name, text) for name, text in changes.items()}


def read_axes(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """Lists of values by dotted field name, from `field=[value, ...]`."""
    if not assignments:
        raise ValueError("A sweep needs axes: `--axis field=[value, ...] field=[value, ...]`.")
    axes: dict[str, list[Any]] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        name = name.replace("__", ".")
        if not separator or not name:
            raise ValueError(f"{assignment!r} is no assignment; write field=[value, ...].")
        values = _value(name, text)
        if not isinstance(values, list):
            raise ValueError(f"Axis {name!r} needs a JSON list of values, got {values!r}.")
        if name in axes:
            raise ValueError(f"Axis {name!r} is given twice; put all its values into one list.")
        axes[name] = values
    return axes


def _bytes(path: Path, name: str) -> bytes:
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise ValueError("Cannot read standard input: it is closed.")
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"Cannot read {name}: {error.strerror}.") from None
    if len(data) > _MOST_BYTES:
        raise ValueError(f"Cannot read {name}: it is longer than {_MOST_BYTES} bytes.")
    return data


def _text(data: bytes, name: str) -> str:
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Cannot read {name}: it is no text in {encoding.upper()} (byte {error.start}); save "
            "it as UTF-8."
        ) from None


def _value(name: str, text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        return text  # a bare word is a string
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
