"""Modules to JSON and back: `{"kind": "GradientFlow", "rtol": 1e-8, ...}`."""

import dataclasses
import json
import math
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

__all__ = ["KINDS", "build", "canonical", "decode", "encode", "flatten"]

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


def encode(value: Any) -> Any:
    """Plain JSON data; `ValueError` for what JSON cannot hold."""
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
        fields = [field.name for field in dataclasses.fields(value)]
        return {"kind": type(value).__name__} | {
            name: encode(getattr(value, name)) for name in fields
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
    hints = get_type_hints(cls)
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
        return isinstance(value, int | float) and not isinstance(value, bool)
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
    """One text per value: sorted names, shortest floats."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names of the scalars, the axes one can select by; lists are left out."""
    flat: dict[str, Any] = {}
    for name, item in data.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{name}.")
        elif not isinstance(item, list) and item is not None:
            flat[f"{prefix}{name}"] = item
    return flat
