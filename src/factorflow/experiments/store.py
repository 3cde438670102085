"""A folder of results: netCDF files of one or more batches, an index with a row per experiment."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from factorflow._results import result_name
from factorflow._trajectory import Trajectory, variables, write_table
from factorflow.experiments.experiment import Experiment
from factorflow.experiments.stacking import stack_runs

if TYPE_CHECKING:
    import polars as pl
    import xarray as xr

__all__ = ["Store"]

_INDEX = "index.parquet"
_BATCHES = "batches"
# What was just written is likely to be read next, and reading a file takes a tenth of a second.
_REMEMBERED_BYTES = 2**26


class Store:
    """Results of experiments in a folder.

    **Arguments:**

    - `path`: the folder; it is created with the first results. A folder that holds anything else is
        refused.

    `index.parquet` has a row per experiment: its key, axes, result, verdict and file. Files are
    written under a temporary name, synced and renamed, so that an interrupted write leaves the
    store as it was.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; a store is a folder. Choose another path.")
        if self.path.is_dir():
            strangers = {item.name for item in self.path.iterdir()} - {_INDEX, _BATCHES}
            strangers = {name for name in strangers if not name.endswith(".tmp")}
            if strangers:
                raise ValueError(
                    f"{self.path} exists and holds something else ({sorted(strangers)[0]!r}); "
                    "choose an empty or new folder, or an existing store."
                )
        self._index: pl.DataFrame | None = None
        self._remembered: dict[str, xr.Dataset] = {}

    def snapshot(self) -> "Store":
        """The store as it is on disk now, for another thread than the one that writes."""
        other = Store(self.path)
        other._remembered = self._remembered
        return other

    @property
    def index(self) -> "pl.DataFrame":
        """A row per experiment."""
        import polars as pl

        if self._index is None:
            present = {item.name for item in (self.path / _BATCHES).glob("*.nc")}
            if not present:
                return pl.DataFrame({"key": []}, schema={"key": pl.String})
            try:
                # A batch that was deleted is to be run again.
                index = pl.read_parquet(self.path / _INDEX)
                index = index.filter(pl.col("file").is_in(present))
            except (OSError, pl.exceptions.PolarsError):
                index = pl.DataFrame({"file": []}, schema={"file": pl.String})
            # Another process may have added batches, or the index is lost: batches hold their rows.
            for name in sorted(present - set(index["file"].to_list())):
                rows = json.loads(self._open(name).attrs["index"])
                fresh = pl.DataFrame(rows, infer_schema_length=None)
                index = pl.concat([index, fresh], how="diagonal_relaxed") if len(index) else fresh
            self._index = index
        return self._index

    def __contains__(self, key: str) -> bool:
        return key in self.index["key"]

    def __len__(self) -> int:
        return self.index.height

    def add(self, experiments: Sequence[Experiment], batch: Trajectory, seconds: float) -> None:
        """Write the trajectories of one batch, then its rows of the index."""
        import polars as pl

        keys = [experiment.key() for experiment in experiments]
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:20] + ".nc"
        lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(len(keys))]
        rows = [
            {
                "key": key,
                "file": name,
                "run": position,
                "result": result_name(lane.result),
                "verdict": lane.certificate.verdict,
                "explanation": lane.certificate.explanation,
                "integrator": lane.integrator,
                "final_loss": float(lane.stats["loss"]),
                "final_time": float(lane.stats["time"]),
                "steps": int(lane.stats["num_steps"]),
                "batch_seconds": seconds,
                "experiment": experiment.to_json(),
                **experiment.axes(),
            }
            for position, (key, experiment, lane) in enumerate(
                zip(keys, experiments, lanes, strict=True)
            )
        ]
        dataset = _batch_dataset(experiments, batch).assign_attrs(index=json.dumps(rows))
        # Before the file appears: nobody then reads it to know what is in it.
        self._remember(name, dataset)
        try:
            (self.path / _BATCHES).mkdir(parents=True, exist_ok=True)
            _atomically(self.path / _BATCHES / name, lambda file: _write_netcdf(dataset, file))
            self._index = None  # read what others wrote in the meantime
            fresh = pl.DataFrame(rows, infer_schema_length=None)
            old = self.index.filter(~pl.col("key").is_in(keys))
            index = pl.concat([old, fresh], how="diagonal_relaxed") if old.height else fresh
            _atomically(self.path / _INDEX, lambda file: index.write_parquet(file))
        except OSError as error:
            raise ValueError(
                f"Cannot write to the store {self.path}: {error}. Finished batches are kept; "
                "choose a writable folder with free space and run again."
            ) from error
        self._index = index

    def dataset(
        self, experiments: Experiment | Iterable[Experiment] | None = None, **axes: Any
    ) -> "xr.Dataset":
        """The results as one dataset with dimensions `run` and `row`.

        **Arguments:**

        - `experiments`: these, in this order; all stored ones by default.
        - `axes`: keep runs with this value, by dotted name (`__` for the dot) or column of the
            index, e.g. `factorization__depth=2` or `result="loss_reached"`.

        Axes become coordinates over `run`. Runs with fewer rows are padded with NaN.
        """
        import polars as pl

        index = self.index
        if isinstance(experiments, Experiment):
            experiments = [experiments]
        if experiments is not None:
            keys = [experiment.key() for experiment in experiments]
            missing = [key for key in keys if key not in self]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(keys)} experiments are not in the store {self.path}; "
                    "run them first: `run(experiments, store)`."
                )
            order = pl.DataFrame({"key": keys}, schema={"key": pl.String})
            index = order.join(index, on="key", how="left", maintain_order="left")
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
        rows = index.to_dicts()
        opened = {name: self._open(name) for name in dict.fromkeys(row["file"] for row in rows)}
        return stack_runs([(opened[row["file"]], row) for row in rows])

    def to_csv(self, path: str | os.PathLike, **axes: Any) -> Path:
        """Write one line per run and row, axes first."""
        return write_table(long_columns(self.dataset(**axes)), path, "csv")

    def to_parquet(self, path: str | os.PathLike, **axes: Any) -> Path:
        """Write the table of `to_csv` as Parquet."""
        return write_table(long_columns(self.dataset(**axes)), path, "parquet")

    def _open(self, name: str) -> "xr.Dataset":
        import xarray as xr

        file = self.path / _BATCHES / name
        # Nobody changes what it returns: another thread may be reading it.
        remembered = self._remembered.get(name)
        if remembered is not None and file.exists():
            return remembered
        try:
            with xr.open_dataset(file, engine="h5netcdf") as dataset:
                return dataset.load()
        except Exception as error:
            raise ValueError(
                f"{file} is truncated or not netCDF ({error}). Delete it and run again: only its "
                "experiments are recomputed."
            ) from error

    def _remember(self, name: str, dataset: "xr.Dataset") -> None:
        self._remembered[name] = dataset
        room = _REMEMBERED_BYTES - sum(kept.nbytes for kept in self._remembered.values())
        for old in list(self._remembered):  # the oldest first
            if room >= 0:
                break
            room += self._remembered.pop(old).nbytes


def long_columns(dataset: "xr.Dataset") -> dict[str, np.ndarray]:
    """One line per reached row of every run: the run's axes, then level, time, step, measures."""
    keep = np.asarray(dataset["reached"]).ravel()
    runs, rows = dataset.sizes["run"], dataset.sizes["row"]
    columns = {}
    for name, coordinate in dataset.coords.items():
        if coordinate.dims == ("run",):
            columns[str(name)] = np.repeat(np.asarray(coordinate), rows)[keep]
    for name, variable in {**dataset.coords, **dataset.data_vars}.items():
        if variable.dims[:2] != ("run", "row"):
            continue
        flat = np.asarray(variable).reshape(runs * rows, -1)[keep]
        if variable.ndim == 2:
            columns[str(name)] = flat[:, 0]
        else:
            columns |= {f"{name}.{i}": flat[:, i] for i in range(flat.shape[1])}
    return columns


def _batch_dataset(experiments: Sequence[Experiment], batch: Trajectory) -> "xr.Dataset":
    import xarray as xr

    data, coords = variables(batch, ("run", "row"))
    for position, leaf in enumerate(jax.tree.leaves(batch.factors)):
        dims = tuple(f"factor_{position}_dim_{axis}" for axis in range(np.ndim(leaf) - 1))
        data[f"factor_{position}"] = (("run", *dims), np.asarray(leaf))
    data["experiment"] = ("run", [experiment.to_json() for experiment in experiments])
    return xr.Dataset(data, coords)


def _write_netcdf(dataset: "xr.Dataset", file: Path) -> None:
    dataset.to_netcdf(file, engine="h5netcdf")


def _atomically(path: Path, write) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
