"""The paper's figures from nothing: compilation, runs, drawing, claims."""

import tempfile
from pathlib import Path

from startup import _COMMAND, timed
from timing import Row


def measure() -> list[Row]:
    """`factorflow reproduce` in fresh processes and folders."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:

        def reproduce(name: str, *arguments: str) -> tuple[float, float]:
            out = str(Path(scratch) / name)
            common = ("reproduce", "razin_cohen_2020", "--no-progress", "--out", out)
            return timed(_COMMAND, *common, *arguments)

        seconds, _ = reproduce("quick", "--scale", "quick")
        rows.append(Row("everything at quick scale, cold, s", f"{seconds:.0f}", "under 60"))
        figure = ("--figure", "deep_matrix_factorization")
        seconds, _ = reproduce("figure", "--scale", "paper", *figure)
        rows.append(
            Row("deep_matrix_factorization at paper scale, s", f"{seconds:.0f}", "under 60")
        )
        seconds, peak = reproduce("paper", "--scale", "paper")
        rows.append(Row("everything at paper scale, s", f"{seconds:.0f}"))
        rows.append(Row("  peak memory, GB", f"{peak:.2f}", "under 2"))
    return rows
