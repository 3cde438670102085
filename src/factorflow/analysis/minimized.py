"""Norm or rank: what the training of a factorization minimizes on a given problem."""

import dataclasses
import html
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from factorflow._dynamics import AbstractDynamics
from factorflow._factorization import AbstractFactorization
from factorflow._initializer import AbstractInitializer
from factorflow._initializer.base import Sign
from factorflow._problem import AbstractProblem
from factorflow._settings import own_settings
from factorflow.analysis._quantities import (
    Minima,
    Quantity,
    along_loss,
    judge_norms,
    judge_ranks,
)
from factorflow.analysis._runs import Runs, at_scale, certified_runs, default_initializer
from factorflow.analysis._verdict import explain, verdict_of
from factorflow.reference import SolutionSet

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Minimized", "what_is_minimized"]

NORMS = ("nuclear_norm", "frobenius_norm", "spectral_norm", "schatten_norm[0.5]")
# More than a limit needs, since the smallest may be out of reach of a certificate. Where all are
# certified and leave the verdict open, so many more follow, up to a number.
SCALES = tuple(10.0**-k for k in range(2, 9))
_MORE, _MOST = 6, 19
_LEAST_SCALE = 1e-150


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Minimized:
    """What a factorization's training minimizes on a problem, and the evidence.

    `print` it for the table; a notebook shows the same as its cell's last value.

    **Attributes:**

    - `verdict`: `"norm: NAME, ..."`, `"rank"`, `"both"`, `"neither"` or `"undecided"`.
    - `explanation`: why, in a few sentences.
    - `quantities`: a `Quantity` per norm and rank.
    - `minima`: the minimum-norm solutions and the ranks of the solution set.
    - `runs`: what the flows recorded, by scale and seed.
    - `scales`, `seeds`, `start`: of the runs; `start` describes the initialization.
    """

    verdict: str
    explanation: str
    quantities: tuple[Quantity, ...]
    minima: Minima
    runs: Runs
    scales: tuple[float, ...]
    seeds: tuple[int, ...]
    start: str

    @property
    def table(self) -> "xr.Dataset":
        """The quantities as a labelled table over the dimension `quantity`."""
        import xarray as xr

        names = [quantity.name for quantity in self.quantities]
        columns: dict[str, Any] = {
            field: ("quantity", [getattr(quantity, field) for quantity in self.quantities])
            for field in (
                "limit",
                "limit_error",
                "infimum_lower",
                "infimum_upper",
                "attained",
                "ratio",
                "status",
                "loss_slope",
                "trend",
            )
        }
        columns["ratios"] = (
            ("quantity", "scale", "seed"),
            np.array([quantity.ratios for quantity in self.quantities]),
        )
        coords = {"quantity": names, "scale": list(self.scales), "seed": list(self.seeds)}
        columns["certificate"] = (("scale", "seed"), self.runs.verdicts)
        return xr.Dataset(columns, coords, {"verdict": self.verdict, "start": self.start})

    def along_loss(self, name: str) -> np.ndarray:
        """A norm, or the effective rank, over its infimum, in all rows: `(scales, seeds, rows)`.

        NaN where a row is not certified; `runs.losses` are the losses.
        """
        quantity = next((q for q in self.quantities if q.name == name), None)
        if quantity is None or name == "rank":
            known = [q.name for q in self.quantities if q.name != "rank"]
            raise ValueError(f"Nothing along the loss is called {name!r}; there are {known}.")
        values = along_loss(self.runs, name) / quantity.infimum_upper
        return np.where(self.runs.usable, values, np.nan)

    def __str__(self) -> str:
        width = max(len(quantity.name) for quantity in self.quantities)
        head = f"{'':{width}}  {'limit':>11}  {'infimum':>20}  {'ratio':>10}  {'slope':>6}  status"
        lines = [f"{self.verdict} ({self.start})", head]
        lines += [quantity.line(width) for quantity in self.quantities]
        certified = int(np.sum(self.runs.verdicts == "flow_faithful"))
        lines.append(
            f"limit: loss to zero, then scale {self.scales[0]:g} to {self.scales[-1]:g}; slope: of "
            f"the logarithm against that of the loss; {certified} of {self.runs.verdicts.size} "
            "flows certified as a whole"
        )
        if not all(quantity.known for quantity in self.quantities):
            lines.append(
                "a .. <= b: the infimum is at least a, proved, and at most b, the best value found"
            )
        return "\n".join([*lines, "", self.explanation])

    def __repr__(self) -> str:
        names = ", ".join(f"{quantity.name} {quantity.status}" for quantity in self.quantities)
        return f"Minimized({self.verdict!r}: {names})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@own_settings()
def what_is_minimized(
    problem: AbstractProblem,
    factorization: AbstractFactorization,
    initializer: AbstractInitializer | None = None,
    *,
    scales: Sequence[float] | None = None,
    seeds: Sequence[int] | int = 3,
    norms: Sequence[str] = NORMS,
    determinant: Sign | None = "positive",
    semidefinite: bool = False,
    dynamics: AbstractDynamics | None = None,
    loss_ratio: float = 1e-10,
    tolerance: float = 1e-3,
    progress: Callable[[str], None] | None = None,
) -> Minimized:
    r"""Which norm, or whether rank, gradient flow minimizes on a problem as its start vanishes.

    Certified gradient flows start from a shrinking sequence of initialization scales $\alpha$. For
    every norm the limit

    $$\lim_{\alpha \to 0} \lim_{\ell \to 0} \frac{\|W(\alpha, \ell)\|}
      {\inf_{\mathcal{A}(W) = b} \|W\|}$$

    is extrapolated, the loss first and then the scale, and compared with the minimum over all
    solutions; for the rank and the effective rank likewise, with their infimum.

    **Status of a quantity.**

    - `"minimized"`: the ratio tends to 1 within `tolerance`; a rank equals the proved infimum.
    - `"above"`: it stays above.
    - `"diverges"`: at every scale and seed the logarithm of the norm has a slope of -0.4 or less
        against that of the loss, over the last two trusted decades.
    - `"at best known"`: it tends to the smallest value found, which is no proven minimum: for
        quasi-norms, whose minimization is hard, and for ranks whose interval is open.
    - `"undecided"`: the runs do not say: not certified, not settled, or seeds disagree.

    **Verdict.** `"norm: NAME"` where norms are minimized and the rank is above its infimum,
    `"rank"` where the limit has the infimal rank and no norm is minimized, `"both"` where the
    same limit does both, `"neither"`, or `"undecided"`. Norms that tie are listed, the nuclear norm
    first. Quasi-norms are shown, but decide nothing.

    **Arguments:**

    - `problem`: a matrix `Completion` or `Sensing`.
    - `factorization`: usually a `DeepMatrix`.
    - `initializer`: its `product_scale` is replaced by the scales. `None` starts from balanced
        factors of Gaussian products.
    - `scales`: product scales, falling; a geometric series of three or more allows extrapolation.
        `None` takes 1e-2 to 1e-8, and goes on to smaller ones where the verdict is open.
    - `seeds`: integers, or how many.
    - `norms`: names as for `minimum_norm`.
    - `determinant`: its sign at the start, for `initializer=None` and square products; balanced
        flow keeps it. Other signs make other tables: ask again.
    - `semidefinite`: compare with positive semidefinite solutions, for starts that stay in there.
    - `dynamics`: a flow; `None` follows products up to 3x3 in coordinates of their own, others by
        an explicit method first.
    - `loss_ratio`: flows end at this share of the loss of the zero matrix.
    - `tolerance`: relative; what counts as equal to a minimum, and below which a singular value
        that falls counts as vanished.
    - `progress`: called with a line before each stage, e.g. `print`.

    **Returns:** `Minimized`; `print` it, or draw it with `factorflow.drawing.draw_minimized`.

    **Raises:** `ValueError` for observations that no matrix fits (with the smallest residual), for
    a problem with a single solution, for scales that do not fall or that underflow.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> answer = ff.what_is_minimized(
        ...     ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=2), seeds=1)
        >>> answer.verdict
        'rank'

        ```

    ??? cite "Reference"

        The question is that of Gunasekar et al. (2017), Arora et al. (2019) and

        ```bibtex
        @inproceedings{razin2020implicit,
            author = {Razin, Noam and Cohen, Nadav},
            title = {Implicit Regularization in Deep Learning May Not Be Explainable by Norms},
            booktitle = {Advances in Neural Information Processing Systems},
            year = {2020},
        }
        ```
    """
    say = progress or (lambda line: None)
    chosen = SCALES if scales is None else _checked_scales(scales)
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(seed) for seed in seeds)
    if dynamics is not None and not dynamics.continuous:
        raise ValueError(
            f"dynamics must be a flow, got {type(dynamics).__name__}: limits of descent depend on "
            "its step."
        )
    _check_numbers(seeds, norms, loss_ratio, tolerance)
    solutions = SolutionSet.of(problem)
    if solutions.inconsistency > solutions.slack:
        raise ValueError(
            "The observations contradict each other: no matrix has a residual below "
            f"{solutions.inconsistency:.6g}, so there are no solutions to compare with. Drop the "
            "observations that contradict, or average them."
        )
    if solutions.dimension == 0:
        raise ValueError(
            "The observations determine every entry: there is a single solution, and whatever fits "
            "it minimizes every norm and rank. Leave some observations out."
        )
    if not np.any(solutions.values):
        raise ValueError(
            "All observations are zero: the zero matrix is the solution of least norm and rank, "
            "and flow from it does not move. Give observations that are not all zero."
        )
    start = initializer or default_initializer(factorization, determinant)
    at_scale(start, chosen[0])  # refuses before minima are searched
    minima = Minima.of(problem, norms, semidefinite=semidefinite, say=say)

    def flows(of_scales: tuple[float, ...]) -> Runs:
        with jax.enable_x64(True):
            return certified_runs(
                problem,
                factorization,
                start,
                of_scales,
                seeds,
                dynamics=dynamics,
                loss_ratio=loss_ratio,
                say=say,
            )

    runs = flows(chosen)
    quantities, verdict = _judged(runs, minima, chosen, tolerance)
    while scales is None and verdict == "undecided" and len(chosen) < _MOST:
        if not np.all(runs.certified):
            break  # smaller scales are no easier
        more = tuple(chosen[-1] * 10.0**-k for k in range(1, _MORE + 1))
        runs, chosen = runs.followed_by(flows(more)), chosen + more
        quantities, verdict = _judged(runs, minima, chosen, tolerance)
    return Minimized(
        verdict=verdict,
        explanation=explain(verdict, quantities, minima, runs),
        quantities=quantities,
        minima=minima,
        runs=runs,
        scales=chosen,
        seeds=seeds,
        start=_description(start),
    )


def _judged(
    runs: Runs, minima: Minima, scales: tuple[float, ...], tolerance: float
) -> tuple[tuple[Quantity, ...], str]:
    quantities = (
        *judge_norms(runs, minima, scales, tolerance),
        *judge_ranks(runs, minima, scales, tolerance),
    )
    return quantities, verdict_of(quantities)


def _description(initializer: AbstractInitializer) -> str:
    sign = getattr(initializer, "determinant", None)
    return type(initializer).__name__ + (f", {sign} determinant" if sign else "")


def _checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(scale) for scale in np.atleast_1d(np.asarray(scales)))
    falling = all(later < earlier for earlier, later in itertools.pairwise(numbers))
    if len(numbers) < 2 or not falling or not numbers[-1] > 0 or not np.isfinite(numbers[0]):
        raise ValueError(
            f"scales must be two or more positive numbers that fall, got {list(numbers)}: what "
            "happens as they vanish is the question."
        )
    if numbers[-1] < _LEAST_SCALE:
        raise ValueError(
            f"The scale {numbers[-1]:g} underflows: flows compute with squares of products, which "
            f"float64 does not hold below it. End at {_LEAST_SCALE:g} or above."
        )
    return numbers


def _check_numbers(
    seeds: tuple[int, ...], norms: Sequence[str], loss_ratio: float, tolerance: float
) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different integers, got {list(seeds)}.")
    if isinstance(norms, str) or not norms:
        raise ValueError(f"norms must be a list of one name or more, got {norms!r}.")
    if not 0 < loss_ratio <= 1e-4:
        raise ValueError(
            f"loss_ratio must be at most 1e-4, got {loss_ratio}: divergence shows over decades."
        )
    if not 0 < tolerance < 0.1:
        raise ValueError(f"tolerance must lie in (0, 0.1), got {tolerance}.")
