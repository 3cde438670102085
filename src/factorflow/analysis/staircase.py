"""When components rise along a run, one at a time or together, and how sharply."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Staircase", "escapes"]


@dataclasses.dataclass(frozen=True)
class Staircase:
    """The components that rose, in the order of their moments.

    **Attributes:**

    - `moments`: first moment at which each passes `level` of its final norm.
    - `starts`, `ends`: the same for `low` and `high`.
    - `components`: which columns of `norms` they are.
    - `finals`: their final norms.
    """

    moments: NDArray[np.float64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    components: NDArray[np.intp]
    finals: NDArray[np.float64]

    @property
    def count(self) -> int:
        """How many components rose."""
        return int(self.moments.size)

    @property
    def widths(self) -> NDArray[np.float64]:
        """How long each took, from `low` to `high`."""
        return self.ends - self.starts

    @property
    def overlaps(self) -> int:
        """How many components pass `level` before the one ahead of them has passed `high`."""
        return int(np.sum(self.moments[1:] < self.ends[:-1]))


def escapes(
    moments: ArrayLike,
    norms: ArrayLike,
    level: float | int = 0.5,
    *,
    low: float | int = 0.1,
    high: float | int = 0.9,
    least: float | int = 0.1,
) -> Staircase:
    r"""The staircase of component norms along a run: which components rise, when and how fast.

    Component $r$ counts as risen if its final norm is at least `least` times the largest one. It
    passes the share $\lambda$ of that norm at the moment

    $$t_r(\lambda) = \min \{ t : \sigma_r(t) \ge \lambda\, \sigma_r(T) \},$$

    interpolated between rows linearly in $\log \sigma_r$, since norms leave a saddle exponentially.
    A norm that is above the share from the first row on passes it there; one that starts at zero
    passes it at the later row.

    **The columns may be components, or ranks.** Columns of `component_norms` keep their identity: a
    column is one component all along. Those of `largest_component_norms[k]` are sorted anew in
    every row: column `k` is the norm of whichever component is `k`-th largest then. Such a curve is
    well defined, and tells when the run has `k` components of a size; where two components trade
    places, it passes from one to the other. The two agree as long as components rise one after
    another to norms that fall.

    **Arguments:**

    - `moments`: steps or times of the rows, increasing, shape `(rows,)`.
    - `norms`: norms in those rows, not negative, shape `(rows, components)`. The last row is the
        end: cut off rows that were not reached.
    - `level`: the share that marks the moment, between `low` and `high`.
    - `low`, `high`: the shares between which the width is measured.
    - `least`: share of the largest final norm from which a component counts as risen.

    **Returns:** a `Staircase`; an empty one if all norms end at zero.

    **Raises:** `ValueError` for shapes that do not fit, moments that do not increase, norms that
    are negative or not finite, and shares that are out of order.

    !!! example

        ```python
        >>> import numpy as np
        >>> from factorflow.analysis import escapes
        >>> steps = np.arange(5)
        >>> norms = np.array([[1e-4, 1e-4, 1e-4], [1.0, 1e-4, 1e-4], [2.0, 1e-4, 1e-4],
        ...                   [2.0, 1.0, 1e-4], [2.0, 1.0, 1e-4]])
        >>> staircase = escapes(steps, norms)
        >>> staircase.count, staircase.moments.round(2).tolist()
        (2, [1.0, 2.92])

        ```
    """
    times = np.asarray(moments, np.float64)
    sizes = np.asarray(norms, np.float64)
    if times.ndim != 1 or sizes.ndim != 2 or times.size != sizes.shape[0] or not times.size:
        raise ValueError(
            "moments must have shape (rows,) and norms (rows, components) with at least one row, "
            f"got {times.shape} and {sizes.shape}."
        )
    if not (np.all(np.isfinite(times)) and np.all(np.diff(times) > 0)):
        raise ValueError("moments must be finite and increase from row to row.")
    if not np.all(np.isfinite(sizes) & (sizes >= 0)):
        raise ValueError("norms must be finite and not negative.")
    if not 0 < low <= level <= high <= 1:
        raise ValueError(
            "shares must satisfy 0 < low <= level <= high <= 1, got "
            f"low={low}, level={level}, high={high}."
        )
    if not 0 < least <= 1:
        raise ValueError(f"least must be in (0, 1], got {least}.")
    finals = sizes[-1]
    largest = finals.max(initial=0.0)
    risen = np.flatnonzero((finals >= least * largest) & (finals > 0))
    shares = (level, low, high)
    passed = np.array([[_passing(times, sizes[:, r], x) for x in shares] for r in risen])
    passed = passed.reshape(-1, 3)
    # Ties keep the order of the columns.
    order = np.argsort(passed[:, 0], kind="stable")
    at, start, end = passed[order].T
    return Staircase(at, start, end, risen[order], finals[risen[order]])


def _passing(times: NDArray[np.float64], sizes: NDArray[np.float64], share: float) -> float:
    """The first moment at which the sizes are at or above the share of the last of them."""
    wanted = share * sizes[-1]
    row = int(np.argmax(sizes >= wanted))
    if row == 0:
        return float(times[0])
    before, after = sizes[row - 1], sizes[row]
    if before == 0:
        return float(times[row])
    part = np.log(wanted / before) / np.log(after / before)
    return float(times[row - 1] + part * (times[row] - times[row - 1]))
