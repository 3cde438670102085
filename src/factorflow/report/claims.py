"""Checked claims: the list for machines and the table for a terminal."""

import json
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from factorflow._files import write_files
from factorflow.report.values import plain, text

_HEADINGS = ("verdict", "claim", "expected", "measured", "tolerance")
_VALUE_WIDTH = 24


@runtime_checkable
class Verdict(Protocol):
    """What is known about one claim after it was checked.

    - `id`: a short name, unique in a report.
    - `statement`: the claim as a sentence.
    - `source`: where it is made, such as `"Theorem 1"` or `"Figure 3"`.
    - `expected`, `measured`, `tolerance`: numbers or words, or `None` where there is none.
    - `holds`: a Boolean.
    """

    @property
    def id(self) -> str: ...
    @property
    def statement(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def expected(self) -> Any: ...
    @property
    def measured(self) -> Any: ...
    @property
    def tolerance(self) -> Any: ...
    @property
    def holds(self) -> Any: ...


@dataclass(frozen=True)
class ClaimRow:
    """A verdict in words, ready to be shown."""

    id: str
    statement: str
    source: str
    expected: str
    measured: str
    tolerance: str
    holds: bool

    @property
    def mark(self) -> str:
        """The verdict as a sign and a word, so that it never depends on color alone."""
        return "✓ holds" if self.holds else "✗ FAILS"


def claim_records(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as JSON-ready records, in order.

    **Raises:**

    - `ValueError`: if two claims have the same id.
    - `TypeError`: if `holds` is not a Boolean (a NaN, for one, counts as true in Python).
    """
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    for verdict in verdicts:
        name = str(verdict.id)
        if name in seen:
            raise ValueError(f"two claims have the id {name!r}; ids must be unique")
        seen.add(name)
        records.append(
            {
                "id": name,
                "statement": str(verdict.statement),
                "source": str(verdict.source),
                "expected": plain(verdict.expected),
                "measured": plain(verdict.measured),
                "tolerance": plain(verdict.tolerance),
                "holds": _boolean(verdict.holds, name),
            }
        )
    return records


def claim_rows(verdicts: Iterable[Verdict]) -> list[ClaimRow]:
    """The verdicts in words. Expected and measured get the digits that tell them apart."""
    rows: list[ClaimRow] = []
    for record in claim_records(verdicts):
        expected, measured = record["expected"], record["measured"]
        digits = 6
        while digits < 17 and expected != measured:
            if text(expected, digits) != text(measured, digits):
                break
            digits += 1
        rows.append(
            ClaimRow(
                id=record["id"],
                statement=record["statement"],
                source=record["source"],
                expected=text(expected, digits),
                measured=text(measured, digits),
                tolerance=text(record["tolerance"]),
                holds=record["holds"],
            )
        )
    return rows


def claims_summary(rows: Iterable[ClaimRow]) -> str:
    """One sentence, such as `7 of 8 claims hold; 1 FAILS: bound`."""
    rows = list(rows)
    if not rows:
        return "No claims were checked."
    failed = [row.id for row in rows if not row.holds]
    if not failed:
        return "The claim holds." if len(rows) == 1 else f"All {len(rows)} claims hold."
    verb = "FAILS" if len(failed) == 1 else "FAIL"
    held = len(rows) - len(failed)
    return f"{held} of {len(rows)} claims hold; {len(failed)} {verb}: {', '.join(failed)}."


def claims_table(verdicts: Iterable[Verdict], *, width: int = 100) -> str:
    """The verdicts as an aligned table for a terminal, with one sentence of summary below.

    Each claim takes a line of values and, indented below it, its statement and source.

    **Arguments:**

    - `verdicts`: see `Verdict`.
    - `width`: statements and long values wrap to stay within it as far as ids allow.
    """
    rows = claim_rows(verdicts)
    if not rows:
        return claims_summary(rows)
    cells = [[[row.mark], [row.id], *(_wrap(value) for value in _values(row))] for row in rows]
    headings = [[heading] for heading in _HEADINGS]
    widths = [
        max(len(line) for line in column)
        for column in (
            [line for row in [headings, *cells] for line in row[index]]
            for index in range(len(_HEADINGS))
        )
    ]
    indent = " " * (widths[0] + 2)
    lines = [*_aligned(headings, widths), "  ".join("-" * size for size in widths)]
    for row, cell in zip(rows, cells, strict=True):
        lines += _aligned(cell, widths)
        sentence = f"{row.statement} [{row.source}]" if row.source else row.statement
        lines += textwrap.wrap(
            sentence,
            width=max(width, len(indent) + 30),
            initial_indent=indent,
            subsequent_indent=indent,
        )
    return "\n".join([*lines, "", claims_summary(rows)])


def write_claims(path: str | os.PathLike[str], verdicts: Iterable[Verdict]) -> Path:
    """Write the verdicts as JSON: a list of objects with the attributes of `Verdict`.

    Numbers that are not finite are written as `"nan"`, `"inf"` and `"-inf"`: JSON has no
    other way, and `float` reads them back. The file appears whole or not at all.

    **Returns:**

    The path that was written.
    """
    target = Path(path)
    listing = json.dumps(claim_records(verdicts), indent=2, ensure_ascii=False, allow_nan=False)
    write_files({target: f"{listing}\n".encode()})
    return target


def _values(row: ClaimRow) -> tuple[str, str, str]:
    return row.expected, row.measured, row.tolerance


def _boolean(holds: Any, name: str) -> bool:
    array = np.asarray(holds)
    if array.dtype != np.bool_ or array.shape != ():
        raise TypeError(f"claim {name!r}: holds must be True or False, not {holds!r}")
    return bool(array)


def _wrap(value: str) -> list[str]:
    return textwrap.wrap(value, width=_VALUE_WIDTH) or [""]


def _aligned(cells: list[list[str]], widths: list[int]) -> list[str]:
    """The lines of one table row whose cells may have several lines each."""
    lines: list[str] = []
    for index in range(max(len(cell) for cell in cells)):
        parts = [
            (cell[index] if index < len(cell) else "").ljust(size)
            for cell, size in zip(cells, widths, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines
