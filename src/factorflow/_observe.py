"""When a run is observed, and when it stops."""

import abc
import math

import equinox as eqx
import numpy as np

from factorflow._numbers import refuse_traced

__all__ = ["AbstractObservation", "AtEnd", "AtLosses", "AtSteps", "AtTimes", "LogSpaced", "Stop"]

# A run without a limit of its own ends here: hours of descent, never an endless loop.
# Steps are counted in 32 bits.
_LARGEST_STEP = 2**31 - 1
# Each row holds a product; a figure shows a thousand.
_MOST_ROWS = 10**6
DEFAULT_MAX_STEPS = 50_000_000


class Stop(eqx.Module):
    """When a run ends. Reaching any of these is not an error.

    **Arguments:**

    - `loss`: end when the loss is at or below this.
    - `gradient_norm`: end when the norm of the gradient with respect to the factors (for
        `EndToEndFlow`, of the field) is at or below this.
    - `max_steps`: end after this many steps (accepted steps, for a flow); 5e7 if not given.
    - `max_time`: end at this time. Flows end at it exactly, descent at the first step past it.
    - `every`, `patience`: `loss` and `gradient_norm` are checked every `every` steps and must hold
        at `patience` checks in a row. Flows use 1 and 1 to end exactly at the level.
    """

    loss: float | None = None
    gradient_norm: float | None = None
    max_steps: int | None = None
    max_time: float | None = None
    every: int = eqx.field(static=True, default=1)
    patience: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        for name in ("loss", "gradient_norm", "max_time", "max_steps"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                raise ValueError(f"Stop({name}=) must be positive and finite, got {value}.")
        if isinstance(self.max_steps, float):
            raise ValueError(f"Stop(max_steps=) must be an integer, got {self.max_steps}.")
        if isinstance(self.max_steps, int) and self.max_steps > _LARGEST_STEP:
            raise ValueError(f"Stop(max_steps=) must be at most 2^31 - 1, got {self.max_steps}.")
        for name in ("every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"Stop({name}=) must be 1 or more, got {getattr(self, name)}.")


class AbstractObservation(eqx.Module):
    """A list of moments, one row each. `kind` is `"loss"`, `"time"` or `"step"`."""

    @abc.abstractmethod
    def resolve(self, stop: Stop) -> tuple[str, np.ndarray]:
        """The kind and the values of the slots."""


class AtLosses(AbstractObservation):
    """Rows at loss levels, strictly decreasing: where each is first reached.

    Descent records the first step at or below the level; a flow, the level itself.
    """

    levels: tuple[float, ...]

    def __init__(self, levels):
        self.levels = _plain(levels)
        if not _monotone([-level for level in self.levels]) or min(self.levels) <= 0:
            raise ValueError(f"AtLosses needs positive, strictly decreasing levels, got {levels}.")

    def resolve(self, stop: Stop) -> tuple[str, np.ndarray]:
        return "loss", np.asarray(self.levels)


class AtTimes(AbstractObservation):
    """Rows at times, strictly increasing from 0 on. Descent records the first step at or past."""

    times: tuple[float, ...]

    def __init__(self, times):
        self.times = _plain(times)
        if not _monotone(self.times) or min(self.times) < 0:
            raise ValueError(f"AtTimes needs strictly increasing times from 0 on, got {times}.")

    def resolve(self, stop: Stop) -> tuple[str, np.ndarray]:
        return "time", np.asarray(self.times)


class AtEnd(AbstractObservation):
    """One row, where the run ends; needs a limit in `Stop`."""

    def resolve(self, stop: Stop) -> tuple[str, np.ndarray]:
        limits = (stop.loss, stop.gradient_norm, stop.max_steps, stop.max_time)
        if all(limit is None for limit in limits):
            raise ValueError("AtEnd observes where a limit ends the run; name one in Stop.")
        return "end", np.full(1, np.nan)


class AtSteps(AbstractObservation):
    """Rows at step numbers, strictly increasing from 0 on (accepted steps, for a flow)."""

    steps: tuple[int, ...]

    def __init__(self, steps):
        refuse_traced(steps)
        array = np.asarray(steps).ravel()
        if array.size and np.max(array) > _LARGEST_STEP:
            raise ValueError(f"AtSteps counts to 2^31 - 1 at most, got {np.max(array)}.")
        whole = bool(np.all(array == np.floor(array)))
        if not array.size or not whole or not _monotone(array) or array[0] < 0:
            raise ValueError(
                f"AtSteps needs strictly increasing whole steps from 0 on, got {steps}."
            )
        self.steps = tuple(int(step) for step in array)

    @classmethod
    def every(cls, n: int, max_steps: int) -> "AtSteps":
        """Every `n` steps from 0 to `max_steps`."""
        if n < 1 or max_steps < 0:
            raise ValueError(
                f"AtSteps.every needs n >= 1 and max_steps >= 0, got {n}, {max_steps}."
            )
        return cls(range(0, max_steps + 1, n))

    def resolve(self, stop: Stop) -> tuple[str, np.ndarray]:
        return "step", np.asarray(self.steps)


class LogSpaced(AbstractObservation):
    """`count` rows, evenly spaced in the logarithm of steps or time.

    They run to `Stop(max_steps=)`, from step 1 on, or to `Stop(max_time=)`, from `first` of it on.
    """

    count: int
    first: float

    def __init__(self, count: int, first: float = 1e-6):
        self.count, self.first = int(count), float(first)
        if self.count > _MOST_ROWS:
            raise ValueError(f"LogSpaced makes {_MOST_ROWS} rows at most, got {count}.")
        if self.count < 2 or not 0 < self.first < 1:
            raise ValueError(
                f"LogSpaced needs count >= 2 and first in (0, 1), got {count} and {first}."
            )

    def resolve(self, stop: Stop) -> tuple[str, np.ndarray]:
        if stop.max_steps is not None:
            if stop.max_steps < self.count:
                raise ValueError(
                    f"LogSpaced({self.count}) needs Stop(max_steps=) of {self.count} or more, got "
                    f"{stop.max_steps}."
                )
            steps = np.round(np.geomspace(1, stop.max_steps, self.count)).astype(int)
            # Small steps round to the same integer: push each past the one before.
            for row in range(1, self.count):
                steps[row] = max(steps[row], steps[row - 1] + 1)
            return "step", np.minimum(steps, stop.max_steps - np.arange(self.count)[::-1])
        if stop.max_time is not None:
            return "time", stop.max_time * np.geomspace(self.first, 1, self.count)
        raise ValueError("LogSpaced needs Stop(max_steps=) or Stop(max_time=) to know its range.")


def _plain(values) -> tuple[float, ...]:
    refuse_traced(values)
    array = np.asarray(values, dtype=float).ravel()
    if array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError(f"Observations must be finite and at least one, got {values}.")
    return tuple(array.tolist())


def _monotone(values) -> bool:
    return bool(np.all(np.diff(np.asarray(values, dtype=float)) > 0))
