"""What is claimed of the tensor experiments."""

from typing import TYPE_CHECKING

import numpy as np

from factorflow.papers.base import Claim
from factorflow.papers.razin_cohen_2020.settings import SOURCE
from factorflow.papers.razin_cohen_2020.tensors.results import converged
from factorflow.papers.selection import select

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["baseline_claim", "error_claim", "init_claim", "rank_claim", "wilson_interval"]

# The quantile of a two-sided 95% interval.
_Z = 1.959964


def rank_claim(figure: str, rank: int, least: float, start: int) -> Claim:
    """Most runs have the rank of the ground truth, and it is certain that they have."""
    return Claim(
        id=f"{figure}.rank",
        statement=(
            f"From {start} observations on, descent without any bound on the rank and without a "
            f"regularizer ends at a tensor of CP rank {rank}, that of the ground truth: lower and "
            "upper bound agree on it."
        ),
        source=f"{SOURCE}, tensor experiments; share measured for factorflow over four targets",
        expected=f"at least {least:.0%} of the runs, those that did not converge included",
        tolerance="rank at a mean squared error of 1e-6; 95% interval of the share by Wilson",
        check=lambda dataset: _check_rank(dataset, rank, least, start),
    )


def _check_rank(dataset: "xr.Dataset", rank: int, least: float, start: int) -> tuple[str, bool]:
    runs = _from(dataset, start)
    hits = np.asarray(runs["rank_lower"]) == rank
    hits &= np.asarray(runs["rank_upper"]) == rank
    if not hits.size:
        return f"no runs with {start} observations or more", False
    low, high = wilson_interval(int(hits.sum()), hits.size)
    measured = (
        f"{hits.sum()} of {hits.size} runs, {hits.mean():.1%} ({low:.0%} to {high:.0%}); "
        f"{_unfinished(runs)}"
    )
    return measured, bool(hits.mean() >= least)


def error_claim(figure: str, limits: tuple[tuple[int, float], ...]) -> Claim:
    """Median errors at initialization 1e-3, from numbers of observations on."""
    words = ", ".join(f"{limit:g} from {start} observations on" for start, limit in limits)
    return Claim(
        id=f"{figure}.error",
        statement=f"At initialization 1e-3 the median relative error is at most {words}.",
        source=f"{SOURCE}, tensor experiments (plot), and our own measurements",
        expected=words,
        tolerance="limits are several times the errors measured, which differ between draws",
        check=lambda dataset: _check_error(dataset, limits),
    )


def _check_error(dataset: "xr.Dataset", limits) -> tuple[str, bool]:
    medians = _medians(select(dataset, initializer__factor_scale=1e-3))
    holds, words = bool(medians), []
    for (start, limit), end in zip(limits, [*(s for s, _ in limits[1:]), np.inf], strict=True):
        part = {n: error for n, error in medians.items() if start <= n < end}
        holds &= bool(part) and all(error <= limit for error in part.values())
        words += [f"{n}: {error:.1e}" for n, error in part.items()]
    return "; ".join(words) or "no runs", holds


def init_claim(figure: str, start: int) -> Claim:
    """The smaller the initialization, the smaller the error."""
    return Claim(
        id=f"{figure}.init",
        statement=(
            f"From {start} observations on, a smaller initialization gives a smaller median error."
        ),
        source=f"{SOURCE}, tensor experiments",
        expected="falling with the initialization",
        tolerance="medians over all numbers of observations together; none",
        check=lambda dataset: _check_init(dataset, start),
    )


def _check_init(dataset: "xr.Dataset", start: int) -> tuple[str, bool]:
    runs = _from(dataset, start)
    scales = np.asarray(runs["initializer.factor_scale"])
    errors = np.asarray(runs["reconstruction_error"])[:, 0]
    medians = {scale: float(np.median(errors[scales == scale])) for scale in np.unique(scales)}
    measured = "; ".join(f"{scale:g}: {median:.1e}" for scale, median in medians.items())
    # Ascending in the scale, ascending in the error; NaN fails.
    rising = np.diff(list(medians.values())) > 0
    return measured, bool(len(medians) > 1 and np.all(rising))


def baseline_claim(figure: str, rank: int, start: int, end: int) -> Claim:
    """Filling in zeros is far off, in error and in rank."""
    return Claim(
        id=f"{figure}.baseline",
        statement=(
            f"From {start} to {end} observations, filling in zeros errs at least ten times as much "
            "as the median run at initialization 1e-3, and the lower bound on its rank is above "
            "the rank of the ground truth."
        ),
        source=f"{SOURCE}, tensor experiments: the linear baseline",
        expected=f"ratio of 10 or more, rank above {rank}",
        tolerance="none: the lower bound is rigorous",
        check=lambda dataset: _check_baseline(dataset, rank, start, end),
    )


def _check_baseline(dataset: "xr.Dataset", rank: int, start: int, end: int) -> tuple[str, bool]:
    runs = _from(select(dataset, initializer__factor_scale=1e-3), start)
    observed = np.asarray(runs["task.n_observed"])
    runs = runs.isel(run=np.flatnonzero(observed <= end))
    if not runs.sizes["run"]:
        return "no runs", False
    medians, baseline = _medians(runs), np.asarray(runs["baseline_error"])
    observed = np.asarray(runs["task.n_observed"])
    ratios = [baseline[observed == n].min() / error for n, error in medians.items()]
    lowest = np.asarray(runs["baseline_rank_lower"]).min()
    measured = f"ratios of {min(ratios):.3g} and more; ranks of at least {lowest:g}"
    return measured, bool(min(ratios) >= 10 and lowest > rank)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    r"""95% interval of a share, $\frac{p + z^2/2n \pm z \sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}$."""
    share, spread = hits / count, _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return float(middle - half), float(middle + half)


def _from(dataset: "xr.Dataset", start: int) -> "xr.Dataset":
    return dataset.isel(run=np.flatnonzero(np.asarray(dataset["task.n_observed"]) >= start))


def _medians(runs: "xr.Dataset") -> dict[int, float]:
    """Median error by number of observations; a run that failed counts as infinitely wrong."""
    observed = np.asarray(runs["task.n_observed"]).astype(int)
    errors = np.nan_to_num(np.asarray(runs["reconstruction_error"])[:, 0], nan=np.inf)
    return {int(n): float(np.median(errors[observed == n])) for n in np.unique(observed)}


def _unfinished(runs: "xr.Dataset") -> str:
    count = int(np.sum(~converged(runs)))
    return "all converged" if not count else f"{count} did not converge"
