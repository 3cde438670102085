"""What a store knows: a row per experiment. The batches are the truth, `index.parquet` a copy."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorflow.experiments.batch import UnsoundError, is_file_name
from factorflow.experiments.experiment import key_of, numerics_revision
from factorflow.experiments.files import publish, read_bytes, sizes

if TYPE_CHECKING:
    import polars as pl

__all__ = ["BATCHES", "INDEX", "OTHER_INDEX", "Known", "refreshed", "write_index"]

INDEX = "index.parquet"
# Where somebody else's file of that name goes: nothing is deleted.
OTHER_INDEX = "index.set-aside.parquet"
BATCHES = "batches"

_CHECKSUM = "factorflow.checksum"
_FILES = "factorflow.files"
_DIGEST = re.compile(rb"sha256:([0-9a-f]{64})")
_NO_DIGEST = b"sha256:" + b"0" * 64

# Columns that are made anew when a batch is read: it may have been copied or be older.
_PLACES = ("key", "file", "run", "written", "numerics_revision")


@dataclasses.dataclass(frozen=True)
class Known:
    """What was read of a store. Never changed: another thread may hold it.

    - `frame`: a row per experiment.
    - `files`: sound batches, with their size and the number of their rows. Of an experiment that
        several batches hold (two processes ran it at once) only the first written has a row.
    - `aside`: batches that are not read, with their size and the reason.
    - `index_problem`: why the copy was not used, empty where it was or where there is none.
    - `written`: whether the copy says the same.
    """

    frame: "pl.DataFrame"
    files: dict[str, tuple[int, int]]
    aside: dict[str, tuple[int, str]]
    index_problem: str = ""
    written: bool = False

    def without(self, gone: Iterable[str]) -> "Known | None":
        """Without these batches; None where another batch may hold their rows too."""
        import polars as pl

        gone = set(gone)
        if sum(rows for _, rows in self.files.values()) != self.frame.height:
            return None
        return dataclasses.replace(
            self,
            frame=self.frame.filter(~pl.col("file").is_in(list(gone))),
            files={name: facts for name, facts in self.files.items() if name not in gone},
            written=False,
        )


def refreshed(
    known: Known | None,
    aside: dict[str, tuple[int, str]],
    folder: Path,
    read_rows: Callable[[str], list[dict[str, Any]]],
) -> Known:
    """What the store holds now.

    The folder is listed each time and only unknown batches are read: those that another process
    added, all where the copy is lost, damaged or not ours.

    **Arguments:**

    - `known`: what was known before; None reads the copy.
    - `aside`: batches found damaged before.
    - `folder`: the store's.
    - `read_rows`: the rows that a batch holds; `UnsoundError` where it must not be read.
    """
    listed = {n: size for n, size in sizes(folder / BATCHES).items() if is_file_name(n)}
    aside = {name: facts for name, facts in aside.items() if listed.get(name) == facts[0]}
    problem = known.index_problem if known else ""
    if known is None:
        known, problem = _copy(folder / INDEX) if listed else (_nothing(), "")
    gone = [
        name for name, (size, _) in known.files.items() if listed.get(name) != size or name in aside
    ]
    if gone:
        # Else what another batch holds too, without a row so far, must be read again.
        known = known.without(gone) or _nothing()
    unknown = sorted(listed.keys() - known.files.keys() - aside.keys())
    if not unknown:
        return dataclasses.replace(known, aside=aside, index_problem=problem)
    files, frames = dict(known.files), [known.frame]
    for name in unknown:
        try:
            if listed[name] < 0:  # reading a pipe would never end
                raise UnsoundError("is no regular file")
            frame = _frame(name, read_rows(name))
        except UnsoundError as error:
            aside[name] = listed[name], str(error)
        except FileNotFoundError:
            continue  # deleted since it was listed
        else:
            files[name] = listed[name], frame.height
            frames.append(frame)
    return Known(_merged(frames), files, aside, problem)


def write_index(folder: Path, known: Known) -> Known:
    """Write the copy: a process that reads it need not read the batches.

    Two writers may replace each other's: what one lacks is then found in the folder's listing.
    """
    if known.index_problem and not (folder / OTHER_INDEX).exists():
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / INDEX, folder / OTHER_INDEX)
    buffer = io.BytesIO()
    files = json.dumps(known.files)
    metadata = {_CHECKSUM: _NO_DIGEST.decode(), _FILES: files}
    known.frame.write_parquet(buffer, metadata=metadata)
    data = buffer.getvalue()
    digest = b"sha256:" + hashlib.sha256(data).hexdigest().encode()
    publish(folder / INDEX, data.replace(_NO_DIGEST, digest))
    return dataclasses.replace(known, index_problem="", written=True)


def _copy(path: Path) -> tuple[Known, str]:
    """What `index.parquet` says, or nothing and why it is not believed."""
    import polars as pl

    try:
        if not path.exists():
            return _nothing(), ""
        if not path.is_file():
            return _nothing(), "is no file"
        data = read_bytes(path)
    except OSError as error:
        return _nothing(), f"cannot be read: {error.strerror}"
    digest = _DIGEST.search(data)
    if digest is None:
        return _nothing(), _foreign(data)
    # Before anything is parsed: Parquet readers crash on some damaged files, and serve others.
    if hashlib.sha256(data.replace(digest[0], _NO_DIGEST)).hexdigest().encode() != digest[1]:
        return _nothing(), "is damaged: its checksum is wrong"
    try:
        frame = pl.read_parquet(io.BytesIO(data))
        text = pl.read_parquet_metadata(io.BytesIO(data))[_FILES]
        files = {str(name): (int(s), int(rows)) for name, (s, rows) in json.loads(text).items()}
    except (pl.exceptions.PolarsError, KeyError, ValueError) as error:
        return _nothing(), f"cannot be read: {error}"
    if not set(_PLACES) <= set(frame.columns):
        return _nothing(), "lacks columns"
    return Known(frame, files, {}, written=True), ""


def _foreign(data: bytes) -> str:
    """Why an index without checksum is not used; no reason to speak of if it is merely older."""
    import polars as pl

    try:
        columns = pl.read_parquet_schema(io.BytesIO(data)).keys()
    except (Exception, pl.exceptions.PanicException):
        return "is truncated or not Parquet"
    return "" if {"key", "file"} <= set(columns) else "lacks the column 'key'"


def _frame(name: str, rows: list[dict[str, Any]]) -> "pl.DataFrame":
    """The rows of one batch, with the file they are in and the numerics they are of."""
    import polars as pl

    completed = [
        {"key": row["key"], "file": name, "run": row["run"]}
        | {"written": float(row.get("written", 0.0))}
        | {name: value for name, value in row.items() if name not in _PLACES}
        | {"numerics_revision": _revision(row)}
        for row in rows
    ]
    try:
        if not rows:
            return _nothing().frame
        frame = pl.DataFrame(completed, infer_schema_length=None)
        return frame.with_columns(pl.col("numerics_revision").cast(pl.Int64))
    except (pl.exceptions.PolarsError, TypeError, OverflowError, ValueError) as error:
        raise UnsoundError(f"is no batch: its index is no table ({error})") from error


def _merged(frames: "list[pl.DataFrame]") -> "pl.DataFrame":
    """One row per key, the one written first, in the order of writing: the same for everybody."""
    import polars as pl

    frames = [frame for frame in frames if frame.height] or frames[:1]
    if len(frames) == 1 and frames[0]["key"].is_unique().all():
        return frames[0]
    together = pl.concat(frames, how="diagonal_relaxed")
    together = together.sort("written", "file", "run", maintain_order=True)
    return together.unique("key", keep="first", maintain_order=True)


def _nothing() -> Known:
    import polars as pl

    kinds = {
        "key": pl.String,
        "file": pl.String,
        "run": pl.Int64,
        "written": pl.Float64,
        "numerics_revision": pl.Int64,
    }
    return Known(pl.DataFrame(schema=kinds), {}, {})


def _revision(row: dict[str, Any]) -> int | None:
    """The revision whose key the row has: rows of older versions do not name it."""
    with contextlib.suppress(ValueError):
        data = json.loads(row["experiment"])
        for revision in (row.get("numerics_revision"), *range(numerics_revision(), 0, -1)):
            if isinstance(revision, int) and row["key"] in _keys(data, revision):
                return revision
    return None


def _keys(data: Any, revision: int) -> tuple[str, str]:
    """Today's key, and that of versions for which 1 and 1.0 were two experiments."""
    plain = json.dumps([revision, data], sort_keys=True, separators=(",", ":"))
    return key_of(data, revision), hashlib.sha256(plain.encode()).hexdigest()[:20]
