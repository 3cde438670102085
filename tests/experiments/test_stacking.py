"""Runs of unequal shape in one dataset."""

import numpy as np
import pytest
import xarray as xr

from factorflow.experiments.stacking import long_columns, stack_runs

# Plain NumPy.
pytestmark = pytest.mark.x64


def batch(product_shape: tuple[int, ...], values: list[float], dims=None) -> tuple:
    rows = 2
    names = dims or tuple(f"axis_{axis}" for axis in range(len(product_shape)))
    run_row = ("run", "row")
    dataset = xr.Dataset(
        {
            "product": ((*run_row, *names), np.ones((1, rows, *product_shape))),
            "one": ((*run_row, "singular_value"), np.tile(values, (1, rows, 1))),
            "reached": (run_row, np.ones((1, rows), bool)),
        },
        {"step": (run_row, np.zeros((1, rows), int)), "level": (run_row, np.ones((1, rows)))},
    )
    return dataset, {"run": 0, "key": str(product_shape)}


def test_products_and_vectors_of_unequal_sizes_are_padded():
    small, large = batch((2, 3), [1.0, 2.0]), batch((3, 2), [1.0, 2.0, 3.0])
    dataset = stack_runs([small, large])
    assert dataset["product"].dims == ("run", "row", "axis_0", "axis_1")
    assert dataset["product"].shape == (2, 2, 3, 3)
    assert np.nansum(dataset["product"].values, axis=(1, 2, 3)).tolist() == [12.0, 12.0]
    assert np.isnan(dataset["one"].values[0, :, 2]).all()


def test_a_measure_that_only_the_smaller_run_took_shares_the_others_dimension():
    small, large = batch((2, 2), [1.0, 2.0]), batch((3, 3), [1.0, 2.0, 3.0])
    only = (small[0].rename(one="other"), small[1])
    dataset = stack_runs([only, large])
    assert dataset["other"].shape == dataset["one"].shape == (2, 2, 3)
    assert np.isnan(dataset["other"].values[1]).all()


def test_dimensions_that_runs_call_differently_get_names_of_their_own():
    small = batch((2, 2), [1.0], ("size_2", "size_2_1"))
    large = batch((3, 2), [1.0], ("size_3", "size_2"))
    dataset = stack_runs([small, large])
    assert dataset["product"].dims == ("run", "row", "product_1", "product_2")
    columns = long_columns(dataset)
    assert {"product.0", "product.5", "one.0"} <= set(columns)


def test_matrices_and_tensors_are_refused_together():
    with pytest.raises(ValueError, match="'product' has 2 and 3 axes in different runs"):
        stack_runs([batch((2, 2), [1.0]), batch((2, 2, 2), [1.0])])
