"""Running many experiments: grouped, batched, resumable."""

import ctypes
import itertools
import math
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from factorflow._certify import follow_certified
from factorflow._interrupt import cancellable, saving
from factorflow._settings import own_settings
from factorflow._spec import RunSpec, structure
from factorflow._trajectory import Trajectory
from factorflow.experiments.experiment import Experiment
from factorflow.experiments.store import Store

__all__ = ["run"]

_CHUNK = 64
# Descents compile within a second: few lanes are padded by three at most.
_WIDTHS = (*range(4, 33, 4), 64, 256)
# A lane of a flow costs what it costs alone: milliseconds for small products, far less than one
# more compilation, but minutes for larger ones.
_SMALL_FLOW_WIDTHS = (8, 32)
_FLOW_WIDTHS = (1, 2, 4, 8, 16, 32)
_SMALL_DIM = 3
# Numbers in all factors below which a flow takes longer to compile than to run.
_SMALL_FLOW = 64
# A lane of large factors costs what it costs alone too, and lanes that have ended still cost it.
_LARGE_WIDTHS = ((1024, (4, 8)), (8192, (2,)))

# Seconds between writings: a file takes a tenth of one.
_FILES_EVERY = 1.0
# Followed one by one; a few share a file, which takes longer to read than a run to draw.
_ALONE_WIDTHS = (1, 2, 4)


class _Chunk(NamedTuple):
    group: Hashable
    experiments: list[Experiment]
    specs: list[RunSpec]
    width: int
    certify: str


@own_settings()
def run(
    experiments: Experiment | Iterable[Experiment],
    store: Store | str | os.PathLike,
    *,
    executor: Executor | None = None,
    progress: bool = True,
    chunk: int = _CHUNK,
) -> Store:
    """Run what the store does not have yet.

    Experiments of equal structure are stacked, compiled once and followed together, each ending on
    its own; failed runs are stored with their result code, never dropped. A run that is interrupted
    loses at most the batches in flight (if its process is killed, also those that ended within the
    last second), and running again resumes. Several processes may write to one store at once: see
    `Store`.

    **Arguments:**

    - `experiments`: one or many.
    - `store`: a `Store` or the path of one.
    - `executor`: a `concurrent.futures` executor of threads; by default one per core.
    - `progress`: show a progress bar on stderr.
    - `chunk`: at most this many runs per batch. Results do not depend on it (but for the last digit
        of factors of some ten numbers in batches of sixteen and more).

    **Returns:** the store.

    **Raises:** `ValueError` for an experiment that cannot be built, before any result is stored,
    and for a `chunk` below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be 1 or more, got {chunk}.")
    if not isinstance(store, Store):
        store = Store(store)
    if isinstance(experiments, Experiment):
        experiments = [experiments]
    pending = {e.key(): e for e in experiments}
    store.tidy()
    held = store.holds(pending)
    pending = [e for key, e in pending.items() if key not in held]
    cores = max(1, os.cpu_count() or 1)
    pool = executor or ThreadPoolExecutor(max_workers=cores)
    bar = tqdm.tqdm(
        total=len(pending), unit="run", disable=not (progress and pending), file=sys.stderr
    )
    given_up = threading.Event()

    def submit(chunk: _Chunk) -> Future:
        return pool.submit(_timed, chunk, given_up)

    try:
        with bar:
            largest, others = _largest(pending)
            # Somebody else's executor may have more workers than this machine has cores.
            at_once = sys.maxsize if executor else cores
            _drain(
                _chunks(largest, chunk), lambda: _chunks(others, chunk), submit, at_once, store, bar
            )
    except BaseException:
        # Runs end at their next pause; a compilation cannot be stopped and is left behind.
        given_up.set()
        if executor is None:
            pool.shutdown(wait=False, cancel_futures=True)
        raise
    if executor is None:
        pool.shutdown()
    return store


def _built(experiment: Experiment) -> RunSpec:
    try:
        return experiment.build()
    except ValueError as error:
        raise ValueError(f"{error} In the experiment with axes {experiment.axes()}.") from error


def _largest(experiments: Sequence[Experiment]) -> tuple[list[Experiment], list[Experiment]]:
    """Those with the largest products, and the others, which never share a structure with them."""
    sizes = [math.prod(experiment.factorization.shape) for experiment in experiments]
    most = max(sizes, default=0)
    split: tuple[list[Experiment], list[Experiment]] = [], []
    for experiment, size in zip(experiments, sizes, strict=True):
        split[size < most].append(experiment)
    return split


def _chunks(experiments: Sequence[Experiment], size: int) -> list[_Chunk]:
    groups: dict[Hashable, _Chunk] = {}
    for experiment in experiments:
        spec = _built(experiment)
        name = experiment.certify, structure(spec)
        group = groups.setdefault(name, _Chunk(name, [], [], 0, experiment.certify))
        group.experiments.append(experiment)
        group.specs.append(spec)
    chunks = []
    for name, group in groups.items():
        # Chunks of equal width, so that a structure compiles once: padded ones repeat a run.
        width = _width(len(group.specs), size, _widths(group.specs[0]))
        for start in range(0, len(group.specs), width):
            part = slice(start, start + width)
            chunks.append(
                _Chunk(name, group.experiments[part], group.specs[part], width, group.certify)
            )
    return chunks


def _widths(spec: RunSpec) -> tuple[int, ...]:
    if spec.dynamics.alone:
        return _ALONE_WIDTHS
    if not spec.dynamics.continuous:
        large = [widths for least, widths in _LARGE_WIDTHS if _numbers(spec) >= least]
        return large[-1] if large else _WIDTHS
    return _SMALL_FLOW_WIDTHS if max(spec.problem.shape) <= _SMALL_DIM else _FLOW_WIDTHS


def _numbers(spec: RunSpec) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(spec.factors))


def _width(runs: int, size: int, widths: tuple[int, ...]) -> int:
    """The narrowest of a few widths that holds the runs, at most `size`.

    Few widths, so that sweeps of one structure but different lengths share compilations too.
    """
    width = widths[0]
    for wider in widths:
        if width < runs and wider <= size:
            width = wider
    return min(width, size)


def _drain(
    chunks: list[_Chunk],
    more: Callable[[], list[_Chunk]],
    submit: Callable[[_Chunk], Future],
    at_once: int,
    store: Store,
    bar: "tqdm.tqdm",
) -> None:
    """Follow and store these chunks, and `more`, which are made while the first ones compile.

    Nothing is stored, then, unless all of them could be made.
    """
    # A structure's first chunk compiles for all of them: the others wait for it, and come next.
    waiting: dict[Hashable, list[_Chunk]] = {}
    ready: deque[_Chunk] = deque()
    running: dict[Future, _Chunk] = {}

    def line_up(chunks: list[_Chunk]):
        groups: dict[Hashable, list[_Chunk]] = {}
        for chunk in chunks:
            groups.setdefault(chunk.group, []).append(chunk)
        runs = Counter(chunk.group for chunk in chunks for _ in chunk.specs)
        ready.extend(_longest_first([group.pop(0) for group in groups.values()], runs))
        waiting.update(groups)

    def begin():
        while ready and len(running) < at_once:
            chunk = ready.popleft()
            running[submit(chunk)] = chunk

    line_up(chunks)
    begin()
    try:
        line_up(more())
    except BaseException:
        for future in running:
            future.cancel()
        raise
    finished: list[tuple[_Chunk, Future]] = []
    written = time.monotonic()
    try:
        begin()
        while running:
            # A short wait keeps the main thread answering to Ctrl-C while compiled code runs.
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                chunk = running.pop(future)
                finished.append((chunk, future))
                ready.extendleft(reversed(waiting.pop(chunk.group, [])))
            for future in done:
                future.result()
            # No core waits for a file, and what ends within a second shares one.
            begin()
            if time.monotonic() - written > _FILES_EVERY:
                _write(finished, store, bar)
                written = time.monotonic()
    finally:
        with saving():
            _write(finished, store, bar)


def _write(finished: "list[tuple[_Chunk, Future]]", store: Store, bar: "tqdm.tqdm") -> None:
    """Store, and take from the list, what has ended: a file per structure."""
    batches: dict[Hashable, list[tuple[_Chunk, Future]]] = {}
    for chunk, future in finished:
        if not future.cancelled() and future.exception() is None:
            batches.setdefault(chunk.group, []).append((chunk, future))
    for group, batch in batches.items():
        experiments = [experiment for chunk, _ in batch for experiment in chunk.experiments]
        trajectories, seconds = zip(*(future.result() for _, future in batch), strict=True)
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *trajectories)
        store.add(experiments, together, sum(seconds))
        # Only now: an interruption meanwhile leaves it to the last writing.
        finished[:] = [item for item in finished if item[0].group != group]
        bar.update(len(experiments))
        _return_memory()
    finished.clear()


def _longest_first(chunks: list[_Chunk], runs: Counter[Hashable]) -> list[_Chunk]:
    """What may take long begins first, so that no core waits for it at the end.

    Flows take long to compile and descents to run, on one core: one of each in turn. Of either,
    those with more numbers take longer; small flows take the same time to compile, and those that
    most runs, and the figures of these, wait for come first.
    """

    def length(chunk: _Chunk):
        numbers = _numbers(chunk.specs[0])
        small = chunk.specs[0].dynamics.continuous and numbers < _SMALL_FLOW
        return (0, runs[chunk.group]) if small else (numbers, 0)

    flows = [chunk for chunk in chunks if chunk.specs[0].dynamics.continuous]
    descents = [chunk for chunk in chunks if not chunk.specs[0].dynamics.continuous]
    for kind in flows, descents:
        kind.sort(key=length, reverse=True)
    pairs = itertools.zip_longest(flows, descents)
    return [chunk for pair in pairs for chunk in pair if chunk is not None]


def _timed(chunk: _Chunk, given_up: threading.Event) -> tuple[Trajectory, float]:
    start = time.perf_counter()
    with cancellable(given_up):
        trajectories = follow_certified(chunk.specs, chunk.width, chunk.certify)
    return trajectories, time.perf_counter() - start


def _return_memory() -> None:
    """Give memory freed by the compiler back to the system, where the C library can.

    Compilation frees hundreds of megabytes that glibc would keep: a sixth of a long sweep's peak.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
