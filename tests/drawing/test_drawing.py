"""Drawing: what is shown, what is marked, and files that do not change by themselves."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation

from factorflow.drawing import (
    UNCERTIFIED_LABEL,
    color_by_step,
    draw_bound,
    draw_curve,
    draw_markers,
    loss_axis,
    loss_panels,
    panels,
    save_figure,
    share_legend,
    step_colorbar,
    style,
    write_files,
)
from factorflow.drawing.axes import PowerFormatter

# NumPy and drawings are the same in any session: once is enough.
pytestmark = pytest.mark.x64

LOSS = np.logspace(0, -6, 7)
VALUE = 1 / np.sqrt(LOSS)


@style()
def example() -> Figure:
    figure, axes = loss_panels(2, ["depth 2", "depth 3"], y_label="$|w_{11}|$", y_log=True)
    trusted = LOSS > 1e-4
    for ax in axes:
        draw_curve(ax, LOSS, VALUE, trusted=trusted, label="flow")
        draw_bound(ax, LOSS, VALUE / 2, "bound")
        draw_markers(ax, [1e-2], [10.0], "published")
    color_by_step(axes[0], LOSS, 2 * VALUE, np.arange(7))
    share_legend(figure, axes)
    return figure


def points(line: Line2D) -> list[tuple[float, float]]:
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    return [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]


def test_style_is_restored() -> None:
    before = dict(matplotlib.rcParams)
    with style():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
        assert matplotlib.rcParams["svg.hashsalt"]
    assert dict(matplotlib.rcParams) == before


def test_style_ignores_the_users_settings() -> None:
    with matplotlib.rc_context({"font.size": 30.0, "lines.dashed_pattern": [1, 9]}), style():
        assert matplotlib.rcParams["font.size"] == 10
        assert matplotlib.rcParams["lines.dashed_pattern"] != [1, 9]


def test_no_text_is_smaller_than_nine_points() -> None:
    with style():
        sizes = {
            name: FontProperties(size=value).get_size_in_points()
            for name, value in matplotlib.rcParams.items()
            if name in ("font.size", "axes.titlesize", "legend.fontsize")
            or name.endswith("labelsize")
        }
    assert min(sizes.values()) >= 9, sizes


def test_pyplot_stays_out() -> None:
    code = (
        "import sys, numpy as np\n"
        "from factorflow.drawing import loss_panels, draw_curve\n"
        "figure, (ax,) = loss_panels(1)\n"
        "draw_curve(ax, np.ones(2), np.ones(2))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_missing_matplotlib_names_the_remedy() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import factorflow.drawing"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.returncode != 0
    assert "ImportError: Drawing figures needs matplotlib" in done.stderr
    assert 'pip install "factorflow[plot]"' in done.stderr


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_loss_falls_from_left_to_right() -> None:
    _, (ax, limited) = loss_panels(2)
    loss_axis(limited, limits=(1e-6, 1.0))
    draw_curve(ax, LOSS, VALUE)
    for axes in (ax, limited):
        left, right = axes.get_xlim()
        assert left > right > 0
        assert axes.get_xscale() == "log"
    assert limited.get_xlim() == (1.0, 1e-6)
    with pytest.raises(ValueError, match="must be positive"):
        loss_axis(ax, limits=(0.0, 1.0))


def test_panels_are_labelled_once() -> None:
    figure, axes = loss_panels(5, list("abcde"), columns=3, y_label="rank")
    assert len(axes) == len(figure.axes) == 5
    assert [ax.get_title(loc="left") for ax in axes] == list("abcde")
    assert [bool(ax.get_ylabel()) for ax in axes] == [True, False, False, True, False]
    assert [bool(ax.get_xlabel()) for ax in axes] == [False, False, True, True, True]


@pytest.mark.parametrize(("n", "titles"), [(0, None), (2, ["one"])])
def test_wrong_panels_are_refused(n: int, titles: list[str] | None) -> None:
    with pytest.raises(ValueError, match="panel"):
        panels(n, titles)


def test_uncertified_stretches_are_apart() -> None:
    _, (ax,) = loss_panels(1)
    trusted = np.array([True, True, True, False, True, True, True])
    line = draw_curve(ax, LOSS, VALUE, trusted=trusted, label="flow", color="#0072B2")
    rows = list(zip(LOSS, VALUE, strict=True))
    assert points(line) == [*rows[:3], *rows[4:]]
    (doubtful,) = (drawn for drawn in ax.get_lines() if drawn is not line)
    assert points(doubtful) == rows[2:5]
    assert doubtful.get_label() == UNCERTIFIED_LABEL
    assert doubtful.is_dashed() and not line.is_dashed()
    assert to_rgb(doubtful.get_color()) != to_rgb(line.get_color())


def test_trusted_neighbours_between_doubtful_rows_stay_certified() -> None:
    _, (ax,) = loss_panels(1)
    trusted = np.array([True, False, True, True, False, True, True])
    line = draw_curve(ax, LOSS, VALUE, trusted=trusted)
    rows = list(zip(LOSS, VALUE, strict=True))
    assert points(line) == [*rows[2:4], *rows[5:]]


def test_uncertified_is_explained_once_in_the_legend() -> None:
    with style():
        figure, axes = loss_panels(2)
        for ax in axes:
            for scale in (1, 2):
                draw_curve(ax, LOSS, scale * VALUE, trusted=LOSS > 1e-3, label=f"{scale}")
        share_legend(figure, axes)
    (legend,) = figure.legends
    assert [entry.get_text() for entry in legend.get_texts()] == ["1", "2", UNCERTIFIED_LABEL]


def test_nothing_labelled_means_no_legend() -> None:
    figure, axes = loss_panels(1)
    draw_curve(axes[0], LOSS, VALUE)
    share_legend(figure, axes)
    assert not figure.legends


def test_unreached_rows_leave_a_gap_and_lone_rows_a_point() -> None:
    _, (ax,) = loss_panels(1)
    value = VALUE.copy()
    value[[2, 4, 5, 6]] = np.nan
    line = draw_curve(ax, LOSS, value)
    rows = list(zip(LOSS, VALUE, strict=True))
    assert points(line) == rows[:2]
    lone = [drawn for drawn in ax.get_lines() if drawn.get_marker() == "o"]
    assert [points(drawn) for drawn in lone] == [[rows[3]]]


def test_columns_that_do_not_fit_are_refused() -> None:
    _, (ax,) = loss_panels(1)
    with pytest.raises(ValueError, match=r"loss \(7,\), value \(6,\)"):
        draw_curve(ax, LOSS, VALUE[1:])
    with pytest.raises(ValueError, match="one True or False per row"):
        draw_curve(ax, LOSS, VALUE, trusted=np.ones(7))


def test_steps_color_the_path() -> None:
    figure, axes = panels(2)
    step = np.array([0, 1, 10, 100, 1000])
    line = color_by_step(axes[0], step, step, step, colorbar=False)
    assert isinstance(line.norm, LogNorm)
    assert (line.norm.vmin, line.norm.vmax) == (1, 1000)
    assert len(line.get_segments()) == 4
    shared = color_by_step(
        axes[1], step, step, step, norm="linear", limits=(0, 2000), colorbar=False
    )
    assert (shared.norm.vmin, shared.norm.vmax) == (0, 2000)
    assert len(figure.axes) == 2
    step_colorbar(axes, shared)
    assert len(figure.axes) == 3


def test_uncertified_steps_have_no_color() -> None:
    _, (ax,) = panels(1)
    step = np.arange(6)
    line = color_by_step(ax, step, step, step, trusted=step < 3)
    assert len(line.get_segments()) == 2
    assert [drawn.get_label() for drawn in ax.get_lines()] == [UNCERTIFIED_LABEL]
    with pytest.raises(ValueError, match="norm must be"):
        color_by_step(ax, step, step, step, norm="cubic")


@pytest.mark.parametrize("steps", [[], [0], [0, 0], [5, 5]])
def test_few_or_equal_steps_still_draw(steps: list[int], tmp_path: Path) -> None:
    figure, (ax,) = panels(1)
    color_by_step(ax, steps, steps, steps)
    save_figure(figure, tmp_path, "short")


def test_saved_figures_do_not_change(tmp_path: Path) -> None:
    figure = example()
    first = save_figure(figure, tmp_path / "new" / "first", "example")
    again = save_figure(figure, tmp_path / "again", "example")
    anew = save_figure(example(), tmp_path / "anew", "example")
    assert first.svg.name == "example.svg" and first.png.name == "example.png"
    for other in (again, anew):
        assert first.svg.read_bytes() == other.svg.read_bytes()
        assert first.png.read_bytes() == other.png.read_bytes()
    assert first.png.read_bytes().startswith(b"\x89PNG")
    text = first.svg.read_text(encoding="utf-8")
    assert "depth 2" in text, "text must stay text"
    assert "<dc:date>" not in text


@pytest.mark.parametrize("layout", ["constrained", "none"])
def test_saving_changes_no_layout(tmp_path: Path, layout: str) -> None:
    figure = example()
    figure.set_layout_engine("constrained" if layout == "constrained" else "none")
    engine = figure.get_layout_engine()
    before = [ax.get_position().bounds for ax in figure.axes]
    save_figure(figure, tmp_path, "example")
    assert figure.get_layout_engine() is engine
    assert [ax.get_position().bounds for ax in figure.axes] == before


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a\\b"])
def test_figure_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a figure"):
        save_figure(Figure(), tmp_path, name)


def test_occupied_path_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "example.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"example\.png: a folder of that name"):
        save_figure(Figure(), tmp_path, "example")
    assert [path.name for path in tmp_path.iterdir()] == ["example.png"]


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(NotADirectoryError, match="figures is a file, not a folder"):
        save_figure(Figure(), tmp_path / "figures" / "deep", "example")
    assert (tmp_path / "figures").read_text() == "mine"


def test_a_curve_of_ones_own_looks_like_no_theorem():
    from factorflow.papers.razin_cohen_2020.curves import draw_overlays

    ax = Figure().add_subplot()
    ax.set_xlim(1e-3, 1)
    own = {f"curve {number}": lambda loss: loss for number in range(3)}
    draw_overlays(ax, own, {"theorem": lambda loss: 1 / loss})
    theorem, *curves = ax.get_lines()
    draw_overlays(alone := Figure().add_subplot(xlim=(1e-3, 1)), own)
    looks = {(line.get_color(), str(line._dash_pattern)) for line in [theorem, *curves]}
    assert len(looks) == 4  # colors tell those of one's own apart
    for line in [*curves, *alone.get_lines()]:
        assert line.get_color() != theorem.get_color()
        assert line._dash_pattern != theorem._dash_pattern


def test_failed_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "kept.txt"
    write_files({target: b"old"})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"Cannot write .*kept\.txt: No space left") as caught:
        write_files({target: b"new"})
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_unwritable_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop a superuser, who may run these tests.
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match=r"Cannot write .*file\.txt: Permission denied"):
        write_files({tmp_path / "file.txt": b"new"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "label"),
    [(1e-3, "10⁻³"), (1.0, "10⁰"), (1e12, "10¹²"), (2e-3, "2×10⁻³"), (-1e-3, "−10⁻³")],  # noqa: RUF001
)
def test_labels_of_a_logarithmic_axis_are_those_of_matplotlib_without_formulas(value, label):
    ours, theirs = PowerFormatter(labelOnlyBase=False), LogFormatterSciNotation(labelOnlyBase=False)
    for formatter in (ours, theirs):
        formatter.axis = Figure().subplots().xaxis
    formula = theirs(value)
    assert ours(value) == label
    # The same number, read from the formula.
    sign, factor, exponent = re.search(r"{(-?)(?:([\d.]+)\\times)?10\^{(.*?)}}", formula).groups()
    assert float(f"{sign}{factor or 1}e{exponent}") == value
