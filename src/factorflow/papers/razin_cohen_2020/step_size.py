"""Descent tends to the flow, at first order in its step."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow._dynamics import GradientDescent, GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._initializer import Balanced
from factorflow._observe import AtSteps, AtTimes, Stop
from factorflow.experiments import Experiment, RazinCohenTask
from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.selection import select

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURE"]

PRODUCT = ((2e-3, 1e-3), (-5e-4, 3e-3))
# Where the flow's loss has fallen to about 0.1: every depth has left its plateau.
MOMENTS = {2: 6.88, 3: 8.96, 4: 11.36}
# Not stiff yet, so that an explicit method is as accurate as the charts, and independent of them.
FLOW = GradientFlow("Dopri8", rtol=1e-10, atol=1e-12)
RATES = (2e-2, 1e-2, 5e-3, 2.5e-3, 1.25e-3, 6.25e-4)


def experiments(scale: str) -> list[Experiment]:
    """Descent with six rates to one moment, and the flow to the same moment."""
    runs = []
    for depth, moment in MOMENTS.items():
        if scale == "quick" and depth > 2:
            continue
        common = {
            "task": RazinCohenTask(),
            "factorization": DeepMatrix((2, 2), depth),
            "initializer": Balanced(product=PRODUCT),
            "measures": ["loss", "entry[0,0]"],
        }
        for rate in RATES:
            steps = round(moment / rate)
            runs.append(
                Experiment(
                    dynamics=GradientDescent(rate),
                    observe=AtSteps([steps]),
                    stop=Stop(max_steps=steps),
                    **common,
                )
            )
        runs.append(
            Experiment(
                dynamics=FLOW, observe=AtTimes([moment]), stop=Stop(max_time=moment), **common
            )
        )
    return runs


def _errors(dataset: "xr.Dataset", depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates, descending, and the relative distance of the entry from the flow's."""
    runs = select(dataset, factorization__depth=depth)
    descent = select(runs, dynamics__kind="GradientDescent")
    ended = np.asarray(descent["reached"])[:, 0]
    truth = np.asarray(select(runs, dynamics__kind="GradientFlow")["entry[0,0]"])[0, 0]
    rates = np.asarray(descent["dynamics.optimizer"], float)[ended]
    entries = np.asarray(descent["entry[0,0]"])[ended, 0]
    order = np.argsort(-rates)
    return rates[order], np.abs(entries[order] / truth - 1)


def draw(dataset: "xr.Dataset", overlays: Overlays):
    """Distance against the step, in one panel."""
    from factorflow.drawing import log_axis, panels, style

    del overlays  # not a figure over the loss
    with style():
        figure, (ax,) = panels(1, y_log=True, y_label="relative distance of $w_{11}$ from the flow")
        for number, depth in enumerate(sorted(set(dataset["factorization.depth"].values))):
            rates, errors = _errors(dataset, int(depth))
            ax.plot(rates, errors, "o-", color=f"C{number}", label=f"depth {int(depth)}")
        rates = np.asarray(RATES)
        ax.plot(rates, 0.3 * rates, color="black", linestyle="--", label="first order")
        log_axis(ax, "x")
        ax.set_xlabel("learning rate")
        ax.legend()
        return figure


def _check_order(dataset: "xr.Dataset") -> tuple[str, bool]:
    orders = []
    for depth in sorted(set(dataset["factorization.depth"].values)):
        rates, errors = _errors(dataset, int(depth))
        if len(rates) < len(RATES):
            return f"{len(rates)} of {len(RATES)} rates ended at depth {int(depth)}", False
        orders += list(np.diff(np.log(errors)) / np.diff(np.log(rates)))
    if not orders:
        return "no runs", False
    measured = f"orders {min(orders):.4f} to {max(orders):.4f}"
    return measured, bool(max(abs(order - 1) for order in orders) <= 0.02)


FIGURE = Figure(
    name="step_size",
    title="Descent tends to the flow",
    caption=(
        "Relative distance of the unobserved entry under gradient descent from its value under "
        "gradient flow, at the same time (number of steps times learning rate; time 6.88 at depth "
        "2, 8.96 at depth 3, 11.36 at depth 4, where the loss is about 0.1), against the learning "
        "rate. Same balanced start for all; without unit. Dashed: proportional to the rate."
    ),
    experiments=experiments,
    draw=draw,
    claims=(
        Claim(
            id="step_size.first_order",
            statement="Halving the learning rate halves the distance of descent from the flow.",
            source="Euler's method is of first order",
            expected="order 1",
            tolerance="0.02: the next order is a share of 1% at the largest rate",
            check=_check_order,
        ),
    ),
)
