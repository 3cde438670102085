"""The report: one offline page, claims that cannot be overlooked, files that appear whole."""

import json
import math
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from factorflow.drawing import draw_curve, loss_panels, save_figure, style
from factorflow.report import (
    ReportFigure,
    claims_table,
    versions,
    write_claims,
    write_report,
)
from factorflow.report.svg import inline_svg
from factorflow.report.values import duration

# NumPy and drawings are the same in any session: once is enough.
pytestmark = pytest.mark.x64

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


@dataclass(frozen=True)
class Checked:
    id: str = "bound"
    statement: str = "The entry stays above the bound."
    source: str = "Theorem 1"
    expected: Any = 1.0
    measured: Any = 1.0
    tolerance: Any = 1e-9
    holds: Any = True


class Page(HTMLParser):
    """Everything a browser would read from a page, and whether its elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


@pytest.fixture
def figures(tmp_path: Path) -> list[ReportFigure]:
    data = tmp_path / "data" / "all runs.csv"
    data.parent.mkdir()
    data.write_text("loss,value\n")
    made: list[ReportFigure] = []
    for name in ("first", "second"):
        with style():
            figure, (ax,) = loss_panels(1, ["<panel> & more"])
            draw_curve(ax, [1.0, 0.1], [1.0, 3.0])
        saved = save_figure(figure, tmp_path / "figures", name)
        caption = f"The {name} <quantity>, without unit.\n\nDashes: not certified."
        made.append(ReportFigure(name, f"The {name}", caption, saved.svg, saved.png, [data]))
    return made


def report(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "title": "Norms & <ranks>",
        "abstract": "One.\n\nTwo.",
        "figures": [],
        "verdicts": [Checked()],
        "settings": {"task": {"dim": 2}, "scales": [0.1, 0.01]},
        "versions": versions(),
        "wall_time": 184.2,
        "citation": "@article{someone2020,\n  title={Norms},\n}",
    }
    return write_report(path, **(content | changes))


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_page_has_everything(tmp_path: Path, figures: list[ReportFigure]) -> None:
    page = read(report(tmp_path / "index.html", figures=figures, notes=["Strong, not proof."]))
    assert Counter(tag for tag, _ in page.elements)["svg"] == 2
    for words in (
        "Norms & <ranks>",
        "The claim holds.",
        "✓ holds",
        "Theorem 1",
        "Figure 2: The second",
        "The second <quantity>, without unit.",
        "task.dim",
        "0.1, 0.01",
        "3 min 4 s",
        "@article{someone2020,",
        "Strong, not proof.",
        versions()["jax"],
    ):
        assert words in page.text, words
    assert ("html", {"lang": "en"}) in page.elements


def test_page_is_the_same_when_written_again(tmp_path: Path, figures: list[ReportFigure]) -> None:
    first = report(tmp_path / "index.html", figures=figures).read_bytes()
    assert report(tmp_path / "index.html", figures=figures).read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_page_loads_and_runs_nothing(tmp_path: Path, figures: list[ReportFigure]) -> None:
    path = report(tmp_path / "index.html", figures=figures)
    page, text = read(path), path.read_text(encoding="utf-8")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "base"}
    assert "@import" not in text and "http://" not in text and "https://" not in text
    addresses = page.attributes("href") + page.attributes("src")
    ids = page.attributes("id")
    for address in addresses:
        if address.startswith("#"):
            assert address[1:] in ids, address
        else:
            assert address.startswith("./")
            assert (tmp_path / unquote(address)).is_file(), address
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    for reference in re.findall(r"url\(([^)]*)\)", text):
        assert reference.startswith("#") and reference[1:] in ids, reference


def test_links_lead_out_of_the_page_folder(tmp_path: Path, figures: list[ReportFigure]) -> None:
    path = report(tmp_path / "pages" / "index.html", figures=figures)
    assert "../data/all%20runs.csv" in read(path).attributes("href")


def test_ids_are_unique(tmp_path: Path, figures: list[ReportFigure]) -> None:
    # The same picture twice: all its ids clash unless each figure has its own prefix.
    first = figures[0]
    twin = ReportFigure("twin", "Twin", "", first.svg_path, first.png_path)
    verdicts = [Checked(id="a b"), Checked(id="a/b")]
    ids = read(
        report(tmp_path / "index.html", figures=[first, twin], verdicts=verdicts)
    ).attributes("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    assert {"figure-first", "figure-twin", "claim-a-b", "claim-a-b-2"} <= set(ids)


def test_text_is_escaped(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>\"'&"
    page = read(
        report(
            tmp_path / "index.html",
            title=attack,
            abstract=attack,
            verdicts=[Checked(id=attack, statement=attack, measured=attack)],
            settings={attack: attack},
            versions={attack: attack},
            citation=attack,
            notes=[attack],
        )
    )
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(attack) >= 9


def test_failed_claim_is_visible_in_words(tmp_path: Path) -> None:
    verdicts = [Checked(), Checked(id="slope", measured=2.0, holds=False)]
    page = read(report(tmp_path / "index.html", verdicts=verdicts))
    assert "✗ FAILS" in page.text
    assert "1 of 2 claims hold; 1 FAILS: slope." in page.text
    table = claims_table(verdicts)
    assert "✗ FAILS  slope" in table
    assert "✓ holds  bound" in table
    assert table.endswith("1 of 2 claims hold; 1 FAILS: slope.")


def test_no_claims_are_said_to_be_none(tmp_path: Path) -> None:
    assert claims_table([]) == "No claims were checked."
    assert "No claims were checked." in read(report(tmp_path / "a.html", verdicts=[])).text


def test_table_wraps_and_aligns() -> None:
    verdicts = [
        Checked(statement="word " * 60, expected="several words that take two lines or more"),
        Checked(id="a_much_longer_name", tolerance=None),
    ]
    lines = claims_table(verdicts, width=72).splitlines()
    assert max(len(line) for line in lines if line.startswith("         ")) <= 72
    column = lines[0].index("measured")
    values = [line for line in lines if line.startswith("✓")]
    assert len(values) == 2
    assert all(line[column - 1] == " " and line[column] == "1" for line in values)


def test_table_shows_the_digits_that_differ() -> None:
    table = claims_table([Checked(expected=1.0, measured=1.0 - 2e-12, holds=False)])
    assert "0.999999999998" in table


def test_claims_round_trip(tmp_path: Path) -> None:
    verdicts = [
        Checked(),
        Checked(id="numpy", measured=np.float32(0.5), expected=np.int64(3), holds=np.bool_(False)),
        Checked(id="endless", measured=math.inf, expected=-math.inf, tolerance=math.nan),
        Checked(id="words", measured="≥ bound", expected=None, tolerance=np.array([1.0, np.nan])),
    ]
    path = write_claims(tmp_path / "new" / "claims.json", verdicts)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    records = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    keys = ["id", "statement", "source", "expected", "measured", "tolerance", "holds"]
    assert all(list(record) == keys for record in records)
    assert records[0] == {key: getattr(verdicts[0], key) for key in keys}
    assert (records[1]["measured"], records[1]["expected"], records[1]["holds"]) == (0.5, 3, False)
    assert float(records[2]["measured"]) == math.inf
    assert float(records[2]["expected"]) == -math.inf
    assert math.isnan(float(records[2]["tolerance"]))
    assert records[3]["tolerance"] == [1.0, "nan"]
    assert records[3]["expected"] is None


@pytest.mark.parametrize("holds", [math.nan, 1, "yes", None])
def test_verdicts_must_be_boolean(tmp_path: Path, holds: object) -> None:
    with pytest.raises(TypeError, match="'bound': holds must be True or False"):
        write_claims(tmp_path / "claims.json", [Checked(holds=holds)])
    assert not list(tmp_path.iterdir())


def test_claims_need_their_own_ids() -> None:
    with pytest.raises(ValueError, match="two claims have the id 'bound'"):
        claims_table([Checked(), Checked()])


def test_figures_need_their_own_names(tmp_path: Path, figures: list[ReportFigure]) -> None:
    with pytest.raises(ValueError, match="the same name: first"):
        report(tmp_path / "index.html", figures=[figures[0], figures[0]])


def test_missing_picture_is_named(tmp_path: Path, figures: list[ReportFigure]) -> None:
    figures[1].png_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"figure 'second' .*second\.png"):
        report(tmp_path / "index.html", figures=figures)
    assert not (tmp_path / "index.html").exists()


def test_occupied_path_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.html").mkdir()
    (tmp_path / "claims.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"index\.html: a folder of that name"):
        report(tmp_path / "index.html")
    with pytest.raises(IsADirectoryError, match=r"claims\.json: a folder of that name"):
        write_claims(tmp_path / "claims.json", [Checked()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims.json", "index.html"]


def test_failed_writing_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report(tmp_path / "index.html")
    old = path.read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match=r"index\.html: Permission denied"):
        report(path, title="Another")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_missing_jinja2_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'pip install "factorflow\[plot\]"'):
        report(tmp_path / "index.html")


def picture(body: str, attributes: str = "") -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 1 1" {attributes}>{body}</svg>'
    )


def test_pictures_keep_their_references() -> None:
    source = picture(
        "<metadata>a</metadata><style>* {fill: none} g, #a {clip-path: url(#a)}</style>"
        '<g id="a" clip-path="url(#a)" onclick="run()"/><use xlink:href="#a"/>'
    )
    inlined = inline_svg(source, prefix="f1-", label='"quoted"')
    assert "metadata" not in inlined and "onclick" not in inlined and "xmlns" not in inlined
    assert '<g id="f1-a" clip-path="url(#f1-a)" />' in inlined
    assert '<use href="#f1-a" />' in inlined
    assert "#f1-picture *{fill: none}" in inlined
    assert "#f1-picture g, #f1-picture #f1-a{clip-path: url(#f1-a)}" in inlined
    assert 'role="img" aria-label="&quot;quoted&quot;"' in inlined


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (picture("<script>run()</script>"), "must be static"),
        (picture('<image href="https://example.org/a.png"/>'), "must load nothing"),
        (picture('<g style="fill: url(https://example.org/a)"/>'), "must load nothing"),
        (picture("<style>@import 'a.css';</style>"), "without '@'"),
        (picture('<a href="javascript:run()"/>'), "must load nothing"),
        ("<html/>", "not an SVG picture"),
        ("no picture", "not a well-formed SVG"),
    ],
)
def test_active_pictures_are_refused(source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        inline_svg(source, prefix="f1-", label="")


def test_versions_name_no_machine() -> None:
    found = versions()
    names = {"factorflow", "jax", "equinox", "diffrax", "optax", "numpy", "python", "platform"}
    assert names <= set(found)
    assert found["numpy"] == np.__version__
    assert all(isinstance(value, str) and value for value in found.values())
    assert os.uname().nodename not in " ".join(found.values())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.421, "0.42 s"), (9.99, "10 s"), (59.7, "1 min 0 s"), (3599.6, "1 h 0 min"), (0, "0 s")],
)
def test_durations_are_readable(seconds: float, words: str) -> None:
    assert duration(seconds) == words
