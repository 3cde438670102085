"""A run described by names and numbers."""

import dataclasses
import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._certify import CERTIFY
from factorflow._dynamics import AbstractDynamics
from factorflow._factorization import AbstractFactorization
from factorflow._initializer import AbstractInitializer
from factorflow._measure import as_measures
from factorflow._names import named
from factorflow._observe import AbstractObservation, Stop
from factorflow._problem import AbstractProblem
from factorflow._spec import RunSpec, prepare
from factorflow._types import RandomKey
from factorflow.experiments.codec import build, canonical, decode, encode, flatten, parse_json
from factorflow.experiments.task import AbstractTask

__all__ = ["NUMERICS_REVISION", "Experiment", "sweep"]

# Part of every key. Raise it when a change of the numerics changes results, so that a store does
# not serve the old ones.
NUMERICS_REVISION = 8

# More than could be run, and few enough to be listed within minutes.
_MOST_EXPERIMENTS = 10**6


class Experiment(eqx.Module):
    """A run described by names and numbers only, so that it can be stored, hashed and repeated.

    **Arguments:**

    - `task`: a recipe for a problem, e.g. `RazinCohenTask()`.
    - `factorization`, `initializer`, `dynamics`, `observe`, `stop`: as for `simulate`, with
        optimizers, integrators and measures by name.
    - `measures`: names.
    - `seed`: an integer. Task, initialization and dynamics each fold their own name into it: a
        change of depth does not change the data.
    - `dtype`: `"float64"` or `"float32"`.
    - `certify`: `"cheap"` or `"full"`, as for `simulate`.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.experiments import Experiment, RazinCohenTask, sweep
        >>> base = Experiment(
        ...     task=RazinCohenTask(), factorization=ff.DeepMatrix((2, 2), depth=2),
        ...     initializer=ff.Balanced(product_scale=1e-3, determinant="positive"),
        ...     dynamics=ff.GradientDescent(3e-3), observe=ff.AtLosses([1e-1, 1e-2]),
        ...     stop=ff.Stop(loss=1e-2), measures=["entry[0,0]"])
        >>> Experiment.from_json(base.to_json()) == base
        True
        >>> len(sweep(base, **{"factorization.depth": [2, 3], "seed": range(3)}))
        6

        ```
    """

    task: AbstractTask
    factorization: AbstractFactorization
    initializer: AbstractInitializer
    dynamics: AbstractDynamics
    observe: AbstractObservation
    stop: Stop
    measures: tuple[str, ...] = eqx.field(static=True)
    seed: int = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    certify: str = eqx.field(static=True)

    def __init__(
        self,
        task,
        factorization,
        initializer,
        dynamics,
        observe,
        stop,
        measures=("loss",),
        seed: int = 0,
        dtype: str = "float64",
        certify: str = "cheap",
    ):
        for name, value, kind in (
            ("task", task, AbstractTask),
            ("factorization", factorization, AbstractFactorization),
            ("initializer", initializer, AbstractInitializer),
            ("dynamics", dynamics, AbstractDynamics),
            ("observe", observe, AbstractObservation),
            ("stop", stop, Stop),
        ):
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}.")
        self.task, self.factorization, self.initializer = task, factorization, initializer
        self.dynamics, self.observe, self.stop = dynamics, observe, stop
        # Named once and for all: "entry[0, 0]" and "entry[0,0]" are the same measure.
        self.measures = tuple(measure.name for measure in as_measures(measures))
        for measure in self.measures:
            as_measures([measure])
        self.seed = int(seed)
        self.dtype = named("dtype", dtype, ("float64", "float32"))
        self.certify = named("certify", certify, CERTIFY)
        encode_experiment(self)  # refuses what cannot be stored

    def to_json(self) -> str:
        """Readable JSON."""
        return json.dumps(encode_experiment(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """The inverse of `to_json`; missing optional fields take their defaults.

        **Raises:** `ValueError` for what is no experiment, and where a name is given twice.
        """
        try:
            data = parse_json(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Not an experiment: invalid JSON, {error}.") from None
        if not isinstance(data, dict):
            raise ValueError(
                f"Not an experiment: expected a JSON object, got {type(data).__name__}."
            )
        return decode_experiment(data)

    def key(self) -> str:
        """Identity of its results: a hash of its canonical JSON and of the numerics' revision."""
        return key_of(encode_experiment(self), NUMERICS_REVISION)

    def axes(self) -> dict[str, Any]:
        """Its scalars by dotted name: `{"factorization.depth": 2, "seed": 0, ...}`."""
        return flatten(encode_experiment(self))

    def replace(self, **changes: Any) -> "Experiment":
        """A copy with fields changed by dotted name; `__` stands for the dot in keywords."""
        data = encode_experiment(self)
        for name, value in changes.items():
            _assign(data, name.replace("__", "."), encode(value))
        return decode_experiment(data)

    def problem(self) -> AbstractProblem:
        """The problem it is about, in double precision, for what is computed beside the run."""
        with jax.enable_x64(True):
            return self.task.build(_fold(jax.random.key(self.seed), "task"))

    def build(self) -> RunSpec:
        """The run it describes, validated, with all its numbers as arrays."""
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                "dtype='float64' needs double precision: call "
                "`jax.config.update('jax_enable_x64', True)` first, or use dtype='float32'."
            )
        # Drawn in double precision, then rounded: a seed means the same numbers in both, whatever
        # the session's configuration.
        problem = self.problem()
        with jax.enable_x64(True):
            root = jax.random.key(self.seed)
            factors = self.initializer(self.factorization, _fold(root, "init"))
            factors = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(self.dtype)), factors)
            return prepare(
                problem,
                self.factorization,
                self.dynamics,
                factors,
                observe=self.observe,
                stop=self.stop,
                measures=self.measures,
                key=_fold(root, "dynamics"),
            )


def sweep(base: Experiment, **axes: Iterable[Any]) -> list[Experiment]:
    """Every combination of the axes, the last varying fastest.

    **Arguments:**

    - `base`: the experiment to vary.
    - `axes`: values by dotted field name, given as `**{"factorization.depth": [2, 3]}` or
        `factorization__depth=[2, 3]`; whole parts can vary too, `initializer=[...]`.
    """
    names, values = list(axes), [list(axis) for axis in axes.values()]
    for name, axis in zip(names, values, strict=True):
        if not axis:
            raise ValueError(f"Axis {name!r} is empty; give one value or more.")
    count = math.prod(len(axis) for axis in values)
    if count > _MOST_EXPERIMENTS:
        raise ValueError(
            f"The axes combine to {count} experiments, and {_MOST_EXPERIMENTS} are the most that a "
            "sweep makes; split it."
        )
    return [
        base.replace(**dict(zip(names, combination, strict=True)))
        for combination in itertools.product(*values)
    ]


def encode_experiment(experiment: Experiment) -> dict[str, Any]:
    """An experiment as plain JSON data."""
    return {
        field.name: encode(getattr(experiment, field.name))
        for field in dataclasses.fields(experiment)
    }


def decode_experiment(data: dict[str, Any]) -> Experiment:
    """The inverse of `encode_experiment`."""
    known = [field.name for field in dataclasses.fields(Experiment)]
    for name in data:
        named("field of an experiment", name, known)
    missing = [name for name in known[:6] if name not in data]
    if missing:
        raise ValueError(f"An experiment needs {', '.join(missing)}; known fields: {known}.")
    return build(Experiment, {name: decode(item) for name, item in data.items()})


def key_of(data: dict[str, Any], revision: int) -> str:
    """The key of an experiment, given as plain JSON data, at a revision of the numerics."""
    return hashlib.sha256(canonical([revision, data]).encode()).hexdigest()[:20]


def numerics_revision() -> int:
    """The revision of the numerics that results of today are of."""
    return NUMERICS_REVISION


def _fold(root: RandomKey, axis: str) -> RandomKey:
    return jax.random.fold_in(root, zlib.crc32(axis.encode()))


def _assign(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = data
    for depth, name in enumerate(parents):
        inner = place.get(name)
        if not isinstance(inner, dict):
            raise ValueError(
                f"No field {path!r}: {'.'.join(parents[: depth + 1])!r} is {inner!r} here."
            )
        place = inner
    if last not in place:
        named(f"field {path!r}: its last part", last, [name for name in place if name != "kind"])
    place[last] = value
