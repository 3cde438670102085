r"""Where flow from a multiple of the identity ends, for measurements that are diagonal.

All stays diagonal. With $x$ the diagonal of the product and $B$ the rows of diagonals measured,
$\dot x_i = -L\, x_i^{2 - 2/L}\, (B^\top r)_i$ with the residuals $r$. Integrated over all time,
with $\nu = -L \int r$ and $q = 1 - 2/L$:

$$x = \alpha\, e^{B^\top \nu} \quad (L = 2), \qquad
  x = \big( \alpha^{-q} - q\, B^\top \nu \big)^{-1/q} \quad (L \ge 3), \qquad B x = b,$$

which is the stationarity of a convex function of $\nu$.
"""

import numpy as np
from numpy.typing import NDArray

from factorflow._problem import Sensing

__all__ = ["diagonal_limit"]

_ITERATIONS = 500
_ACCURACY = 1e-10


def diagonal_limit(problem: Sensing, depth: int, product_scale: float) -> NDArray[np.float64]:
    """The diagonal of the limit, by a damped Newton method; NaN where that does not settle."""
    measurements = np.asarray(problem.measurements, np.float64)
    rows = np.diagonal(measurements, axis1=1, axis2=2)
    if not np.array_equal(measurements, np.eye(rows.shape[1]) * rows[:, None, :]):
        raise ValueError("The closed form is for diagonal measurements: use basis='identity'.")
    values = np.asarray(problem.values, np.float64)
    nu = np.zeros(len(values))
    for _ in range(_ITERATIONS):
        x, slope, potential = _evaluate(rows, values, nu, depth, product_scale)
        gradient = rows @ x - values
        if np.linalg.norm(gradient) <= _ACCURACY * np.linalg.norm(values):
            return x
        # By least squares: far below the limit slopes are tiny, and differ by many decades.
        root = rows * np.sqrt(slope)
        step = -np.linalg.lstsq(root @ root.T, gradient)[0]
        descent, length = gradient @ step, 1.0
        while length > 1e-30:
            ahead = _evaluate(rows, values, nu + length * step, depth, product_scale)[2]
            # Near the end the fall drowns in rounding.
            if ahead <= potential + 1e-4 * length * descent + 1e-13 * abs(potential):
                break
            length /= 2
        nu = nu + length * step
    return np.full(rows.shape[1], np.nan)


def _evaluate(rows, values, nu, depth: int, product_scale: float):
    """The diagonal, its derivative by the exponent, and the potential, infinite where undefined."""
    exponent = nu @ rows
    with np.errstate(over="ignore", invalid="ignore"):
        if depth == 2:
            x = product_scale * np.exp(exponent)
            return x, x, np.sum(x) - values @ nu
        q = 1 - 2 / depth
        y = product_scale**-q - q * exponent
        if np.any(y <= 0):
            return y, y, np.inf
        # The derivative of the potential by the exponent is x.
        power = y ** (1 - 1 / q)
        return y ** (-1 / q), y ** (-1 / q - 1), np.sum(power) / (1 - q) - values @ nu
