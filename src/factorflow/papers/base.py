"""What a paper is made of: figures with their experiments, and claims about their results."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from factorflow._names import named
from factorflow.experiments import Experiment

if TYPE_CHECKING:
    import matplotlib.figure
    import xarray as xr

__all__ = ["Claim", "Figure", "Overlays", "Paper", "Verdict"]

# A user's own curves over the loss, by label: drawn on every panel beside the theorem's bounds.
Overlays = Mapping[str, Callable[[np.ndarray], Any]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a claim: a row of `claims.json`."""

    id: str
    statement: str
    source: str
    expected: str
    measured: str
    tolerance: str
    holds: bool


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement checked on the results just computed.

    **Attributes:**

    - `id`: unique in its paper.
    - `statement`: what is claimed, in a sentence.
    - `source`: the theorem, table or plot it comes from.
    - `expected`, `tolerance`: the number and how far from it is accepted, as text with the reason.
    - `check`: dataset of the figure -> (measured, holds). It looks at numbers only; NaN fails.
    """

    id: str
    statement: str
    source: str
    expected: str
    tolerance: str
    check: Callable[["xr.Dataset"], tuple[str, bool]]

    def __call__(self, dataset: "xr.Dataset") -> Verdict:
        try:
            measured, holds = self.check(dataset)
        except (LookupError, ValueError) as error:
            # A claim without its data does not hold; the report must still be written.
            measured, holds = f"could not be checked: {error}", False
        return Verdict(
            self.id,
            self.statement,
            self.source,
            self.expected,
            measured,
            self.tolerance,
            bool(holds),
        )


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure: which experiments, how they are drawn, and what is claimed of them.

    **Attributes:**

    - `name`: file name, after what it shows.
    - `title`, `caption`: for the report; the caption defines quantities and units.
    - `experiments`: scale -> list of experiments. Figures may share some: they run once. A figure
        without any is left out at that scale.
    - `draw`: (dataset, overlays) -> matplotlib figure.
    - `claims`: about this figure's dataset.
    - `derive`: (dataset, experiments) -> dataset, with what is computed from finished runs; what it
        drops is neither drawn nor written to the figure's table.
    """

    name: str
    title: str
    caption: str
    experiments: Callable[[str], list[Experiment]]
    draw: Callable[["xr.Dataset", Overlays], "matplotlib.figure.Figure"]
    claims: tuple[Claim, ...]
    derive: Callable[["xr.Dataset", list[Experiment]], "xr.Dataset"] = lambda dataset, _: dataset


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper: its figures, how to cite it, and what to know when comparing with it.

    `durations` says by scale how long all of it takes on two cores, as measured.
    """

    name: str
    title: str
    abstract: str
    citation: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    durations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def figure(self, name: str) -> Figure:
        """The figure of that name."""
        figures = {figure.name: figure for figure in self.figures}
        return figures[named("figure", name, figures)]
