"""When two functions are the same, although each was made anew.

JAX compiles again for every new function object, so a lambda in a loop would compile every time.
Functions are the same here where code, defaults, closed-over values and the globals that they name
are; where that cannot be known, as with values that can change in place, they are not.
"""

import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

__all__ = ["Same", "UnknownValue", "canonical", "closed_over", "fingerprint", "named_globals"]

# What their modules hold is no user's to change, so it is not looked at.
_LIBRARIES = {"equinox", "factorflow", "functools", "jax", "jaxlib", "math", "numpy", "optax"}
_PLAIN = (type(None), bool, int, str, bytes, complex, type(Ellipsis), np.dtype)
# Canonical functions are kept alive: no more of them than a session has need of.
_KEPT = 1024
_CANONICAL: dict[Hashable, Callable] = {}


class UnknownValue(Exception):
    """A value of which nobody knows whether it will stay what it is."""


class Same:
    """Equal for one object only, which is kept alive so that its id is not used again."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value


def canonical(function: Any) -> Any:
    """The first function that was seen which is the same as this one."""
    if not isinstance(function, types.FunctionType):
        return function
    try:
        key = fingerprint(function)
    except UnknownValue:
        return function
    if key not in _CANONICAL and len(_CANONICAL) >= _KEPT:
        _CANONICAL.pop(next(iter(_CANONICAL)))
    return _CANONICAL.setdefault(key, function)


def fingerprint(value: Any, _path: tuple[int, ...] = ()) -> Hashable:
    """What is equal for two values that are the same; `UnknownValue` where nobody knows."""
    if isinstance(value, float):
        return float, value.hex()  # tells -0.0 from 0.0; NaN equals itself
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, tuple):
        return tuple, tuple(fingerprint(item, _path) for item in value)
    if isinstance(value, types.FunctionType):
        if id(value) in _path:
            return "itself", _path.index(id(value))
        path = (*_path, id(value))
        held = tuple(fingerprint(part, path) for part in closed_over(value))
        return value.__code__, held, named_globals(value, path)
    immutable = isinstance(value, types.ModuleType | type | types.BuiltinFunctionType | jax.Array)
    # The last: compiled functions and ufuncs of libraries, and our own measures.
    if immutable or (callable(value) and _of_library(type(value).__module__)):
        return Same(value)
    raise UnknownValue(value)


def closed_over(function: types.FunctionType) -> tuple[tuple, tuple, tuple]:
    """Closed-over values, defaults, and defaults of keywords as pairs."""
    try:
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # a cell that is filled later
        raise UnknownValue(function) from None
    keywords = tuple(sorted((function.__kwdefaults__ or {}).items()))
    return cells, function.__defaults__ or (), keywords


def named_globals(function: types.FunctionType, path: tuple[int, ...] = ()) -> Hashable:
    """Fingerprints of the globals that a function names; none of a library's functions."""
    if _of_library(function.__module__):
        return ()
    names = sorted(_names(function.__code__))
    found = [(n, function.__globals__[n]) for n in names if n in function.__globals__]
    # `settings.rate` names two things, and the second may change within the first.
    for name, value in list(found):
        if isinstance(value, types.ModuleType) and not _of_library(value.__name__):
            inside = vars(value)
            found.extend((f"{name}.{n}", inside[n]) for n in names if n in inside)
    return tuple((name, fingerprint(value, path)) for name, value in found)


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES
