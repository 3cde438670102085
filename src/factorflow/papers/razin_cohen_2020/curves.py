"""How a run of this paper is drawn, and named in a legend."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from factorflow._certificate import DOUBTS
from factorflow.papers.selection import believed, is_flow, reached

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["draw_overlays", "draw_runs", "label"]


def draw_runs(
    ax: Any,
    runs: "xr.Dataset",
    measure: str,
    *,
    names: Literal["run", "setting"] = "run",
) -> None:
    """Every run against its loss: a color per setting, unbalanced starts dotted.

    `names` says what the legend holds: runs with their cost, or settings, the same in every panel;
    colors are then shared by the descent and the flow of one scale, and flows are drawn broad.
    """
    from factorflow.drawing import draw_curve

    colors: dict[str, str] = {}
    order = sorted(range(runs.sizes["run"]), key=lambda i: not is_flow(runs.isel(run=i)))
    for index in order:
        run = reached(runs.isel(run=index))
        if not run.sizes["row"]:
            continue
        group = _setting(run) if names == "run" else _scale(run)
        color = colors.setdefault(group, f"C{len(colors)}")
        line = draw_curve(
            ax,
            np.asarray(run["loss"]),
            np.abs(np.asarray(run[measure])),
            trusted=believed(run, measure),
            label=label(run) if names == "run" else f"{_setting(run)}, {_balance(run)}",
            color=color,
            linestyle="-" if _balanced(run) else (0, (1, 1)),
            reason=f"not gradient flow: {_doubt(run, measure)}",
        )
        if names == "setting" and is_flow(run):
            # Descent follows the flow so closely that one would hide the other.
            line.set(linewidth=6, alpha=0.35)


def _doubt(run: "xr.Dataset", measure: str) -> str:
    """The first doubt of a run, in words."""
    codes = np.asarray(run["doubt"])[~believed(run, measure)]
    return tuple(DOUBTS)[int(codes[0])].replace("_", " ") if codes.size else ""


def draw_overlays(
    ax: Any, overlays: Mapping[str, Any], theorem: Mapping[str, Any] | None = None
) -> None:
    """Functions of the loss, over the losses that the axes show: the theorem's and one's own."""
    from factorflow.drawing import draw_bound, draw_overlay

    low, high = sorted(ax.get_xlim())
    losses = np.geomspace(low, min(high, 3.7e-1), 300)
    for name, curve in (theorem or {}).items():
        draw_bound(ax, losses, np.asarray(curve(losses)), name)
    # Runs take the colors from the first one on, and the theorem has black, the last.
    for number, (name, curve) in enumerate(overlays.items()):
        draw_overlay(ax, losses, np.asarray(curve(losses)), name, color=f"C{5 - number % 6}")


def label(run: "xr.Dataset") -> str:
    """A run's name: its setting, its balance, and how long it took."""
    if is_flow(run):
        return f"{_setting(run)}, {_balance(run)}: time {float(run['final_time']):.1e}"
    return f"{_setting(run)}, {_balance(run)}: {int(run['steps']):.1e} iterations"


def _setting(run: "xr.Dataset") -> str:
    if is_flow(run):
        return f"flow, scale {_scale(run)}"
    return f"{_short(float(run['dynamics.optimizer']))} / {_scale(run)}"


def _scale(run: "xr.Dataset") -> str:
    return _short(float(run["initializer.product_scale"]))


def _balanced(run: "xr.Dataset") -> bool:
    return str(run["initializer.kind"].item()) == "Balanced"


def _balance(run: "xr.Dataset") -> str:
    return "balanced" if _balanced(run) else "unbalanced"


def _short(number: float) -> str:
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
