"""What a run leaves behind."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from factorflow._certificate import Certificate
from factorflow._files import write_files
from factorflow._results import RESULTS, result_name
from factorflow._types import BoolArray, Factors, FloatArray

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Trajectory"]

# Rows at either end that `repr` shows.
_SHOWN = 5


class Trajectory(eqx.Module):
    """The observed rows of a run, and how it ended.

    **Attributes:**

    - `times`, `steps`: time and step number of each row.
    - `levels`: the requested loss, time or step of each row, after `observed_at`.
    - `measures`: an array per measure, rows first, by the measure's name.
    - `reached`: whether each row was reached. Rows that were not are NaN, their step is -1.
    - `factors`: the factors at the end, ready for `factorization.compose`.
    - `result`: a `RESULTS` code; `result_name` is its name.
    - `certificate`: whether the rows can be believed.
    - `stats`: the `integrator` that was chosen, final `loss` and `time`, and counters.
    """

    times: FloatArray
    steps: jax.Array
    levels: jax.Array
    measures: dict[str, FloatArray]
    reached: BoolArray
    factors: Factors
    result: RESULTS
    certificate: Certificate
    counters: dict[str, Any]
    integrator: str = eqx.field(static=True)
    observed_at: str = eqx.field(static=True)
    dims: dict[str, tuple[str, ...]] = eqx.field(static=True)

    @property
    def stats(self) -> dict[str, Any]:
        """What followed the run, where it ended and what it cost."""
        return {"integrator": self.integrator, **self.counters}

    @property
    def result_name(self) -> str:
        """The name of the result, e.g. `"loss_reached"`."""
        return result_name(self.result)

    def __repr__(self) -> str:
        """A short table: rows with their level, time and loss, and what may be believed."""
        if np.ndim(self.reached) != 1:
            return f"Trajectory(batch of shape {np.shape(self.reached)[:-1]})"
        count = len(self.reached)
        # The first and the last rows say most.
        shown = [*range(min(count, _SHOWN)), *range(max(count - _SHOWN, _SHOWN), count)]
        numbers = {self.observed_at: self.levels, "time": self.times, "step": self.steps}
        numbers |= {name: v for name, v in self.measures.items() if np.ndim(v) == 1}
        numbers |= {"trusted": self.certificate.trusted}
        columns = [
            [name, *(_written(np.asarray(values)[row], self.reached[row]) for row in shown)]
            for name, values in numbers.items()
        ]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            for cells in zip(*columns, strict=True)
        ]
        if count > 2 * _SHOWN:
            lines.insert(1 + _SHOWN, f"({count - 2 * _SHOWN} more rows)".rjust(len(lines[0])))
        ended = f"{self.result_name}, {self.certificate.verdict}, by {self.integrator}"
        return "\n".join([f"Trajectory of {count} rows: {ended}", *lines])

    def to_xarray(self) -> "xr.Dataset":
        """A labelled dataset with dimension `row`: measures, `time`, `step`, `reached`, flags."""
        import xarray as xr

        attributes = {
            "result": self.result_name,
            "verdict": self.certificate.verdict,
            "explanation": self.certificate.explanation,
            "integrator": self.integrator,
            "observed_at": self.observed_at,
        }
        return xr.Dataset(*variables(self, ("row",)), attributes)

    def to_csv(self, path: str | os.PathLike) -> Path:
        """Write one line per row; measures with several values get a column each, `name.0`, ..."""
        return write_table(self._columns(), path, "csv")

    def to_parquet(self, path: str | os.PathLike) -> Path:
        """Write the table of `to_csv` as Parquet."""
        return write_table(self._columns(), path, "parquet")

    def _columns(self) -> dict[str, np.ndarray]:
        return table_columns(self.to_xarray())


def _written(value: Any, reached: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value) if reached else "-"
    return f"{value:.6g}"


def variables(
    trajectory: Trajectory, rows: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and coordinates of one run, or of a batch with the dimensions `("run", "row")`."""
    certificate = trajectory.certificate
    data: dict[str, Any] = {
        name: ((*rows, *_dims(trajectory.dims[name], np.shape(values)[len(rows) :])), values)
        for name, values in trajectory.measures.items()
    }
    data["reached"] = (rows, trajectory.reached)
    data["trusted"] = (rows, certificate.trusted)
    data["doubt"] = (rows, certificate.doubt_codes)
    data["contradicted"] = (rows, certificate.contradicted)
    data["on_invariant_set"] = (rows, certificate.on_invariant_set)
    for name, flags in certificate.trusted_measures.items():
        data[f"trusted[{name}]"] = (rows, flags)
    coords = {
        "time": (rows, trajectory.times),
        "step": (rows, trajectory.steps),
        "level": (rows, trajectory.levels),
    }
    parts = data, coords
    data, coords = ({k: (dims, np.asarray(v)) for k, (dims, v) in part.items()} for part in parts)
    return data, coords


def table_columns(dataset: "xr.Dataset") -> dict[str, np.ndarray]:
    """The columns of a dataset over rows: trailing dimensions become numbered columns."""
    columns = {}
    for name in ("level", "time", "step", *dataset.data_vars):
        values = np.asarray(dataset[name])
        flat = values.reshape(values.shape[0], -1)
        if values.ndim == 1:
            columns[str(name)] = values
        else:
            columns |= {f"{name}.{i}": flat[:, i] for i in range(flat.shape[1])}
    return columns


def write_table(columns: dict[str, np.ndarray], path: str | os.PathLike, kind: str) -> Path:
    """Write columns as CSV or Parquet, whole or not at all."""
    import polars as pl

    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"Cannot write {path}: the folder {path.parent} does not exist; create it."
        )
    # Made in memory: a library that meets a full disk halfway says so in its own way, if at all.
    frame, content = pl.DataFrame(columns), io.BytesIO()
    frame.write_csv(content) if kind == "csv" else frame.write_parquet(content)
    try:
        write_files({path: content.getvalue()})
    except OSError as error:
        raise ValueError(f"{error}. Choose a writable folder with free space.") from error
    return path


def _dims(names: tuple[str, ...], trailing: tuple[int, ...]) -> tuple[str, ...]:
    # User functions need not name their dimensions; equal lengths get equal names, but no name may
    # appear twice in one variable.
    if len(names) == len(trailing):
        return names
    earlier = [trailing[:axis].count(n) for axis, n in enumerate(trailing)]
    return tuple(
        f"size_{n}" + (f"_{count}" if count else "")
        for n, count in zip(trailing, earlier, strict=True)
    )
