"""A batch as a file: bytes whose name is their checksum, looked through before they are loaded."""

import hashlib
import io
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import jax
import numpy as np

from factorflow._results import result_name
from factorflow._trajectory import Trajectory, variables
from factorflow.experiments.experiment import Experiment, numerics_revision
from factorflow.experiments.files import read_bytes

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "TEXTS",
    "UnsoundError",
    "batch_dataset",
    "check",
    "file_name",
    "index_rows",
    "is_file_name",
    "load_batch",
    "read_rows",
    "to_bytes",
]

# Raise it when a file's layout changes in a way that older versions would misread.
SCHEMA = 2
_DIGITS = 40
# Files of schema 1, which have no checksum, are named after what they hold.
_FILE_NAME = re.compile(rf"[0-9a-f]{{{_DIGITS}}}\.nc|[0-9a-f]{{20}}\.nc")
# Text for people; the index attribute holds the same.
TEXTS = ("experiment",)
_DIMENSION_ONLY = b"This is a netCDF dimension but not a netCDF variable"
# A list of dimensions has as many entries as an HDF5 array has axes.
_MOST_ENTRIES = 64


class UnsoundError(Exception):
    """A file that cannot be read or must not be; its text is the reason, after the file's name."""


def batch_dataset(
    experiments: Sequence[Experiment], batch: Trajectory, rows: Sequence[dict[str, Any]]
) -> "xr.Dataset":
    """A batch as a dataset over `run` that holds its own rows of the index."""
    import xarray as xr

    data, coords = variables(batch, ("run", "row"))
    for position, leaf in enumerate(jax.tree.leaves(batch.factors)):
        dims = tuple(f"factor_{position}_dim_{axis}" for axis in range(np.ndim(leaf) - 1))
        data[f"factor_{position}"] = (("run", *dims), np.asarray(leaf))
    data["experiment"] = ("run", [experiment.to_json() for experiment in experiments])
    return xr.Dataset(data, coords, {"schema": SCHEMA, "index": json.dumps(rows)})


def index_rows(
    experiments: Sequence[Experiment], batch: Trajectory, seconds: float
) -> list[dict[str, Any]]:
    """The rows of the index of one batch; its file is added when they are read."""
    now = time.time()
    lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(len(experiments))]
    return [
        {
            "key": experiment.key(),
            "run": position,
            "result": result_name(lane.result),
            "verdict": lane.certificate.verdict,
            "explanation": lane.certificate.explanation,
            "integrator": lane.integrator,
            "final_loss": float(lane.stats["loss"]),
            "final_time": float(lane.stats["time"]),
            "steps": int(lane.stats["num_steps"]),
            "numerics_revision": numerics_revision(),
            "written": now,
            "batch_seconds": seconds,
            "experiment": experiment.to_json(),
            **experiment.axes(),
        }
        for position, (experiment, lane) in enumerate(zip(experiments, lanes, strict=True))
    ]


def to_bytes(dataset: "xr.Dataset") -> bytes:
    """The netCDF file, made in memory: a full disk then meets plain bytes, not HDF5."""
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file))
    return buffer.getvalue()


def file_name(data: bytes) -> str:
    """Its checksum: no two batches share a name, and a byte that changed is noticed."""
    return hashlib.sha256(data).hexdigest()[:_DIGITS] + ".nc"


def is_file_name(name: str) -> bool:
    """Whether a store gives such names."""
    return _FILE_NAME.fullmatch(name) is not None


def check(path: Path) -> None:
    """`UnsoundError` where the bytes are not those that were written."""
    _bytes(path)


def load_batch(path: Path) -> "xr.Dataset":
    """The batch in memory, but for the texts; `UnsoundError` where it is damaged or overreaches."""
    import xarray as xr

    data = _bytes(path)
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            _look_through(path, file, len(data))
        source = io.BytesIO(data)
        with xr.open_dataset(source, engine="h5netcdf", drop_variables=TEXTS) as dataset:
            return dataset.load()
    except UnsoundError:
        raise
    except Exception as error:
        raise UnsoundError(f"is truncated or not netCDF: {_line(error)}") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the index that a batch holds about itself."""
    data = _bytes(path)
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            _look_through(path, file, len(data))
            runs = file.get("run")
            if "index" not in file.attrs or not isinstance(runs, h5py.Dataset):
                raise UnsoundError("is no batch: it has no attribute `index` or no dimension `run`")
            rows = json.loads(str(file.attrs["index"]))
            _check_rows(rows, runs.shape[0])
    except UnsoundError:
        raise
    except Exception as error:
        raise UnsoundError(f"is truncated or not netCDF: {_line(error)}") from error
    return rows


def _bytes(path: Path) -> bytes:
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or _line(error)
        raise UnsoundError(f"cannot be read: {reason}") from error
    if len(path.stem) == _DIGITS and file_name(data) != path.name:
        raise UnsoundError("is truncated or damaged: its checksum is not its name")
    return data


def _look_through(path: Path, file: h5py.File, size: int) -> None:
    """Refuse what reaches outside the file and what claims more than the file holds."""
    schema = file.attrs.get("schema", 1)
    if schema > SCHEMA:
        raise UnsoundError(f"is of schema {schema}, of a newer factorflow: update it to read this")
    if schema > 1 and len(path.stem) != _DIGITS:
        raise UnsoundError("was renamed: its checksum is not its name")
    _check_attributes(file, "/")
    total = 0
    for name in map(str, file):
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise UnsoundError(f"has a link, {name!r}, where its numbers should be")
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            raise UnsoundError(f"holds {name!r}, which is no array")
        _check_attributes(item, name)
        layout = item.id.get_create_plist()
        if layout.get_external_count() or item.is_virtual:
            raise UnsoundError(f"keeps {name!r} in another file")
        if item.attrs.get("NAME", b"").startswith(_DIMENSION_ONLY):
            continue  # a length, without numbers
        if layout.get_nfilters():
            raise UnsoundError(f"holds {name!r} compressed, which stores never do")
        if item.dtype.kind not in "biuf" and name not in TEXTS:
            raise UnsoundError(f"holds {name!r}, which are no numbers")
        claimed = math.prod(item.shape or ()) * item.id.get_type().get_size()
        total += claimed
        if claimed > item.id.get_storage_size() or total > size:
            raise UnsoundError(
                f"claims {claimed:,} bytes for {name!r}, more than its {size:,} bytes hold"
            )


def _check_attributes(item: Any, name: str) -> None:
    for attribute in item.attrs:
        kind = item.attrs.get_id(attribute)
        # Many entries of variable length can all stand for one long text.
        many = math.prod(kind.shape) > _MOST_ENTRIES
        if many and kind.get_type().get_class() in (h5py.h5t.VLEN, h5py.h5t.STRING):
            raise UnsoundError(f"has a list of texts, {attribute!r} of {name!r}")


def _check_rows(rows: Any, runs: int) -> None:
    kinds = {"key": str, "experiment": str, "run": int, "written": int | float}
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnsoundError("is no batch: its attribute `index` is no list of rows")
    for row in rows:
        for name, kind in kinds.items():
            if not isinstance(row.get(name, 0.0 if name == "written" else None), kind):
                raise UnsoundError(f"is no batch: a row of its index has no {name!r}")
        if not 0 <= row["run"] < runs:
            raise UnsoundError(f"has {runs} runs, but its index speaks of run {row['run']}")
        if not all(value is None or isinstance(value, str | int | float) for value in row.values()):
            raise UnsoundError("is no batch: its index holds more than names and numbers")


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
