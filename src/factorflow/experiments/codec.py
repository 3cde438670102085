"""Modules to JSON and back: `{"kind": "GradientFlow", "rtol": 1e-8, ...}`."""

import dataclasses
import functools
import json
import math
import sys
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import equinox as eqx
import numpy as np

from factorflow._dynamics import (
    EndToEndFlow,
    GradientDescent,
    GradientFlow,
    MultirateFlow,
    Optimizer,
)
from factorflow._factorization import CP, DeepMatrix, TensorTrain, Tucker
from factorflow._initializer import Balanced, Gaussian, Identity, Imbalanced, Orthogonal
from factorflow._names import named
from factorflow._observe import AtEnd, AtLosses, AtSteps, AtTimes, LogSpaced, Stop
from factorflow.experiments.task import TASKS

__all__ = ["KINDS", "build", "canonical", "decode", "encode", "flatten", "parse_json"]

# A product given by its entries is the deepest that an experiment holds.
_MOST_LEVELS = 20
# More digits than a float holds, and fewer than Python refuses to read.
_MOST_DIGITS = 400

KINDS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *TASKS,
        CP,
        DeepMatrix,
        TensorTrain,
        Tucker,
        Balanced,
        Gaussian,
        Identity,
        Imbalanced,
        Orthogonal,
        EndToEndFlow,
        GradientDescent,
        GradientFlow,
        MultirateFlow,
        Optimizer,
        AtEnd,
        AtLosses,
        AtSteps,
        AtTimes,
        LogSpaced,
        Stop,
    )
}


def parse_json(text: str) -> Any:
    """JSON as the standard has it.

    **Raises:** `json.JSONDecodeError` for what is not JSON; `ValueError` for what other readers
    take in silence or fail at: a key given twice, numbers that are not finite or too long to be
    one, lists in lists without end.
    """
    try:
        data = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_short_integer,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [data]
    for _ in range(_MOST_LEVELS):
        level = [inner for outer in level for inner in _items(outer)]
        if not level:
            return data
    raise ValueError(_TOO_DEEP)


_TOO_DEEP = f"Lists and objects stand in each other more than {_MOST_LEVELS} levels deep."


def _items(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return list(data.values())
    return data if isinstance(data, list) else []


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"The name {twice!r} is given twice in one object; give it once.")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"Experiments hold finite numbers, got {name}.")


def _short_integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"The number {text[:10]}... of {len(text)} digits is too long.")
    return int(text)


def encode(value: Any) -> Any:
    """Plain JSON data; `ValueError` for what JSON cannot hold.

    A number is written in the way of its field, 1.0 in one of floats and 1 in one of integers:
    the same experiment has the same text, however its numbers were written.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ValueError(f"Experiments hold finite numbers, got {value}.")
        return float(value)
    if isinstance(value, dict):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, eqx.Module) and type(value).__name__ in KINDS:
        hints = _hints(type(value))
        return {"kind": type(value).__name__} | {
            field.name: _numbers(encode(getattr(value, field.name)), hints.get(field.name, Any))
            for field in dataclasses.fields(value)
        }
    raise ValueError(
        f"{value!r} cannot be stored in an experiment. Use names and numbers: "
        "Optimizer('adam', {'learning_rate': 1e-3}) instead of an optax object, the name of an "
        "integrator instead of a solver, the name of a measure instead of a function."
    )


def decode(data: Any) -> Any:
    """The inverse of `encode`; constructors check what they are given."""
    if isinstance(data, list):
        return tuple(decode(item) for item in data)
    if not isinstance(data, dict):
        return data
    fields = {name: decode(item) for name, item in data.items() if name != "kind"}
    if "kind" not in data:
        return fields
    cls = KINDS[named("kind", str(data["kind"]), KINDS)]
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
        named(f"field of {cls.__name__}", name, known)
    return build(cls, fields)


def build(cls: type, fields: dict[str, Any]) -> Any:
    """An object from its fields; what does not fit is a `ValueError` that names the field."""
    hints = _hints(cls)
    fields = {name: _numbers(value, hints.get(name, Any)) for name, value in fields.items()}
    for name, value in fields.items():
        if not _fits(value, hints.get(name, Any)):
            expected = str(hints[name]).replace("typing.", "").removeprefix("<class '")
            raise ValueError(
                f"{cls.__name__}.{name} must be {expected.removesuffix(chr(39) + chr(62))}, got "
                f"{value!r}."
            )
    try:
        return cls(**fields)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{cls.__name__} cannot be made from {fields}: {error}.") from error


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _numbers(value: Any, hint: Any) -> Any:
    """The value with its numbers in the type of the field, where that changes none of them."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = {int, float} & set(arguments)
        if isinstance(value, int | float):
            hint = kinds.pop() if len(kinds) == 1 else Any
        else:
            tuples = [argument for argument in arguments if get_origin(argument) is tuple]
            return _numbers(value, tuples[0]) if len(tuples) == 1 else value
    elif origin is tuple and isinstance(value, list | tuple):
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(hints) != len(value):
            return value
        return type(value)(map(_numbers, value, hints))
    elif origin is dict and isinstance(value, dict):
        return {name: _numbers(item, arguments[1]) for name, item in value.items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if hint is float and abs(value) <= sys.float_info.max and float(value) == value:
        return float(value)
    return int(value) if hint is int and isinstance(value, float) and value.is_integer() else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether plain data can stand for a field of this type; other types are left to the class."""
    if hint is Any:
        return not isinstance(value, bool)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if hint is NoneType:
        return value is None
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    if hint is int:
        # Beyond 64 bits a number no longer fits a seed or a size.
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is str:
        return isinstance(value, str)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return True


def canonical(data: Any) -> str:
    """One text per value: sorted names, shortest floats, 1.0 as 1 (which it equals)."""
    return json.dumps(_shortest(data), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _shortest(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _shortest(item) for name, item in data.items()}
    if isinstance(data, list | tuple):
        return [_shortest(item) for item in data]
    # Zero has a sign as a float, and none as an integer.
    return int(data) if isinstance(data, float) and data and data.is_integer() else data


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of the scalars, the axes one can select by; lists are left out."""
    flat: dict[str, Any] = {}
    for name, item in data.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{name}.")
        elif not isinstance(item, list) and item is not None:
            flat[f"{prefix}{name}"] = item
    return flat
