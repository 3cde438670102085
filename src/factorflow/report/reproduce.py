"""A paper from its experiments to its report, in one folder."""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from factorflow._names import named
from factorflow._trajectory import write_table
from factorflow.drawing import save_figure
from factorflow.experiments import Experiment, Store, run
from factorflow.experiments.store import long_columns
from factorflow.papers.base import Figure, Overlays, Paper, Verdict
from factorflow.papers.catalogue import SCALES
from factorflow.report.claims import write_claims
from factorflow.report.html import ReportFigure, report_template, write_report
from factorflow.report.versions import versions

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Reproduction", "reproduce"]

# Everything a report folder may hold; anything else is not ours to write beside.
_OURS = {"index.html", "figures", "data", "claims.json"}


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Where the report is, and what became of the claims."""

    report: Path
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(verdict.holds for verdict in self.verdicts)


def reproduce(
    paper: Paper,
    out: str | os.PathLike,
    *,
    scale: str = "paper",
    figures: Iterable[str] = (),
    overlays: Overlays | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Reproduction:
    """Run what is missing, draw the figures, check the claims, write the report.

    **Arguments:**

    - `paper`: from `load_paper`.
    - `out`: a new or empty folder, or one of an earlier reproduction, whose results are reused.
    - `scale`: `"quick"`, `"paper"` or `"beyond"`.
    - `figures`: names of figures; all by default.
    - `overlays`: curves of your own over the loss, `{"my bound": lambda loss: ...}`, functions
        of NumPy arrays, drawn on every panel over the loss beside the theorem's bounds.
    - `progress`: show a progress bar.
    - `say`: called with lines about what is going on, the first of which says how many runs there
        are to do and how long all of a paper takes. By default they go to stderr if `progress`.

    **Returns:** a `Reproduction`.

    **Raises:** before anything is computed, `ValueError` for unknown names, an overlay that is no
    function of losses, and a folder that cannot be written to or holds something else;
    `ImportError` where matplotlib or Jinja2 is not installed.
    """
    started = time.perf_counter()
    say = say or (_to_stderr if progress else lambda line: None)
    named("scale", scale, SCALES)
    chosen = [paper.figure(name) for name in dict.fromkeys(figures)] or list(paper.figures)
    report_template()
    _check_overlays(overlays or {})
    folder = _folder(out)
    store = Store(folder / "data")
    wanted = {figure.name: figure.experiments(scale) for figure in chosen}
    chosen = [figure for figure in chosen if wanted[figure.name]]
    if not chosen:
        raise ValueError(f"These figures have no runs at scale {scale!r}; choose another scale.")
    missing = _missing(wanted.values(), store)
    say(_announce(wanted, missing, scale, paper.durations))
    drawn: dict[str, ReportFigure] = {}
    checked: dict[str, list[Verdict]] = {}
    for figure, dataset in _computed(chosen, wanted, store, progress):
        say(f"drawing {figure.name} and checking {len(figure.claims)} claims")
        drawn[figure.name] = _draw(figure, dataset, folder / "figures", overlays or {})
        checked[figure.name] = [claim(dataset) for claim in figure.claims]
    verdicts = [verdict for figure in chosen for verdict in checked[figure.name]]
    write_claims(folder / "claims.json", verdicts)
    report = write_report(
        folder / "index.html",
        title=f"{paper.title}: reproduced",
        abstract=paper.abstract,
        figures=[drawn[figure.name] for figure in chosen],
        verdicts=verdicts,
        settings={"paper": paper.name, "scale": scale, **_settings(wanted)},
        versions=versions(),
        wall_time=time.perf_counter() - started,
        citation=paper.citation,
        notes=paper.notes,
    )
    return Reproduction(report, tuple(verdicts))


def _computed(
    figures: Sequence[Figure],
    wanted: Mapping[str, list[Experiment]],
    store: Store,
    progress: bool,
) -> "Iterator[tuple[Figure, xr.Dataset]]":
    """Figures with their results, each as soon as its runs are there, while others go on.

    All figures' runs are one sweep: runs of one structure share a compilation wherever they are
    drawn, and no core waits for the last run of a figure.
    """
    everything = [experiment for figure in figures for experiment in wanted[figure.name]]
    waiting = {f.name: (f, {e.key() for e in wanted[f.name]}) for f in figures}
    # One thread for the sweep, which writes the store; here it is read as another process would.
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        sweep = pool.submit(run, everything, store, progress=progress)
        while waiting:
            # A short wait keeps the main thread answering to Ctrl-C.
            over = bool(wait([sweep], timeout=0.2).done)
            if over:
                sweep.result()
            snapshot = store.snapshot()
            present = set(snapshot.index["key"])
            for name in [name for name, (_, keys) in waiting.items() if over or keys <= present]:
                figure, _ = waiting.pop(name)
                yield figure, figure.derive(snapshot.dataset(wanted[name]), wanted[name])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_overlays(overlays: Overlays) -> None:
    losses = np.geomspace(1e-3, 1e-1, 3)
    for name, curve in overlays.items():
        try:
            values = np.asarray(curve(losses), float)
        except Exception as error:
            raise ValueError(f"Overlay {name!r} fails on losses {losses}: {error}.") from error
        if values.shape != losses.shape:
            raise ValueError(
                f"Overlay {name!r} must give a number per loss: for {losses} it gave an array of "
                f"shape {values.shape}."
            )


def _folder(out: str | os.PathLike) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a report needs a folder. Choose another path.")
    if folder.is_dir():
        strangers = sorted({item.name for item in folder.iterdir()} - _OURS)
        strangers = [name for name in strangers if not name.endswith(".tmp")]
        if strangers:
            raise ValueError(
                f"{folder} exists and holds something else ({strangers[0]!r}); choose an empty or "
                "new folder, or that of an earlier reproduction."
            )
    for part, is_right, kind in (
        ("index.html", Path.is_file, "file"),
        ("claims.json", Path.is_file, "file"),
        ("figures", Path.is_dir, "folder"),
        ("data", Path.is_dir, "folder"),
    ):
        if (folder / part).exists() and not is_right(folder / part):
            raise ValueError(
                f"{folder / part} is no {kind}, and a report needs one there; move it."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "figures", folder / "data"):
            if place.exists():
                with tempfile.TemporaryFile(dir=place) as probe:
                    probe.write(b"something")
    except OSError as error:
        raise ValueError(
            f"Cannot write to {folder}: {error.strerror}. Choose a writable folder with free space."
        ) from error
    return folder


def _missing(groups: Iterable[list[Experiment]], store: Store) -> int:
    keys = {experiment.key() for group in groups for experiment in group}
    return len(keys - store.holds(keys))


def _announce(
    wanted: Mapping[str, list[Experiment]], missing: int, scale: str, durations: Mapping[str, str]
) -> str:
    total = len({e.key() for group in wanted.values() for e in group})
    if not missing:
        return f"all {total} runs are in the store; figures and claims are made anew"
    estimate = f"; all figures take {durations[scale]} on two cores" if scale in durations else ""
    return f"{missing} of {total} runs to do at scale {scale!r}{estimate}"


def _draw(figure: Figure, dataset: "xr.Dataset", folder: Path, overlays: Overlays) -> ReportFigure:
    saved = save_figure(figure.draw(dataset, overlays), folder, figure.name)
    table = write_table(long_columns(dataset), folder / f"{figure.name}.csv", "csv")
    return ReportFigure(
        figure.name, figure.title, figure.caption, saved.svg, saved.png, data_paths=(table,)
    )


def _settings(wanted: Mapping[str, list[Experiment]]) -> dict[str, str]:
    """Per figure, every axis and the values it takes."""
    settings = {}
    for name, experiments in wanted.items():
        values: dict[str, dict[str, None]] = {}
        for experiment in experiments:
            for axis, value in experiment.axes().items():
                values.setdefault(axis, {})[str(value)] = None
        settings[name] = f"{len(experiments)} runs; " + "; ".join(
            f"{axis}: {', '.join(list(seen)[:12])}{', ...' if len(seen) > 12 else ''}"
            for axis, seen in values.items()
        )
    return settings
