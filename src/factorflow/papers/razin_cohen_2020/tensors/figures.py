"""Error and rank of completed tensors against the number of observed entries."""

from typing import TYPE_CHECKING, Any

import numpy as np

from factorflow.papers.base import Claim, Figure, Overlays
from factorflow.papers.razin_cohen_2020.tensors.claims import (
    baseline_claim,
    error_claim,
    init_claim,
    rank_claim,
)
from factorflow.papers.razin_cohen_2020.tensors.results import converged, derive
from factorflow.papers.razin_cohen_2020.tensors.settings import DIM, tensor_experiments
from factorflow.papers.selection import select

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FIGURES"]

# Readings of the published plots: (observations, value).
_ERRORS = {
    (3, 1): {1e-3: ((50, 0.15), (100, 4e-3), (150, 4e-4), (200, 5e-6), (250, 2e-6), (511, 2e-6))},
    (4, 1): {1e-3: ((500, 2e-4), (1000, 6e-7))},
}
_BASELINE_RANKS = {
    (3, 1): tuple(
        zip(
            (50, 100, 150, 200, 250, 300, 350, 400, 450, 511),
            (12, 16, 17, 17, 17, 17, 17, 16, 16, 2),
            strict=True,
        )
    ),
}


def _draw(order: int, rank: int, dataset: "xr.Dataset", overlays: Overlays):
    """Errors on the left, ranks on the right."""
    from factorflow.drawing import draw_markers, log_axis, panels, share_legend, style

    del overlays  # functions of the loss have no place here
    with style():
        figure, (left, right) = panels(
            2, ["relative error", "CP rank"], share_y=False, size=(4.6, 3.8)
        )
        log_axis(left, "y")
        log_axis(right, "y")
        left.set_ylabel(r"$\|W - W^*\|_F \, / \, \|W^*\|_F$")
        right.set_ylabel("rank at mean squared error 1e-6")
        for ax in (left, right):
            ax.set_xlabel(f"observed entries, of {DIM**order}")
        scales = sorted(set(np.asarray(dataset["initializer.factor_scale"])), reverse=True)
        width = 0.012 * DIM**order
        for number, scale in enumerate(scales):
            runs = select(dataset, initializer__factor_scale=scale)
            color, name = f"C{number}", f"init {scale:g}"
            _draw_spread(left, runs, "reconstruction_error", name, color)
            _draw_ranks(right, runs, name, color, (number - (len(scales) - 1) / 2) * width)
            readings = _ERRORS.get((order, rank), {}).get(float(scale))
            if readings:
                places, values = np.transpose(readings)
                draw_markers(left, places, values, f"published, {name}", color=color)
        _draw_spread(left, dataset, "baseline_error", "zeros filled in", "0.35")
        _draw_baseline_ranks(right, dataset)
        if (order, rank) in _BASELINE_RANKS:
            places, values = np.transpose(_BASELINE_RANKS[order, rank])
            draw_markers(right, places, values, "published, zeros filled in", color="0.35")
        right.axhline(rank, color="black", linestyle=(0, (6, 1.5, 1, 1.5)), linewidth=1.3, zorder=1)
        right.plot([], [], color="black", linestyle=(0, (6, 1.5, 1, 1.5)), label="ground truth")
        ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)]
        right.set_yticks(ticks, [str(tick) for tick in ticks])
        right.minorticks_off()
        highest = np.nanmax([dataset["baseline_rank_upper"].max(), dataset["rank_upper"].max()])
        right.set_ylim(0.8, 1.3 * float(highest))
        share_legend(figure, [left, right])
        return figure


def _draw_spread(ax: Any, runs: "xr.Dataset", name: str, label: str, color: str) -> None:
    """Median and quartiles over the repetitions; runs are points, unfinished ones crosses."""
    values = np.asarray(runs[name])
    values = values[:, 0] if values.ndim == 2 else values
    observed = np.asarray(runs["task.n_observed"])
    places = np.unique(observed)
    quartiles = np.array([np.nanpercentile(values[observed == n], (25, 50, 75)) for n in places])
    ax.plot(places, quartiles[:, 1], color=color, label=label)
    ax.fill_between(places, quartiles[:, 0], quartiles[:, 2], color=color, alpha=0.18, linewidth=0)
    if name.startswith("baseline"):
        return
    done = converged(runs)
    ax.plot(observed[done], values[done], ".", color=color, markersize=4, alpha=0.6)
    _draw_unfinished(ax, observed[~done], values[~done], label, color)


def _draw_unfinished(ax: Any, observed, values, label: str, color: str) -> None:
    if observed.size:
        name = f"not converged, {label} ({observed.size})"
        ax.plot(observed, values, "x", color=color, markersize=7, markeredgewidth=1.6, label=name)


def _draw_ranks(ax: Any, runs: "xr.Dataset", label: str, color: str, offset: float) -> None:
    """Median and quartiles of the upper bounds; where it is above the lower one, the interval."""
    lower, upper = (np.asarray(runs[f"rank_{side}"]) for side in ("lower", "upper"))
    observed = np.asarray(runs["task.n_observed"])
    places = np.unique(observed)
    quartiles = np.array([np.nanpercentile(upper[observed == n], (25, 50, 75)) for n in places])
    ax.plot(places + offset, quartiles[:, 1], color=color)
    band = quartiles[:, 0], quartiles[:, 2]
    ax.fill_between(places + offset, *band, color=color, alpha=0.18, linewidth=0)
    open_ = lower < upper
    ax.vlines(observed[open_] + offset, lower[open_], upper[open_], color=color, linewidth=1)
    done = converged(runs)
    ax.plot(observed[done] + offset, upper[done], ".", color=color, markersize=4, alpha=0.6)
    ax.plot(observed[~done] + offset, upper[~done], "x", color=color, markersize=7)


def _draw_baseline_ranks(ax: Any, dataset: "xr.Dataset") -> None:
    observed = np.asarray(dataset["task.n_observed"])
    places = np.unique(observed)
    sides = [np.asarray(dataset[f"baseline_rank_{side}"]) for side in ("lower", "upper")]
    low, high = (np.array([np.median(s[observed == n]) for n in places]) for s in sides)
    ax.fill_between(
        places, low, high, color="0.35", alpha=0.25, linewidth=0, label="its rank lies in here"
    )
    for edge in (low, high):
        ax.plot(places, edge, color="0.35", linewidth=0.8)


def _figure(order: int, rank: int, claims: tuple[Claim, ...]) -> Figure:
    how = (
        "Descent as published: one global step 1e-2 over the root of the running mean of the "
        "squared gradient norm, to a mean squared error of 1e-6 at three validations in a row, one "
        "every 100 iterations."
        if order == 3
        else "Gradient flow across its plateaus by the multirate flow, ended at a mean squared "
        "error of 1e-12, where descent would stand still for a million iterations; published "
        "errors are those of descent ended at 1e-6."
    )
    return Figure(
        name=f"tensor_order_{order}_rank_{rank}",
        title=f"Completion of a tensor of order {order} and CP rank {rank}",
        caption=(
            f"A random tensor of {' x '.join([str(DIM)] * order)} entries and CP rank {rank}, "
            "Frobenius norm 1, fitted to some of its entries by a CP factorization with "
            f"{DIM ** (order - 1)} components, enough for any tensor, from Gaussian factors of two "
            f"standard deviations. {how} Left: relative error over all entries; lines are medians, "
            "bands quartiles, points runs. Right: CP rank of the result at a mean squared error of "
            "1e-6; where the bounds differ, a line spans them."
            "\n\n"
            "Grey: the observed entries with zeros for all others. The exact rank of such a tensor "
            "is out of reach: the band spans the medians of a rigorous lower and an attained upper "
            "bound. Diamonds: readings of the published plots, by alternating least squares from "
            "one start for the rank. Crosses: runs that ended at their limit of steps."
        ),
        experiments=lambda scale: tensor_experiments(order, rank, scale),
        draw=lambda dataset, overlays: _draw(order, rank, dataset, overlays),
        claims=claims,
        derive=derive,
    )


def _claims(order: int, rank: int, share: tuple[float, int], errors) -> tuple[Claim, ...]:
    name = f"tensor_order_{order}_rank_{rank}"
    start, end = errors[0][0], 450 if order == 3 else 3500
    claims = (
        rank_claim(name, rank, *share),
        error_claim(name, errors),
        baseline_claim(name, rank, start, end),
    )
    # At order 4 the error is that which the final loss allows, from either initialization.
    return (*claims, init_claim(name, start)) if order == 3 else claims


FIGURES = (
    _figure(3, 1, _claims(3, 1, (0.85, 150), ((200, 3e-4), (300, 1e-4)))),
    _figure(3, 3, _claims(3, 3, (0.9, 300), ((200, 1e-2),))),
    _figure(4, 1, _claims(4, 1, (0.85, 1000), ((500, 1e-3), (1000, 1e-4)))),
    _figure(4, 3, _claims(4, 3, (0.85, 1000), ((1000, 1e-2),))),
    _figure(5, 1, (rank_claim("tensor_order_5_rank_1", 1, 0.85, 8000),)),
)
