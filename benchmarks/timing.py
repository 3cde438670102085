"""Best-of-n timing, and the table that `make bench` prints."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Row:
    """One measured figure; `target` is what the project holds itself to, as text."""

    name: str
    measured: str
    target: str = ""


def best_of(repetitions: int, function: Callable[[], object]) -> float:
    """Seconds of the fastest call: the machine's other work only ever adds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def table(rows: list[Row]) -> str:
    """Aligned text."""
    names = max(len(row.name) for row in rows)
    measured = max(len(row.measured) for row in rows)
    return "\n".join(
        f"{row.name:<{names}}  {row.measured:>{measured}}  {row.target}".rstrip() for row in rows
    )
