r"""The end-to-end flow of 2x2 products where their singular values meet.

In the coordinates $(E, H, F, K)$ of
$W = \begin{pmatrix} E + F & K - H \\ K + H & E - F \end{pmatrix}$ the singular values are
$e \pm f$ with $e = \sqrt{E^2 + H^2}$ and $f = \sqrt{F^2 + K^2}$. The flow depends on $f$ through
even functions only, and so is smooth at $f = 0$, where singular vectors are not defined.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from factorflow._types import FloatArray, FloatScalar, Vector

__all__ = [
    "Four",
    "conformal_field",
    "four",
    "from_conformal",
    "from_singular",
    "matrix",
    "multiply",
    "power_of_two",
    "to_conformal",
]

# Series in (f / e)^2 up to here, and nothing beyond: the chart is left at 1/16, and a step that
# would go farther is refused.
_LARGEST = 0.25
_TERMS = 27

Four = tuple[FloatScalar, FloatScalar, FloatScalar, FloatScalar]


def to_conformal(entries: Four) -> Four:
    """$(E, H, F, K)$ of the entries of a matrix, row by row."""
    a, b, c, d = entries
    return (a + d) / 2, (c - b) / 2, (a - d) / 2, (b + c) / 2


def from_conformal(y: Four) -> Four:
    """The entries of the matrix of $(E, H, F, K)$, row by row."""
    e, h, f, k = y
    return e + f, k - h, k + h, e - f


def four(y: Vector) -> Four:
    """Four numbers, as the scalars that XLA fuses."""
    return y[0], y[1], y[2], y[3]


def matrix(entries: Four) -> FloatArray:
    """The 2x2 matrix of its entries, row by row."""
    return jnp.stack(entries).reshape(2, 2)


def multiply(left: Four, right: Four) -> Four:
    """The product of two matrices, entries row by row."""
    (a, b, c, d), (p, q, r, s) = left, right
    return a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s


def power_of_two(size: FloatScalar) -> FloatScalar:
    """The power of two just above a size, or 1 for zero."""
    mantissa, _ = jnp.frexp(size)
    return jnp.where(size > 0, size / jnp.where(size > 0, mantissa, 1), 1)


def from_singular(conformal: Four, log_det: FloatScalar, log_unit: FloatScalar) -> Vector:
    """Spectral coordinates of conformal ones that are multiples of `exp(log_unit)`."""
    e, h, f, k = conformal
    first = jnp.log(jnp.hypot(e, h) + jnp.hypot(f, k)) + log_unit
    difference, total = jnp.arctan2(h, e), jnp.arctan2(k, f)
    return jnp.stack([first, log_det - first, (total + difference) / 2, (total - difference) / 2])


def conformal_field(y: Four, gradient: Four, depth: int, unit: FloatScalar) -> Four:
    """The end-to-end flow of a product with positive determinant, as a velocity of `y`.

    Coordinates and velocity are multiples of `unit`, so that no square or power of a product of
    any size leaves the range of its dtype.
    """
    slopes = to_conformal(gradient)
    along_inner = slopes[0] * y[0] + slopes[1] * y[1]
    along_outer = slopes[2] * y[2] + slopes[3] * y[3]
    size = y[0] ** 2 + y[1] ** 2
    size = jnp.where(size > 0, size, 1)
    u = (y[2] ** 2 + y[3] ** 2) / size
    odd, denominator, remainder = _series(jnp.where(u < _LARGEST, u, jnp.nan), depth)
    off, excess = 2 / denominator, remainder / denominator
    to_inner = (u * excess * along_inner + odd * along_outer) / size
    to_outer = (excess * along_outer + odd * along_inner) / size
    power = -(unit ** (1 - 2 / depth)) * jnp.sqrt(size) ** (2 - 2 / depth)
    return (
        power * (off * slopes[0] + to_inner * y[0]),
        power * (off * slopes[1] + to_inner * y[1]),
        power * (off * slopes[2] + to_outer * y[2]),
        power * (off * slopes[3] + to_outer * y[3]),
    )


def _series(u: FloatScalar, depth: int) -> tuple[FloatScalar, FloatScalar, FloatScalar]:
    """The three series at once, by Horner's rule."""
    coefficients = jnp.asarray(_coefficients(depth)[::-1], u.dtype)
    # A loop: written out, it would be compiled a hundred times for a chart that few runs enter.
    values, _ = lax.scan(lambda v, row: (v * u + row, None), jnp.zeros(3, u.dtype), coefficients)
    return values[0], values[1], values[2]


@functools.cache
def _coefficients(depth: int) -> Any:
    r"""Three even functions as series in $u = (f / e)^2$, for $e = 1$: a row per order.

    The weights of the end-to-end flow are $L \sigma_a^q$ on the diagonal, $q = 2 - 2/L$, with mean
    $m$ and half difference $f d$, and $\omega = (\sigma_1^2 - \sigma_2^2) /
    (\sigma_1^{2/L} - \sigma_2^{2/L})$ off it. Here are $d$, the denominator $c$ of
    $\omega = 2 / c$, and $c (m - \omega) / u$.
    """
    q, r = 2 - 2 / depth, 2 / depth
    even = depth * np.array([_binomial(q, 2 * k) for k in range(_TERMS)])
    odd = depth * np.array([_binomial(q, 2 * k + 1) for k in range(_TERMS)])
    denominator = np.array([_binomial(r, 2 * k + 1) for k in range(_TERMS)])
    # The constant term is L * 2 / L - 2 = 0.
    remainder = np.append(np.convolve(even, denominator)[1:_TERMS], 0.0)
    return np.stack([odd, denominator, remainder], axis=1)


def _binomial(power: float, order: int) -> float:
    return math.prod(((power - j) / (j + 1) for j in range(order)), start=1.0)
