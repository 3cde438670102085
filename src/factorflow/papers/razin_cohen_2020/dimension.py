"""The d x d version of the problem."""

from typing import TYPE_CHECKING

from factorflow._dynamics import GradientDescent
from factorflow.experiments import Experiment, RazinCohenTask
from factorflow.papers.base import Figure, Overlays
from factorflow.papers.razin_cohen_2020.claims import bounds_claim, growth_claim
from factorflow.papers.razin_cohen_2020.curves import draw_overlays, draw_runs
from factorflow.papers.razin_cohen_2020.selection import select
from factorflow.papers.razin_cohen_2020.settings import experiment, flow, initializers
from factorflow.reference import entry_bound

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

DIMENSIONS = (2, 3, 5, 10)
RATE = 3e-3


def experiments(scale: str) -> list[Experiment]:
    """Dimensions 2 to 10, depths 2 to 4, descent and flow."""
    quick = scale == "quick"
    runs = []
    for dim in (3,) if quick else DIMENSIONS:
        task = RazinCohenTask(dim=dim)
        for depth in (3,) if quick else (2, 3, 4):
            for product_scale in (1e-3,) if quick else (1e-3, 1e-6):
                for start in initializers(product_scale, "positive").values():
                    for dynamics in (GradientDescent(RATE), flow()):
                        if quick and isinstance(dynamics, GradientDescent):
                            continue
                        runs.append(experiment(depth, start, dynamics, task=task))
    return runs


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """A panel per dimension and depth."""
    from factorflow.drawing import loss_panels, share_legend, style

    with style():
        dims = sorted({int(dim) for dim in dataset["task.dim"].values})
        depths = sorted({int(depth) for depth in dataset["factorization.depth"].values})
        titles = [f"d = {dim}, depth {depth}" for depth in depths for dim in dims]
        figure, axes = loss_panels(
            len(titles),
            titles,
            columns=len(dims),
            limits=(3.0, 6e-5),
            x_label="loss, half sum of squares\n(falls to the right →)",
            y_label="unobserved entry $|w_{11}|$",
            y_log=True,
            size=(3.3, 2.9),
        )
        for ax, (depth, dim) in zip(
            axes, [(depth, dim) for depth in depths for dim in dims], strict=True
        ):
            runs = select(dataset, task__dim=dim, factorization__depth=depth)
            draw_runs(ax, runs, "entry[0,0]", names="setting")
            draw_overlays(ax, {"theorem: $1/r - r$": entry_bound(dim), **overlays})
        axes[0].set_ylim(1e-2, 2e2)
        share_legend(figure, axes)
        return figure


FIGURE = Figure(
    name="dimension",
    title="The same in d dimensions",
    caption=(
        "Absolute value of the unobserved entry against the training loss (half the sum of squared "
        "residuals; both without unit) for d x d products, all entries but one observed, from "
        "starts with positive determinant. Descent at rate 3e-3 (learning rate / standard "
        "deviation of the product's entries at the start) and gradient flow (scale); dotted: "
        "unbalanced starts. The smaller the start and the deeper the product, the higher the entry "
        "climbs before the loss falls to where the bound is met."
        "\n\n"
        "Dash-dotted: the theorem's lower bound 1/r - r, the same in every dimension. Pale and "
        "dashed: from balanced factors the determinant has changed sign."
    ),
    experiments=experiments,
    draw=draw,
    claims=(
        bounds_claim("dimension"),
        growth_claim(
            "dimension",
            "Balanced flows at depth 3 and more from product scale 1e-3, in every dimension",
            # The other norms add d - 2 singular values of 1, which bend them at these losses.
            slopes=("spectral_norm", "frobenius_norm", "max_norm"),
            dynamics__kind="GradientFlow",
            initializer__kind="Balanced",
            # From 1e-6 the entry is high early and the bound is met only near the last loss.
            initializer__product_scale=1e-3,
            factorization__depth=(3, 4, 5, 6),
        ),
    ),
)
