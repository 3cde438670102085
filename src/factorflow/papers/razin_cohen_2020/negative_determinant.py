"""The companion: from a start with negative determinant the entry converges."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow._dynamics import GradientDescent
from factorflow.experiments import Experiment
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.razin_cohen_2020.curves import draw_overlays, draw_runs
from factorflow.papers.razin_cohen_2020.settings import (
    NORMS,
    SOURCE,
    experiment,
    flow_experiment,
    initializers,
)
from factorflow.papers.selection import at_losses, select

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

RATE = 3e-3
SCALES = (1e-3, 1e-6)


def experiments(scale: str) -> list[Experiment]:
    """Depths 2 to 4, both scales, balanced and not, descent and flow."""
    seeds = range(32) if scale == "beyond" else range(1)
    runs = []
    for depth in (2, 3) if scale == "quick" else (2, 3, 4):
        for product_scale in SCALES:
            for name, start in initializers(product_scale, "negative").items():
                for seed in seeds:
                    runs.append(experiment(depth, start, GradientDescent(RATE), seed=seed))
                    # Flows of unbalanced starts follow descent; here they would only cost time.
                    if name == "balanced":
                        runs.append(flow_experiment(depth, start, final_loss=1e-8, seed=seed))
    return runs


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """The entry above, the nuclear norm below, a column per depth."""
    from factorflow.drawing import loss_panels, share_legend, style

    with style():
        runs = select(dataset, seed=0)
        depths = sorted({int(depth) for depth in runs["factorization.depth"].values})
        titles = [
            f"depth {depth}: {what}" for what in ("entry", "nuclear norm") for depth in depths
        ]
        figure, axes = loss_panels(
            len(titles),
            titles,
            columns=len(depths),
            limits=(1.0, 6e-9),
            x_label="loss, half sum of squares (falls to the right →)",
            y_log=True,
            share_y=False,
            size=(4.1, 3.2),
        )
        for row, measure in enumerate(("entry[0,0]", "nuclear_norm")):
            for column, depth in enumerate(depths):
                ax = axes[len(depths) * row + column]
                draw_runs(ax, select(runs, factorization__depth=depth), measure, names="setting")
                draw_overlays(ax, overlays)
            axes[len(depths) * row].set_ylabel("$|w_{11}|$" if row == 0 else "nuclear norm")
        for ax in axes:
            ax.set_ylim(1e-2, 2e3)
        share_legend(figure, axes)
        return figure


def _check_flow_converges(dataset: "xr.Dataset") -> tuple[str, bool]:
    flows = select(dataset, dynamics__kind="GradientFlow", seed=0)
    changes = []
    for index in range(flows.sizes["run"]):
        run = flows.isel(run=index)
        for measure in ("entry[0,0]", *NORMS):
            before, after = at_losses(run, [1e-7, 1e-8], measure)
            changes.append(abs(after / before - 1))
    largest = float(np.max(changes)) if changes else np.nan
    return f"largest change {largest:.2%} in {flows.sizes['run']} flows", bool(largest < 0.05)


def _check_converges(dataset: "xr.Dataset") -> tuple[str, bool]:
    depth = np.asarray(dataset["factorization.depth"])
    scale = np.asarray(dataset["initializer.product_scale"])
    balanced = np.asarray(dataset["initializer.kind"]) == "Balanced"
    descent = np.asarray(dataset["dynamics.kind"]) == "GradientDescent"
    claimed = np.flatnonzero(
        descent & (depth == 2) | descent & ((depth == 3) & (scale == 1e-3) & balanced)
    )
    changes = []
    for index in claimed:
        run = dataset.isel(run=index)
        for measure in ("entry[0,0]", *NORMS):
            before, after = at_losses(run, [1e-3, 1e-4], measure)
            changes.append(abs(after / before - 1))
    largest = float(np.max(changes)) if changes else np.nan
    return f"largest change {largest:.2%} in {len(claimed)} runs", bool(largest < 0.05)


FIGURE = Figure(
    name="negative_determinant",
    title="With negative determinant the entry converges",
    caption=(
        "Absolute value of the unobserved entry, and nuclear norm of the product, against the "
        "training loss (half the sum of squared residuals; all without unit), from starts with "
        "negative determinant, the sign that every solution has: nothing forces the product to "
        "infinity. Descent at rate 3e-3 (learning rate / standard deviation of the product's "
        "entries at the start) and gradient flow of the balanced ones (scale); dotted: unbalanced "
        "starts."
        "\n\n"
        "At depth 4, and at depth 3 from scale 1e-6, curves turn away from the diverging branch "
        "late: the flows are followed to a loss of 1e-8."
    ),
    experiments=experiments,
    draw=draw,
    claims=(
        Claim(
            id="negative_determinant.converges",
            statement=(
                "Descent at depth 2, and at depth 3 from balanced starts with product scale 1e-3, "
                "the entry and every norm change by less than 5% from loss 1e-3 to 1e-4."
            ),
            source=f"{SOURCE}, discussion after theorem 1",
            expected="0%",
            tolerance="5%",
            check=_check_converges,
        ),
        Claim(
            id="negative_determinant.flow_converges",
            statement=(
                "Balanced flow at depths 2 to 4 (2 and 3 at scale quick): from loss 1e-7 to 1e-8 "
                "the entry and every norm change by less than 5%."
            ),
            source=f"{SOURCE}, discussion after theorem 1",
            expected="0%",
            tolerance="5%",
            check=_check_flow_converges,
        ),
    ),
)
