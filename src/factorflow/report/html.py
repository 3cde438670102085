"""The report: figures, claims and their circumstances on one static page."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from factorflow._files import write_files
from factorflow.report.claims import Verdict, claim_rows, claims_summary
from factorflow.report.svg import inline_svg
from factorflow.report.values import duration, flat

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report.

    - `name`: its file name without an ending; also the end of its address on the page.
    - `title`: what it shows, in a few words.
    - `caption`: plain text that defines every quantity with its unit; blank lines separate
        paragraphs.
    - `svg_path`, `png_path`: its picture.
    - `data_paths`: the files that hold the numbers drawn.
    """

    name: str
    title: str
    caption: str
    svg_path: Path
    png_path: Path
    data_paths: Sequence[Path] = ()


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    abstract: str,
    figures: Iterable[ReportFigure],
    verdicts: Iterable[Verdict],
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    wall_time: float | int,
    citation: str,
    notes: Iterable[str] = (),
) -> Path:
    """Write the report as one HTML file that loads nothing and runs nothing.

    The pictures become part of the page. Their files and data are linked by relative paths,
    so the page and its folders can move together. The page appears whole or not at all.

    **Arguments:**

    - `path`: the HTML file to write, usually `index.html`.
    - `title`, `abstract`: plain text; blank lines separate paragraphs.
    - `figures`: the files they name must exist.
    - `verdicts`: the checked claims.
    - `settings`: what was computed; nested mappings become `outer.inner` rows.
    - `versions`: usually `factorflow.report.versions()`.
    - `wall_time`: in seconds.
    - `citation`: BibTeX, shown as it is.
    - `notes`: what a reader must know to judge the results, a paragraph each.

    **Returns:**

    The path that was written.

    **Raises:**

    - `FileNotFoundError`: if a file of a figure is missing.
    - `ValueError`: if two figures or two claims have the same name, or a picture cannot be
        shown offline.
    - `OSError`: if the page cannot be written.
    - `ImportError`: if Jinja2 is not installed.
    """
    template = report_template()
    target = Path(path)
    rows = claim_rows(verdicts)
    page = template.render(
        title=title,
        abstract=_paragraphs(abstract),
        figures=_shown(list(figures), target.parent),
        claims=[{"row": row, "anchor": anchor} for row, anchor in _anchored(rows)],
        summary=claims_summary(rows),
        all_hold=all(row.holds for row in rows),
        settings=flat(settings),
        versions=dict(versions),
        wall_time=duration(wall_time),
        citation=citation.strip(),
        notes=[_paragraphs(note) for note in notes],
    )
    write_files({target: page.encode()})
    return target


def report_template() -> Any:
    """The page to be filled in; `ImportError` with the remedy where Jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "Writing a report needs Jinja2, which is not installed. "
            'Install it with: pip install "factorflow[plot]"'
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    source = resources.files("factorflow.report").joinpath(_TEMPLATE)
    return environment.from_string(source.read_text(encoding="utf-8"))


def _shown(figures: Sequence[ReportFigure], folder: Path) -> list[dict[str, Any]]:
    names = [figure.name for figure in figures]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"several figures have the same name: {', '.join(repeated)}")
    anchors = _unique(f"figure-{_slug(name)}" for name in names)
    shown: list[dict[str, Any]] = []
    for index, (figure, anchor) in enumerate(zip(figures, anchors, strict=True), start=1):
        for file in (figure.svg_path, figure.png_path, *figure.data_paths):
            if not Path(file).exists():
                raise FileNotFoundError(f"figure {figure.name!r} needs a missing file: {file}")
        try:
            # "f1-" starts no other prefix, and nothing else on the page has such an id.
            picture = inline_svg(
                Path(figure.svg_path).read_text(encoding="utf-8"),
                prefix=f"f{index}-",
                label=figure.title,
            )
        except ValueError as error:
            raise ValueError(f"figure {figure.name!r}: {error}") from error
        files = [("SVG", figure.svg_path), ("PNG", figure.png_path)]
        files += [(Path(file).name, file) for file in figure.data_paths]
        shown.append(
            {
                "number": index,
                "anchor": anchor,
                "title": figure.title,
                "caption": _paragraphs(figure.caption),
                "picture": picture,
                "files": [(label, _relative(Path(file), folder)) for label, file in files],
            }
        )
    return shown


def _relative(file: Path, folder: Path) -> str:
    relative = os.path.relpath(file.absolute(), folder.absolute())
    address = quote(Path(relative).as_posix())
    # A first folder such as "a:b" would be read as a scheme.
    return address if address.startswith(".") else f"./{address}"


def _anchored(rows: Sequence[Any]) -> list[tuple[Any, str]]:
    return list(zip(rows, _unique(f"claim-{_slug(row.id)}" for row in rows), strict=True))


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _unique(anchors: Iterable[str]) -> list[str]:
    unique: list[str] = []
    for anchor in anchors:
        candidate, count = anchor, 1
        while candidate in unique:
            count += 1
            candidate = f"{anchor}-{count}"
        unique.append(candidate)
    return unique


def _paragraphs(text: str) -> list[str]:
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if part]
