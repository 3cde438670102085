"""Runs of unequal shape in one labelled dataset, or one table."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["long_columns", "stack_runs"]

# Columns of the index that say where a run lies rather than what it is.
_PLACES = ("file", "run", "written", "experiment", "batch_seconds")


def stack_runs(runs: "list[tuple[xr.Dataset, dict[str, Any]]]") -> "xr.Dataset":
    """One dataset over `run` from rows of the index and the batches that hold them.

    Shorter runs are padded: NaN for numbers, -1 for step numbers, false for flags. A measure that a
    run did not take is NaN there.
    """
    import xarray as xr

    lanes = [dataset.isel(run=row["run"]) for dataset, row in runs]
    names = dict.fromkeys(str(name) for lane in lanes for name in lane.variables)
    names = [n for n in names if n != "experiment" and not n.startswith("factor_")]
    dims = {name: _dims(name, lanes) for name in names}
    # Runs may have fewer rows, and smaller products, than others.
    sizes: dict[str, int] = {}
    for name in names:
        for lane in lanes:
            if name in lane.variables:
                for dim, size in zip(dims[name], lane[name].shape, strict=True):
                    sizes[dim] = max(size, sizes.get(dim, 0))
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for name in names:
        values = [np.asarray(lane[name]) if name in lane.variables else None for lane in lanes]
        place = coords if name in ("time", "step", "level") else data
        shape = tuple(sizes[dim] for dim in dims[name])
        place[name] = (("run", *dims[name]), _pad(values, shape))
    for name in runs[0][1]:
        if name not in _PLACES:
            column = [row[name] for _, row in runs]
            coords[name] = ("run", _label(column))
    return xr.Dataset(data, coords)


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


def _dims(name: str, lanes: "list[xr.Dataset]") -> tuple[str, ...]:
    """The dimensions of a variable; where runs call them differently, names of its own."""
    found = [tuple(map(str, lane[name].dims)) for lane in lanes if name in lane.variables]
    if len({len(dims) for dims in found}) > 1:
        kinds = " and ".join(str(n - 1) for n in sorted({len(dims) for dims in found}))
        raise ValueError(
            f"{name!r} has {kinds} axes in different runs, which no one table can hold: select "
            "runs of one order, for instance by their experiments: `dataset(experiments)`."
        )
    return tuple(
        same[0] if len(set(same)) == 1 else f"{name}_{axis}"
        for axis, same in enumerate(zip(*found, strict=True))
    )


def _pad(values: list[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
    present = [value for value in values if value is not None]
    dtype = np.result_type(*present)
    fill: Any = np.nan
    if np.issubdtype(dtype, np.integer):
        # Levels are step numbers in some runs and losses in others; NaN needs a float.
        dtype, fill = (dtype, -1) if len(present) == len(values) else (np.dtype(float), np.nan)
    elif np.issubdtype(dtype, np.bool_):
        fill = False
    stacked = np.full((len(values), *shape), fill, dtype)
    for run, value in enumerate(values):
        if value is not None:
            stacked[(run, *(slice(size) for size in value.shape))] = value
    return stacked


def _label(column: list[Any]) -> np.ndarray:
    numbers = [value for value in column if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        return np.asarray([np.nan if value is None else value for value in column])
    return np.asarray(["" if value is None else str(value) for value in column])
