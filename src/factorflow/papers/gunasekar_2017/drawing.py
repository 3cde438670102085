"""How far the nuclear norm of the limit is above its minimum, drawn over the initialization."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Overlays
from factorflow.papers.gunasekar_2017.results import curves, hidden

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["draw"]


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """One panel per depth, one line per instance; the closed form where there is one."""
    from factorflow.drawing import draw_bound, draw_curve, log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    found, floor = curves(dataset), hidden(dataset)
    depths = sorted({curve.depth for curve in found})
    with style():
        figure, axes = panels(
            len(depths),
            [f"Depth {depth}" for depth in depths],
            y_label="nuclear norm over\nits minimum, less 1",
            y_log=True,
            size=(4.2, 3.4),
        )
        for ax, depth in zip(axes, depths, strict=True):
            log_axis(ax, "x")
            ax.xaxis.set_inverted(True)
            ax.set_xlabel("initialization (falls to the right →)")
            part = [curve for curve in found if curve.depth == depth]
            for number, curve in enumerate(part):
                drawn = np.maximum(np.abs(curve.excess), floor)
                label = f"instance {curve.seed}"
                color = f"C{number % 7}"
                draw_curve(
                    ax, curve.scales, drawn, trusted=curve.trusted, label=label, color=color
                ).set_marker("o")
                if np.any(np.isfinite(curve.predicted)):
                    predicted = np.where(curve.predicted > floor, curve.predicted, np.nan)
                    draw_bound(ax, curve.scales, predicted, "closed form of the limit")
                elif curve.truth > floor:
                    ax.axhline(curve.truth, color=color, linestyle=":", label="its ground truth")
            ax.axhspan(floor / 3, floor, color="0.9", linewidth=0, label="hidden by the residual")
            ax.set_ylim(bottom=floor / 3)
        share_legend(figure, axes)
        return figure
