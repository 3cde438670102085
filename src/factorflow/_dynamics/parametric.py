"""Optax transformations as code and numbers, so that a new learning rate compiles nothing."""

import functools
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from factorflow._functions import UnknownValue, closed_over, fingerprint, named_globals
from factorflow._types import Factors

__all__ = ["Parametric"]

# What a value is but for its numbers, and how it is made from these.
_Parts = tuple[Hashable, Callable[[Sequence[Any]], Any]]


class _Code:
    """How something is made of numbers; equal where the same code makes it."""

    def __init__(self, key: Hashable, make: Callable[[Sequence[Any]], Any]):
        self.key, self.make = key, make

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Code) and self.key == other.key


class Parametric(eqx.Module):
    """An optax transformation whose numbers are arrays of the run, like those of an `Optimizer`.

    Optax keeps numbers in the closures of its functions, where JAX takes them for constants, so
    that `optax.adam(1e-3)`, made anew, is another program. Here the same code at other numbers is
    the same program.
    """

    code: _Code = eqx.field(static=True)
    numbers: list[Any]

    @classmethod
    def of(cls, transformation: Any) -> "Parametric | None":
        """The transformation in this form, or `None` where a closure holds what may change."""
        numbers: list[Any] = []
        try:
            return cls(_Code(*_parts(transformation, numbers, ())), numbers)
        except UnknownValue:
            return None

    def build(self) -> Any:
        """The transformation; called inside the trace, where the numbers are arrays."""
        return self.code.make(self.numbers)

    def traceable(self, factors: Factors, call: Callable[[Any, Factors], Any]) -> bool:
        """Whether its code takes arrays for numbers: some asks them for decisions.

        `call` is given the transformation and factors, and uses them as a step of the run does.
        """
        leaves, treedef = jax.tree.flatten(factors)
        dtype = leaves[0].dtype
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        numbers = [jax.ShapeDtypeStruct(np.shape(number), dtype) for number in self.numbers]

        def traced(numbers, leaves):
            call(self.code.make(numbers), jax.tree.unflatten(treedef, leaves))
            return 0

        try:
            jax.eval_shape(traced, numbers, shapes)
        except (AttributeError, TypeError, ValueError):  # of which JAX's are kinds
            return False
        return True


def _parts(value: Any, numbers: list[Any], path: tuple[int, ...]) -> _Parts:
    if isinstance(value, float | np.floating) or _is_real_array(value):
        index = len(numbers)
        numbers.append(value)
        return ("number", np.shape(value)), lambda found: found[index]
    if id(value) in path:
        raise UnknownValue(value)  # a function that calls itself
    path = (*path, id(value))
    if isinstance(value, tuple):
        keys, makers = _all_parts(value, numbers, path)
        # The fields of a named tuple are its arguments, one by one.
        make = getattr(value, "_make", tuple)
        return (type(value), keys), lambda found: make(part(found) for part in makers)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        names = tuple(value)
        keys, makers = _all_parts(tuple(value.values()), numbers, path)
        return (dict, names, keys), lambda found: {
            name: part(found) for name, part in zip(names, makers, strict=True)
        }
    if isinstance(value, functools.partial):
        held = (value.func, value.args, value.keywords)
        keys, makers = _all_parts(held, numbers, path)

        def partial(found):
            function, arguments, keywords = (part(found) for part in makers)
            return functools.partial(function, *arguments, **keywords)

        return (functools.partial, keys), partial
    if isinstance(value, types.FunctionType):
        keys, makers = _all_parts(closed_over(value), numbers, path)
        key = value.__code__, keys, named_globals(value)
        return key, lambda found: _function(value, *(part(found) for part in makers))
    return fingerprint(value), lambda found: value


def _all_parts(
    values: tuple, numbers: list[Any], path: tuple[int, ...]
) -> tuple[tuple[Hashable, ...], list[Callable]]:
    parts = [_parts(value, numbers, path) for value in values]
    return tuple(key for key, _ in parts), [make for _, make in parts]


def _function(like: types.FunctionType, cells: tuple, defaults: tuple, keywords: tuple) -> Any:
    closure = tuple(types.CellType(value) for value in cells)
    made = types.FunctionType(like.__code__, like.__globals__, like.__name__, defaults, closure)
    made.__kwdefaults__ = dict(keywords)
    # Some libraries tell functions by what is attached to them.
    made.__dict__.update(like.__dict__)
    made.__module__, made.__qualname__ = like.__module__, like.__qualname__
    return made


def _is_real_array(value: Any) -> bool:
    return isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.numpy.floating)
