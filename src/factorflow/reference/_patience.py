"""How long a search may take, and whom it tells how far it is."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from types import TracebackType

__all__ = ["COMPLETE", "INTERRUPTED", "OUT_OF_TIME", "OutOfTime", "Patience"]

COMPLETE, OUT_OF_TIME, INTERRUPTED = "complete", "out_of_time", "interrupted"

# Operations of linear algebra a second, on one core of a slow machine: what cannot be stopped once
# begun is begun only if it then ends in time, or so many seconds late.
_SPEED = 4e9
_LATE = 0.5


class OutOfTime(Exception):
    """Raised by `Patience.spend`, and caught by `with patience:`."""


class Patience:
    """A limit of time, and a listener.

    As a context manager it ends its block where the time runs out or the user interrupts, and
    remembers which: what the block has found until then stays.
    """

    def __init__(
        self, seconds: float | int | None = None, listener: Callable[[str], None] | None = None
    ):
        self._begun = time.monotonic()
        self._end = math.inf if seconds is None else self._begun + seconds
        self._listener = listener
        self._interrupted = self._short = False

    @property
    def ended(self) -> str:
        """`"interrupted"`, `"out_of_time"` if something was not done, or `"complete"`."""
        if self._interrupted:
            return INTERRUPTED
        return OUT_OF_TIME if self._short else COMPLETE

    def lasts(self, operations: float | int = 0) -> bool:
        """Whether so many operations can still be done."""
        left = self._end - time.monotonic()
        enough = left > 0 and operations <= (left + _LATE) * _SPEED
        self._short = self._short or not enough
        return enough and not self._interrupted

    def spend(self, operations: float | int = 0) -> None:
        """Raise `OutOfTime` unless so many operations can still be done."""
        if not self.lasts(operations):
            raise OutOfTime

    @contextlib.contextmanager
    def part(self, share: float) -> Iterator["Patience"]:
        """A patience that lasts for this share of the time left; short of time are then both."""
        part = Patience(share * max(0.0, self._end - time.monotonic()))
        yield part
        self._short = self._short or part._short

    def say(self, line: str) -> None:
        """Tell the listener, with the seconds that have passed."""
        if self._listener is not None:
            self._listener(f"{time.monotonic() - self._begun:6.1f} s  {line}")

    def __enter__(self) -> "Patience":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        del error, trace
        if kind is None or not issubclass(kind, OutOfTime | KeyboardInterrupt):
            return False
        self._interrupted = self._interrupted or issubclass(kind, KeyboardInterrupt)
        return True
