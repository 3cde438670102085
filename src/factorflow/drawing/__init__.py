"""Shared drawing code: one style, one loss axis, one way to mark what is not certified.

A figure of factorflow is a pure function from a dataset to a `matplotlib.figure.Figure`.
It never touches pyplot, so it needs no display and leaves no figure open behind it:

```python
@style()
def end_to_end_entry(dataset: xr.Dataset) -> Figure:
    figure, panels = loss_panels(2, ["depth 2", "depth 3"], y_label="$|w_{11}|$", y_log=True)
    for panel, depth in zip(panels, (2, 3)):
        run = dataset.sel(depth=depth)
        draw_curve(panel, run.loss, run.w11, trusted=run.trusted, label="gradient flow")
    share_legend(figure, panels)
    return figure


save_figure(end_to_end_entry(dataset), "out/figures", "end_to_end_entry")
```
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError(
        "Drawing figures needs matplotlib, which is not installed. "
        'Install it with: pip install "factorflow[plot]"'
    ) from error

from factorflow.drawing.axes import UNCERTIFIED_LABEL as UNCERTIFIED_LABEL
from factorflow.drawing.axes import draw_bound as draw_bound
from factorflow.drawing.axes import draw_curve as draw_curve
from factorflow.drawing.axes import draw_markers as draw_markers
from factorflow.drawing.axes import draw_overlay as draw_overlay
from factorflow.drawing.axes import log_axis as log_axis
from factorflow.drawing.axes import loss_axis as loss_axis
from factorflow.drawing.grid import loss_panels as loss_panels
from factorflow.drawing.grid import panels as panels
from factorflow.drawing.grid import share_legend as share_legend
from factorflow.drawing.minimized import draw_minimized as draw_minimized
from factorflow.drawing.save import SavedFigure as SavedFigure
from factorflow.drawing.save import save_figure as save_figure
from factorflow.drawing.save import write_files as write_files
from factorflow.drawing.steps import STEP_COLORS as STEP_COLORS
from factorflow.drawing.steps import color_by_step as color_by_step
from factorflow.drawing.steps import step_colorbar as step_colorbar
from factorflow.drawing.style import style as style
