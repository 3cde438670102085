"""A folder of results: netCDF files of one or more batches, an index with a row per experiment."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from factorflow._trajectory import Trajectory, write_table
from factorflow.experiments.batch import (
    TEXTS,
    UnsoundError,
    batch_dataset,
    check,
    file_name,
    index_rows,
    is_file_name,
    load_batch,
    read_rows,
    to_bytes,
)
from factorflow.experiments.experiment import Experiment, numerics_revision
from factorflow.experiments.files import publish, remove_dead
from factorflow.experiments.index import (
    BATCHES,
    INDEX,
    OTHER_INDEX,
    Known,
    refreshed,
    write_index,
)
from factorflow.experiments.stacking import long_columns, stack_runs

if TYPE_CHECKING:
    import polars as pl
    import xarray as xr

__all__ = ["Store", "long_columns"]

# What was just written is likely to be read next, and reading a file takes a tenth of a second.
_REMEMBERED_BYTES = 2**26
# What systems leave in folders by themselves; folders that hold nothing else count as empty.
_LITTER = (".DS_Store", "._", "Thumbs.db", "desktop.ini", ".localized", ".directory")
# More would hide the message's end.
_NAMED_AT_MOST = 12


class Store:
    """Results of experiments in a folder.

    **Arguments:**

    - `path`: the folder; it is created with the first results. A folder that holds anything else is
        refused.

    Several processes may write to one store, on network drives too: nothing is locked, nothing is
    ever changed. A batch is a file in `batches/` that is written under a temporary name nobody else
    uses, synced and renamed; its name is its checksum (SHA-256), so that a damaged one is noticed
    before its numbers are served. `index.parquet` has a row per experiment: its key, axes, result,
    verdict and file. It is a copy of what the batches say, with a checksum too, and is made anew
    where it is lost, damaged or behind. Of an experiment that two processes ran at once, the result
    written first counts.

    Files that are damaged, foreign or reach beyond themselves (links, external storage, arrays
    larger than their file) are left where they are, named in one warning, and not read; what they
    held is run again by `run`. Batches of earlier versions have no checksum and are read as they
    are. Results of another revision of the numerics stay in the store but apart: `dataset`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            if self.path.exists() and not self.path.is_dir():
                raise ValueError(
                    f"{self.path} is a file; a store is a folder. Choose another path."
                )
            # A store stays one whatever is put beside its results: what has none is refused.
            strangers = [] if self._has_batches() else self._strangers()
        except OSError as error:
            raise self._unreadable(error) from error
        for name in strangers:
            if not Path(name).name.startswith(_LITTER):
                raise ValueError(
                    f"{self.path} exists and holds something else ({name!r}); "
                    "choose an empty or new folder, or an existing store."
                )
        self._known: Known | None = None
        self._aside: dict[str, tuple[int, str]] = {}
        self._sound: set[str] = set()
        self._said: set[str] = set()
        self._remembered: dict[str, xr.Dataset] = {}

    def snapshot(self) -> "Store":
        """The store as it is on disk now, for another thread than the one that writes."""
        other = Store(self.path)
        other._known, other._aside = self._known, dict(self._aside)
        other._said, other._remembered = self._said, self._remembered
        return other

    @property
    def index(self) -> "pl.DataFrame":
        """A row per experiment, as the folder is now."""
        return self._refreshed().frame

    def __contains__(self, key: str) -> bool:
        return key in self.index["key"]

    def __len__(self) -> int:
        return self.index.height

    def holds(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys whose results are there, in files whose checksums are right."""
        import polars as pl

        wanted = list(dict.fromkeys(keys))
        while True:
            held = self.index.filter(pl.col("key").is_in(wanted))
            damaged = False
            for name in held["file"].unique().to_list():
                if name not in self._sound and name not in self._remembered:
                    damaged |= not self._is_sound(name)
            if not damaged:
                return set(held["key"].to_list())

    def tidy(self) -> None:
        """Remove temporary files of processes that were killed; bring `index.parquet` up to date.

        Temporary files of processes that may be alive are left. So is all else.
        """
        if not self.path.is_dir():
            return
        for folder in (self.path, self.path / BATCHES):
            remove_dead(folder)
        known = self._refreshed()
        if known.frame.height and not known.written:
            self._write_index(known)

    def add(self, experiments: Sequence[Experiment], batch: Trajectory, seconds: float) -> None:
        """Write the trajectories of one batch, but for runs that are there already."""
        present = set(self.index["key"].to_list())
        keys = [experiment.key() for experiment in experiments]
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        kept = sorted(position for key, position in first.items() if key not in present)
        if not kept:
            return
        if len(kept) < len(keys):
            batch = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], batch)
            experiments = [experiments[position] for position in kept]
        rows = index_rows(experiments, batch, seconds)
        dataset = batch_dataset(experiments, batch, rows)
        data = to_bytes(dataset)
        name = file_name(data)
        # Before the file appears: nobody then reads it to know what is in it.
        self._remember(name, dataset.drop_vars(TEXTS))
        try:
            publish(self.path / BATCHES / name, data)
        except OSError as error:
            self._remembered.pop(name, None)
            raise ValueError(
                f"Cannot write to the store {self.path}: {error.strerror or error}. Finished "
                "batches are kept; choose a writable folder with free space and run again."
            ) from error
        self._write_index(self._refreshed())

    def dataset(
        self, experiments: Experiment | Iterable[Experiment] | None = None, **axes: Any
    ) -> "xr.Dataset":
        """The results as one dataset with dimensions `run` and `row`.

        **Arguments:**

        - `experiments`: these, in this order, a run for each; by default all stored ones of today's
            numerics, in the order in which they were written.
        - `axes`: keep runs with this value, by dotted name (`__` for the dot) or column of the
            index, e.g. `factorization__depth=2` or `result="loss_reached"`.

        Axes become coordinates over `run`. Runs with fewer rows are padded with NaN.

        Results that an older or newer factorflow computed differently (`numerics_revision`) are
        left out, with a warning; `dataset(numerics_revision=3)` selects those of revision 3.

        **Raises:** `ValueError` for experiments that are not in the store and unknown axes.
        """
        experiments = [experiments] if isinstance(experiments, Experiment) else experiments
        keys = None if experiments is None else [experiment.key() for experiment in experiments]
        opened: dict[str, xr.Dataset] = {}
        while True:
            rows = self._select(keys, axes).to_dicts()
            names = dict.fromkeys(row["file"] for row in rows)
            for name in names.keys() - opened.keys():
                try:
                    opened[name] = self._open(name)
                except (FileNotFoundError, UnsoundError) as error:
                    self._set_aside(name, error)
            if names.keys() <= opened.keys():
                return stack_runs([(opened[row["file"]], row) for row in rows])
            # Else what is left is served, or the same from another batch.

    def to_csv(self, path: str | os.PathLike, **axes: Any) -> Path:
        """Write one line per run and row, axes first."""
        return write_table(long_columns(self.dataset(**axes)), path, "csv")

    def to_parquet(self, path: str | os.PathLike, **axes: Any) -> Path:
        """Write the table of `to_csv` as Parquet."""
        return write_table(long_columns(self.dataset(**axes)), path, "parquet")

    def _select(self, keys: list[str] | None, axes: dict[str, Any]) -> "pl.DataFrame":
        import polars as pl

        index = self.index
        if keys is not None:
            present = set(index["key"].to_list())
            missing = sum(key not in present for key in keys)
            if missing:
                raise ValueError(
                    f"{missing} of {len(keys)} experiments are not in the store {self.path}; "
                    f"run them first: `run(experiments, store)`.{self._names_aside()}"
                )
            order = pl.DataFrame({"key": keys}, schema={"key": pl.String})
            index = order.join(index, on="key", how="left", maintain_order="left")
        elif "numerics_revision" not in axes:
            index = self._of_today(index)
        for axis, value in axes.items():
            name = axis.replace("__", ".")
            if name not in index.columns:
                raise ValueError(f"No axis {name!r} in the store; axes: {sorted(index.columns)}.")
            try:
                index = index.filter(pl.col(name) == value)
            except pl.exceptions.PolarsError as error:
                kind = index[name].dtype
                raise ValueError(f"Axis {name!r} holds {kind}, got {value!r}.") from error
        if not index.height:
            raise ValueError(f"No such runs in the store {self.path}.")
        return index

    def _of_today(self, index: "pl.DataFrame") -> "pl.DataFrame":
        import polars as pl

        today = numerics_revision()
        kept = index.filter(pl.col("numerics_revision").eq_missing(today))
        left = index.height - kept.height
        if not left:
            return index
        others = sorted(set(index["numerics_revision"].drop_nulls().to_list()) - {today})
        select = (
            f", or select them with `dataset(numerics_revision={others[-1]})`" if others else ""
        )
        text = (
            f"{left} of {index.height} runs in the store {self.path} are of another revision of "
            f"the numerics ({', '.join(map(str, others)) or 'unknown'}; today's is {today}) and "
            f"are left out: run their experiments again{select}."
        )
        if not kept.height:
            raise ValueError(text)
        self._say("revision", text)
        return kept

    def _refreshed(self) -> Known:
        try:
            known = refreshed(self._known, self._aside, self.path, self._rows_of)
            strangers = self._strangers()
        except OSError as error:
            raise self._unreadable(error) from error
        self._known, self._aside = known, known.aside
        reasons = {name: "is no file of a store" for name in strangers}
        reasons |= {f"{BATCHES}/{name}": reason for name, (_, reason) in known.aside.items()}
        if known.index_problem:
            reasons[INDEX] = f"{known.index_problem}; the batches are read instead"
        self._warn_of({n: reason for n, reason in reasons.items() if n not in self._said})
        return known

    def _names_aside(self) -> str:
        return f" Set aside as damaged: {', '.join(sorted(self._aside))}." if self._aside else ""

    def _warn_of(self, reasons: dict[str, str]) -> None:
        if not reasons:
            return
        self._said.update(reasons)
        lines = [f"{name} {reason}" for name, reason in reasons.items()]
        more = len(lines) - _NAMED_AT_MOST
        lines = [*lines[:_NAMED_AT_MOST], *([f"and {more} more"] if more > 0 else [])]
        warnings.warn(
            f"Set aside in the store {self.path}: {'; '.join(lines)}. The rest is read; what a "
            "damaged batch held is run again by `run(experiments, store)`. Move or delete what is "
            "named here to be rid of this message.",
            stacklevel=4,
        )

    def _say(self, subject: str, text: str) -> None:
        if subject not in self._said:
            self._said.add(subject)
            warnings.warn(text, stacklevel=5)

    def _unreadable(self, error: OSError) -> ValueError:
        return ValueError(
            f"Cannot read the store {self.path}: {error.strerror or error}. Choose another path or "
            "its permissions."
        )

    def _has_batches(self) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return any(is_file_name(name) for name in os.listdir(self.path / BATCHES))
        return False

    def _strangers(self) -> list[str]:
        """What no store writes. Network drives keep deleted files that are open as `.nfs...`."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            ours = (INDEX, OTHER_INDEX, BATCHES)
            names += [name for name in os.listdir(self.path) if name not in ours]
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            inside = os.listdir(self.path / BATCHES)
            names += [f"{BATCHES}/{name}" for name in inside if not is_file_name(name)]
        return [
            n for n in sorted(names) if not (n.endswith(".tmp") or Path(n).name.startswith(".nfs"))
        ]

    def _rows_of(self, name: str) -> list[dict[str, Any]]:
        remembered = self._remembered.get(name)
        if remembered is not None:
            return json.loads(remembered.attrs["index"])
        return read_rows(self.path / BATCHES / name)

    def _write_index(self, known: Known) -> None:
        # Only a copy: where it cannot be written, the batches say the same.
        with contextlib.suppress(OSError):
            self._known = write_index(self.path, known)

    def _is_sound(self, name: str) -> bool:
        try:
            check(self.path / BATCHES / name)
        except (FileNotFoundError, UnsoundError) as error:
            self._set_aside(name, error)
            return False
        self._sound.add(name)
        return True

    def _set_aside(self, name: str, error: Exception) -> None:
        """Until the listing says that the file is another one, or gone."""
        reason = "cannot be read: not found" if isinstance(error, OSError) else str(error)
        size, _ = self._known.files.get(name, (-1, 0)) if self._known else (-1, 0)
        self._aside = {**self._aside, name: (size, reason)}

    def _open(self, name: str) -> "xr.Dataset":
        file = self.path / BATCHES / name
        # Nobody changes what it returns: another thread may be reading it.
        remembered = self._remembered.get(name)
        if remembered is not None and file.exists():
            return remembered
        return load_batch(file)

    def _remember(self, name: str, dataset: "xr.Dataset") -> None:
        self._remembered[name] = dataset
        room = _REMEMBERED_BYTES - sum(kept.nbytes for kept in list(self._remembered.values()))
        for old in list(self._remembered):  # the oldest first
            if room >= 0:
                break
            room += self._remembered.pop(old).nbytes
