"""Greedy low-rank learning: the curve that gradient flow follows from vanishing initialization."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from factorflow._certify import Certify
from factorflow._dynamics import AbstractDynamics, GradientFlow
from factorflow._factorization import DeepMatrix
from factorflow._problem import AbstractProblem
from factorflow._spec import as_arrays
from factorflow.analysis._greedy_curves import distances_to_polyline
from factorflow.analysis._greedy_growth import Growth
from factorflow.analysis._greedy_phases import GreedyPhase as GreedyPhase
from factorflow.analysis._greedy_phases import GreedyTrajectory as GreedyTrajectory

__all__ = [
    "DistanceFromGreedy",
    "GreedyPhase",
    "GreedyTrajectory",
    "distance_from_greedy",
    "greedy_low_rank",
]


@dataclasses.dataclass(frozen=True)
class DistanceFromGreedy:
    """How far a trajectory is from greedy low-rank learning.

    **Attributes:**

    - `distances`: Frobenius distance of each product to the nearest point of the greedy curve.
    - `maximum`: the largest of them.
    - `relative`: that over the largest Frobenius norm on the greedy curve.
    - `at`: the row of the largest.
    """

    distances: NDArray[np.float64]
    maximum: float
    relative: float
    at: int


def greedy_low_rank(
    problem: AbstractProblem,
    *,
    depth: int = 2,
    symmetric: bool = False,
    seed_scale: float = 1e-6,
    max_rank: int | None = None,
    loss: float | None = None,
    gradient_norm: float = 1e-7,
    tie_tolerance: float = 1e-6,
    rows: int = 500,
    max_steps: int = 3000,
    dynamics: AbstractDynamics | None = None,
    certify: Certify = "cheap",
) -> GreedyTrajectory:
    r"""Greedy low-rank learning: the limit of gradient flow as its initialization vanishes.

    With $W_0 = 0$, phase $r$ takes the leading singular vectors $u, v$ of $-\nabla \ell(W_{r-1})$,
    starts from

    $$W_{r-1} + \epsilon\, u v^\top,$$

    follows gradient flow of balanced factors of rank $r$ and depth $L$ until it is stationary, and
    calls the result $W_r$. In the limit $\epsilon \to 0$ all phases, one after another, are the
    curve that flow of full rank follows from vanishing initialization at depth 2, if all leading
    values are simple. At depth 3 and more every direction of descent can be the limit of a phase,
    since small factors grow faster than exponentially: which one is decided by the initialization
    too, and only initializations that favor the leading one follow this curve.

    **Arguments:**

    - `problem`: over matrices, e.g. `Completion` or `Sensing`. It is followed in double precision.
    - `depth`: number of factors, 2 or more.
    - `symmetric`: follow $W = U U^\top$ instead: the leading eigenvector of the symmetric part of
        $-\nabla \ell$, and only while its eigenvalue is positive.
    - `seed_scale`: $\epsilon$ in units of the solution's size, $2 \ell(0) / \|\nabla \ell(0)\|_2$.
    - `max_rank`: where to end at the latest; the smaller side of the product by default.
    - `loss`: where to end; 1e-8 of the loss of zero by default.
    - `gradient_norm`: norm of the factors' gradient at which a phase is stationary, in units of its
        natural size, $\|\nabla \ell(0)\|_2$ times the solution's size to the power $1 - 1/L$. A
        critical point is the last one if its $\|\nabla \ell\|_2$ is below 10 times that share of
        the one at zero.
    - `tie_tolerance`: leading values that agree to this relative tolerance are tied.
    - `rows`: rows of each phase.
    - `max_steps`: of a phase, whose factors and products are all kept while it runs.
    - `dynamics`: the `GradientFlow` that follows the factors, by default with `"Stabilized"`.
    - `certify`: as for `simulate`.

    All phases have factors of one shape, of hidden width `max_rank`, in which those beyond the
    phase's rank are zero, and stay so. So they share one compilation.

    **Returns:** a `GreedyTrajectory`.

    **Raises:** `ValueError` for problems that are not over matrices (square ones if `symmetric`)
    and for numbers out of range.

    !!! example

        ```python
        >>> import factorflow as ff
        >>> from factorflow.analysis.greedy import greedy_low_rank
        >>> places = [(i, j) for i in range(2) for j in range(2)]
        >>> problem = ff.Completion((2, 2), places, [2.0, 0.0, 0.0, 1.0])
        >>> greedy = greedy_low_rank(problem)
        >>> [phase.values.round(3).tolist() for phase in greedy.phases], greedy.ending
        ([[2.0, 1.0], [1.0, 0.0]], 'loss')

        ```

    ??? cite "Reference"

        ```bibtex
        @inproceedings{li2021towards,
            author = {Li, Zhiyuan and Luo, Yuping and Lyu, Kaifeng},
            title = {Towards Resolving the Implicit Bias of Gradient Descent for Matrix
                     Factorization: Greedy Low-Rank Learning},
            booktitle = {International Conference on Learning Representations},
            year = {2021},
        }
        ```
    """
    shape = tuple(problem.shape)
    if len(shape) != 2 or (symmetric and shape[0] != shape[1]):
        kind = "a square matrix" if symmetric else "a matrix"
        raise ValueError(f"Greedy low-rank learning grows {kind}, this problem's shape is {shape}.")
    for name, value in (
        ("seed_scale", seed_scale),
        ("gradient_norm", gradient_norm),
        ("tie_tolerance", tie_tolerance),
    ):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value}.")
    for name, value, least in (("depth", depth, 2), ("rows", rows, 2), ("max_steps", max_steps, 2)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}.")
    if loss is not None and not loss > 0:
        raise ValueError(f"loss must be positive, got {loss}.")
    dynamics = GradientFlow("Stabilized") if dynamics is None else dynamics
    if not isinstance(dynamics, GradientFlow):
        raise ValueError(
            f"Phases are followed by a GradientFlow, got {type(dynamics).__name__}; leave "
            "dynamics= out, or give GradientFlow(integrator, rtol, atol)."
        )
    max_rank = min(shape) if max_rank is None else max_rank
    if not 1 <= max_rank <= min(shape):
        raise ValueError(
            f"max_rank must lie between 1 and {min(shape)}, the smaller side of {shape}, got "
            f"{max_rank}."
        )
    with jax.enable_x64(True):
        problem = as_arrays(problem, jnp.float64)
        growth = Growth(
            problem=problem,
            deep=DeepMatrix(shape, depth, hidden=max_rank),
            symmetric=symmetric,
            seed_scale=seed_scale,
            gradient_norm=gradient_norm,
            tie_tolerance=tie_tolerance,
            rows=rows,
            max_steps=max_steps,
            dynamics=dynamics,
            certify=certify,
        )
        return growth.grow(loss)


def distance_from_greedy(products: ArrayLike, greedy: GreedyTrajectory) -> DistanceFromGreedy:
    r"""The distance of each product of a trajectory from the greedy curve, and the largest.

    $$d_k = \min_{V \in \text{curve}} \|W_k - V\|_F$$

    over the segments between the rows of `greedy`: how fast a trajectory moves along the curve has
    no influence.

    **Arguments:**

    - `products`: of a trajectory, the measure `"product"`, shape `(rows, m, n)`. Leave out rows
        that were not reached: `products[trajectory.reached]`.
    - `greedy`: from `greedy_low_rank`.

    **Returns:** a `DistanceFromGreedy`.

    **Raises:** `ValueError` for products of another shape, none, or not finite ones.

    !!! example

        ```python
        >>> import numpy as np
        >>> import factorflow as ff
        >>> from factorflow.analysis.greedy import distance_from_greedy, greedy_low_rank
        >>> places = [(i, j) for i in range(2) for j in range(2)]
        >>> problem = ff.Completion((2, 2), places, [2.0, 0.0, 0.0, 1.0])
        >>> greedy = greedy_low_rank(problem)
        >>> products = np.array([np.diag([1.0, 0.0]), np.diag([1.5, 0.1])])
        >>> distance_from_greedy(products, greedy).distances.round(3).tolist()
        [0.0, 0.1]

        ```
    """
    points = np.asarray(products, np.float64)
    if points.ndim != 3 or points.shape[1:] != greedy.shape or not len(points):
        raise ValueError(
            f"products must have shape (rows, {greedy.shape[0]}, {greedy.shape[1]}) with one row "
            f"or more, got {points.shape}."
        )
    if not np.all(np.isfinite(points)):
        raise ValueError(
            "products hold NaN or infinity; leave out rows that were not reached: "
            "`products[trajectory.reached]`."
        )
    curve = greedy.products.reshape(len(greedy.products), -1)
    distances = distances_to_polyline(points.reshape(len(points), -1), curve)
    at = int(np.argmax(distances))
    size = float(np.max(np.linalg.norm(curve, axis=1)))
    # A curve that never leaves zero has no size to compare with.
    relative = float(distances[at]) / size if size > 0 else math.nan
    return DistanceFromGreedy(distances, float(distances[at]), relative, at)
