"""One structure: its runs drawn, followed by factorflow, followed exactly, judged."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from campaign.draw import Structure, draw_run
from campaign.judge import Judgement, judge
from campaign.truth import parting, truths
from factorflow._certify import follow_certified
from factorflow._spec import structure

__all__ = ["Batch", "run_structure"]

# Runs are followed this many at a time, by one compilation for each way to follow them, until the
# structure has had its seconds of processor time: large ones do not keep the campaign from others.
_PORTION, _MOST = 16, 320
# Fewer of those that take seconds each: more factor entries than this, by collocation.
_DEAR, _DEAR_PORTION = 32, 4
# Every so many runs the reference is itself checked, by another one.
_CHECKED = 12


class Batch:
    """What became of a portion of the runs of one structure."""

    def __init__(self, of: Structure):
        self.structure = of
        self.judgements: list[Judgement] = []
        self.refused: dict[str, str] = {}
        self.raised: dict[str, str] = {}
        self.reference_error = 0.0


def run_structure(
    seed: int, of: Structure, seconds: float, only: int | None = None
) -> Iterator[Batch]:
    """Portions of its runs, as many as it has seconds for, or one run."""
    began = time.process_time()
    first, size = 0, _portion_size(of)
    while first < _MOST and (first == 0 or time.process_time() - began < seconds):
        batch = Batch(of)
        _portion(seed, batch, range(first, first + size) if only is None else [only])
        yield batch
        first += size if only is None else _MOST


def _portion_size(of: Structure) -> int:
    """How many runs are followed at a time."""
    dear = of.numbers > _DEAR and of.dynamics in ("chosen", "radau")
    return _DEAR_PORTION if dear else _PORTION


def _portion(seed: int, batch: Batch, indices: Iterable[int]) -> None:
    of, groups = batch.structure, defaultdict(list)
    for index in indices:
        try:
            run = draw_run(seed, of, index)
        except ValueError as error:
            batch.refused[f"{of.number}.{index}"] = str(error)[:200]
            continue
        groups[structure(run.spec)].append(run)
    for runs in groups.values():
        _follow(batch, of, runs)


def _follow(batch: Batch, of: Structure, runs) -> None:
    try:
        stacked = follow_certified([run.spec for run in runs], _portion_size(of), of.certify)
    except Exception as error:
        for run in runs:
            batch.raised[run.name] = f"{type(error).__name__}: {str(error)[:200]}"
        return
    lanes = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), stacked) for i in range(len(runs))]
    kind = "loss" if of.observed == "loss" else "time"
    asked, wanted, latest = [], [], []
    for run, lane in zip(runs, lanes, strict=True):
        rows = np.flatnonzero(lane.reached)
        times = np.asarray(lane.times, float)[rows]
        if kind == "time":
            keep = np.concatenate([[True], np.diff(times) > 0]) if len(rows) else rows > 0
            rows, times = rows[keep], times[keep]
        asked.append(rows)
        if kind == "loss" and not run.spec.dynamics.continuous:
            # The first step at or below a level: on the flow's curve, if anywhere, at its own loss.
            losses = np.asarray(lane.measures["loss"], float)[rows]
            keep = np.concatenate([[True], np.diff(losses) < 0]) if len(rows) else rows > 0
            rows, times, losses = rows[keep], times[keep], losses[keep]
            asked[-1] = rows
            wanted.append(losses)
        else:
            wanted.append(np.asarray(lane.levels, float)[rows] if kind == "loss" else times)
        latest.append(1.05 * np.max(times, initial=0.0) + 1e-300)
    specs = [run.spec for run in runs]
    first = truths(specs, kind, wanted, latest)
    full = of.certify == "full"
    judged = [
        judge(run, lane, truth, None, kind, rows, full)
        for run, lane, truth, rows in zip(runs, lanes, first, asked, strict=True)
    ]
    again = [
        i for i, j in enumerate(judged) if j.false_trusts or (i % _CHECKED == 0 and len(asked[i]))
    ]
    if again:
        pick = [[values[i] for i in again] for values in (specs, wanted, latest)]
        second = truths(pick[0], kind, pick[1], [1.1 * t for t in pick[2]], second=True)
        for i, other in zip(again, second, strict=True):
            judged[i] = judge(runs[i], lanes[i], first[i], other, kind, asked[i], full)
    wrong = [i for i in again if judged[i].false_trusts]
    if wrong:
        parted = parting([specs[i] for i in wrong], [latest[i] for i in wrong])
        for i, time in zip(wrong, parted, strict=True):
            judged[i].forget_after(time)
    batch.judgements += judged
