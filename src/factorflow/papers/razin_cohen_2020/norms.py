"""Norms grow and the effective rank falls, on the same runs as the first figure."""

from typing import TYPE_CHECKING

from factorflow._initializer import Balanced
from factorflow.experiments import Experiment
from factorflow.papers.base import Figure, Overlays
from factorflow.papers.razin_cohen_2020 import deep_matrix_factorization
from factorflow.papers.razin_cohen_2020.curves import draw_overlays, draw_runs
from factorflow.papers.selection import select
from factorflow.reference import effective_rank_supremum, schatten_bound

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

PANELS = (
    ("nuclear_norm", "nuclear norm", "norm"),
    ("frobenius_norm", "Frobenius norm", "norm"),
    ("schatten_norm[0.5]", "Schatten-1/2 quasi-norm", "norm"),
    ("max_norm", "largest absolute entry", "norm"),
    ("effective_rank", "effective rank", "effective rank"),
    ("effective_rank_excess", "effective rank minus 1", "effective rank - 1"),
)


def experiments(scale: str) -> list[Experiment]:
    """The balanced runs of depth 3 of the first figure."""
    runs = deep_matrix_factorization.experiments(scale)
    runs = [run for run in runs if isinstance(run.initializer, Balanced)]
    return [
        run
        for run in runs
        if run.seed == 0 and run.factorization.depth == 3 and run.dtype == "float64"  # pyright: ignore[reportAttributeAccessIssue]
    ]


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """Four norms, and the effective rank twice: itself, and its excess over 1."""
    from factorflow.drawing import loss_panels, share_legend, style

    with style():
        runs = select(dataset, initializer__kind="Balanced")
        figure, axes = loss_panels(
            len(PANELS),
            [title for _, title, _ in PANELS],
            limits=(1.0, 6e-13),
            x_label="loss, half sum of squares (falls to the right →)",
            y_log=True,
            share_y=False,
            size=(4.1, 3.2),
        )
        for ax, (measure, _, quantity) in zip(axes, PANELS, strict=True):
            ax.set_ylabel(quantity)
            draw_runs(ax, runs, measure, names="setting")
            draw_overlays(ax, overlays, {"theorem's bound": _bound(measure)})
        for ax in axes[:4]:
            ax.set_ylim(1e-1, 2e6)
        axes[4].set_yscale("linear")
        share_legend(figure, axes)
        return figure


def _bound(measure: str):
    if measure == "effective_rank":
        return effective_rank_supremum()
    if measure == "effective_rank_excess":
        return effective_rank_supremum(excess=True)
    return schatten_bound(0.5)


FIGURE = Figure(
    name="norms_and_effective_rank",
    title="Every norm grows while the effective rank falls",
    caption=(
        "Norms and quasi-norms of the product, and its effective rank (exponential of the entropy "
        "of the normalized singular values), against the training loss (half the sum of squared "
        "residuals; all without unit). Depth 3, balanced starts with positive determinant; descent "
        "with the paper's settings (learning rate / standard deviation of the product's entries at "
        "the start) and gradient flow."
        "\n\n"
        "Dash-dotted: the theorem's bounds, lower for norms and upper for the effective rank."
    ),
    experiments=experiments,
    draw=draw,
    # The claims about these runs are those of deep_matrix_factorization.
    claims=(),
)
