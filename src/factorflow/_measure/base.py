"""Measures and their registry."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from factorflow._functions import canonical
from factorflow._measure.snapshot import Snapshot
from factorflow._names import named
from factorflow._types import FloatArray

__all__ = [
    "MEASURES",
    "Error",
    "Family",
    "Measure",
    "Number",
    "as_measure",
    "as_measures",
    "measure",
]

# A measure's parameter: 1 stays an integer, so that its name reads `schatten_norm[1]`.
Number: TypeAlias = float | int
# What the error of a measure is relative to, where certificates compare two runs: each value
# itself, the largest entry of the product, the largest squared norm of a factor, 1, or the larger
# of 1 and a logarithm; counts and signs must be equal.
Error: TypeAlias = Literal["own", "product", "factors", "unit", "logarithm", "exact"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A named function of a `Snapshot`.

    **Attributes:**

    - `name`: e.g. `"nuclear_norm"` or `"schatten_norm[0.5]"`; it parses back.
    - `function`: `Snapshot -> array`.
    - `dims`: names of the array's dimensions, `()` for a number.
    - `summary`: one line with the formula.
    - `citation`: where it was introduced, or `None` for textbook quantities.
    - `error`: what its error is relative to where certificates compare it: `"own"`, each value
        itself; `"product"`, the largest entry of the product; `"factors"`, the largest squared
        (operator) norm of a factor; `"unit"`, 1; `"logarithm"`, the larger of 1 and the value;
        `"exact"`, counts and signs, which must be equal.
    """

    name: str
    function: Callable[[Snapshot], FloatArray]
    dims: tuple[str, ...] = ()
    summary: str = ""
    citation: str | None = None
    error: Error = "own"

    def __call__(self, snapshot: Snapshot) -> FloatArray:
        return jnp.asarray(self.function(snapshot))

    def __reduce__(self):
        # A measure by name is made anew from it; others are pickled if their function can be.
        family = MEASURES.get(self.name.partition("[")[0])
        if family is not None and as_measure(self.name) is self:
            return as_measure, (self.name,)
        return Measure, tuple(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Family:
    """A registered measure, with the parameters it takes: `schatten_norm` takes `p`."""

    name: str
    make: Callable[..., Measure]
    parameters: tuple[str, ...]
    summary: str
    citation: str | None
    example: tuple[Number, ...]

    @property
    def usage(self) -> str:
        """How the name is written: `schatten_norm[p]`, with optional parameters."""
        return f"{self.name}[{','.join(self.parameters)}]" if self.parameters else self.name


MEASURES: dict[str, Family] = {}


def measure(*, dims=(), citation: str | None = None, example=(), error: Error = "own"):
    """Register `function(snapshot, *parameters)` as a measure under its own name.

    The first line of its docstring is the summary that `factorflow list measures` prints.
    `example` gives parameters for the tests that run every measure; `error` says what an error of
    it is relative to, see `Measure`.
    """

    def register(function: Callable) -> Callable[..., Measure]:
        name = function.__name__
        parameters = tuple(inspect.signature(function).parameters)[1:]
        summary = inspect.cleandoc(function.__doc__ or "").partition("\n")[0]
        if not summary:
            raise ValueError(
                f"Measure {name!r} needs a docstring: its first line is its summary, the formula."
            )
        check = getattr(function, "check", None)
        signature = inspect.signature(function)

        @functools.cache
        def bound(*values) -> Measure:
            full = name + (f"[{','.join(_write(value) for value in values)}]" if values else "")
            return Measure(
                full,
                lambda snapshot: function(snapshot, *values),
                tuple(dims),
                summary,
                citation,
                error,
            )

        @functools.wraps(function)
        def make(*args, **kwargs) -> Measure:
            arguments = signature.bind(None, *args, **kwargs)
            values = tuple(_read(value) for value in arguments.args[1:])
            if check is not None:
                check(*values)
            return bound(*values)

        MEASURES[name] = Family(name, make, parameters, summary, citation, tuple(example))
        return make

    return register


def checks(check: Callable[..., None]):
    """Attach a check of a measure's parameters, run when the measure is named."""

    def attach(function: Callable) -> Callable:
        function.check = check  # pyright: ignore[reportFunctionMemberAccess]
        return function

    return attach


_NAME = re.compile(r"(?P<family>\w+)(\[(?P<parameters>[^\]]*)\])?")


def as_measure(value: str | Measure | Callable) -> Measure:
    """A measure from its name, from a `Measure`, or from any function of a `Snapshot`.

    A lambda made anew is the same measure, and compiles nothing, where its code, the values that it
    closes over and the globals that it names are the same, numbers or functions or JAX arrays. With
    lists or NumPy arrays among them, which can change, it is another: define a function once, at
    the top of a module, or register one with `measure`.
    """
    if isinstance(value, Measure):
        return value
    if isinstance(value, str):
        match = _NAME.fullmatch(value.replace(" ", ""))
        family = MEASURES[named("measure", match["family"] if match else value, MEASURES)]
        written = (match and match["parameters"]) or ""
        try:
            return family.make(*(_read(text) for text in written.split(",") if text))
        except TypeError:
            raise ValueError(
                f"Measure {value!r} does not fit its parameters; write {family.usage!r}."
            ) from None
    if value in _MAKERS():
        return as_measure(value.__name__)
    if callable(value):
        return Measure(getattr(value, "__name__", type(value).__name__), canonical(value))
    raise ValueError(f"A measure is a name, a Measure or a function of a Snapshot, got {value!r}.")


# Columns of results, beside those of their measures.
_TAKEN = (
    *("run", "row", "level", "time", "step", "experiment"),
    *("reached", "trusted", "doubt", "contradicted", "on_invariant_set"),
)
_TAKEN_BEGINNINGS = ("trusted[", "factor_")


def as_measures(values) -> tuple[Measure, ...]:
    """Measures by position; duplicates are refused, because results are stored by name."""
    if isinstance(values, str) or callable(values):
        values = [values]
    measures = tuple(as_measure(value) for value in values)
    names = [item.name for item in measures]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Measure {name!r} is requested twice.")
        if name in _TAKEN or name.startswith(_TAKEN_BEGINNINGS):
            raise ValueError(
                f"A measure cannot be called {name!r}, a column that results have anyway: rename "
                "the function."
            )
    return measures


def _MAKERS() -> tuple[Callable, ...]:
    return tuple(family.make for family in MEASURES.values())


def _read(value) -> Number:
    """A parameter as the plainest number: 1 for "1", 0.5 for "0.5"."""
    if isinstance(value, jax.Array):
        value = value.item()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"A measure's parameters are numbers, got {value!r}.") from None
    return int(number) if number.is_integer() else number


def _write(value: Number) -> str:
    return repr(value)
