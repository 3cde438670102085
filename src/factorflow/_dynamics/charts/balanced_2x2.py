r"""Charts for the flow of balanced 2x2 factors, in which the determinant cannot change sign.

Reflecting the second column where $\det W < 0$ leaves a product $\tilde W$ with positive
determinant, followed in one of three charts:

- *conformal*, see `conformal`: regular where the singular values meet;
- *spectral*, $(\ln \sigma_1, \ln \sigma_2, \alpha, \beta)$ with
  $\tilde W = \pm R(\alpha) \operatorname{diag}(\sigma_1, \sigma_2) R(\beta)^\top$;
- *residual*, $(\ln \sigma_1, \ln \sigma_2, \tilde w_{12} - z, \tilde w_{21} - z')$, for
  completion of all entries but (1, 1): near the solutions these residuals are as small as the
  loss, and differences of entries of size one would lose them.
"""

import abc
import math
import operator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from factorflow._dynamics.charts.base import AbstractChart, AbstractCharts, Position
from factorflow._dynamics.charts.conformal import (
    Four,
    conformal_field,
    four,
    from_conformal,
    from_singular,
    matrix,
    multiply,
    power_of_two,
    to_conformal,
)
from factorflow._factorization import (
    AbstractFactorization,
    DeepMatrix,
    balanced_from_spectrum,
)
from factorflow._linalg import svd
from factorflow._problem import AbstractProblem, razin_cohen_parameters
from factorflow._product import Dense, Spectral, log_determinant
from factorflow._types import BoolScalar, Factors, FloatArray, FloatScalar, Vector

__all__ = ["Balanced2x2"]

_CONFORMAL, _SPECTRAL, _RESIDUAL = 0, 1, 2

# f / e = 1/4 where sigma_1 / sigma_2 = 5/3: the conformal chart is left; entered again at 1/6.
_APART, _TOGETHER = 1 / 4, 1 / 6
# |w11 / w22| at which the residual chart is entered and left; it is singular at 1.
_STEEP, _FLAT = 2.0, 1.2
_SMALL_LOSS = 1e-2
# |w22 - eps| over eps: once the two agree, their difference has lost what the residuals would keep.
_DIFFERENT, _EQUAL = 1e-1, 1e-3
# A loss this near to its infimum, relatively, has come to rest.
_AT_REST = 1e-6
# The share of their size that errors are relative to near a solution: this multiple of the residual
# over the product, but not below what rounding can resolve.
_RESIDUAL_SHARE, _SMALLEST_SHARE = 100.0, 1e-4
# The logarithm that stands for a singular value of exactly zero; its exponential is zero.
_LOG_ZERO = -1e5


class _Frame(eqx.Module):
    sign: FloatScalar  # of det W: -1, 0 or 1
    column: FloatScalar  # what the second column is multiplied by to make it positive
    flip: FloatScalar  # overall sign of the product, so that angles near pi become small ones
    observed: tuple[FloatScalar, ...]  # z, z' and eps of the reflected problem, if it has a corner
    unit: FloatScalar  # of the conformal coordinates: a power of two near the product's size


class _Geometry(eqx.Module):
    """A point of the spectral or residual chart; matrices are four entries, row by row.

    Scalars and not arrays: XLA fuses them into one loop, where small arrays are kernels each.
    """

    left: Four
    right: Four
    entries: Four
    gradient: Four
    rotated: Four  # left.T @ gradient @ right


class _Conformal(AbstractChart):
    corner: bool = eqx.field(static=True)

    def entries(self, problem: AbstractProblem, y: Vector, frame: _Frame) -> Four:
        """Entries of the reflected product, row by row."""
        del problem
        return from_conformal(four(y * frame.unit))

    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        gradient = _gradient(problem, self.corner, frame, self.entries(problem, y, frame))
        return jnp.stack(conformal_field(four(y), gradient, fz.depth, frame.unit))

    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> FloatScalar:
        return _loss(problem, self.corner, frame, self.entries(problem, y, frame))

    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame):
        gradient = _gradient(problem, self.corner, frame, self.entries(problem, y, frame))
        moved = from_conformal(four(self.field(problem, fz, y, frame) * frame.unit))
        return -sum(map(operator.mul, gradient, moved), jnp.zeros_like(y[0]))

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        size = jnp.hypot(y[0], y[1]) + jnp.hypot(y[2], y[3])
        share = _share(self.loss(problem, fz, y, frame), size * frame.unit)
        return jnp.broadcast_to(size * share, (4,))

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Spectral:
        inner, outer = jnp.hypot(y[0], y[1]), jnp.hypot(y[2], y[3])
        values = inner + outer, jnp.maximum(inner - outer, 0)
        first, second = (jnp.log(value) + jnp.log(frame.unit) for value in values)
        return _product(self.entries(problem, y, frame), (first, second), frame)

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factors:
        product = self.product(problem, fz, y, frame)
        left, _, right = svd(product.dense() / frame.unit)
        return balanced_from_spectrum(fz, left, product.log_values, right)


class _AbstractPolar(AbstractChart):
    """The first two coordinates are the logarithms of the singular values."""

    corner: bool = eqx.field(static=True)

    @abc.abstractmethod
    def geometry(self, problem: AbstractProblem, y: Vector, frame: _Frame) -> _Geometry:
        """Singular vectors, entries and gradient."""

    def entries(self, problem: AbstractProblem, y: Vector, frame: _Frame) -> Four:
        """Entries of the reflected product, row by row."""
        return self.geometry(problem, y, frame).entries

    def loss(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> FloatScalar:
        at = self.geometry(problem, y, frame)
        if not self.corner:
            return _loss(problem, self.corner, frame, at.entries)
        return _half_squares(at.gradient)

    def dissipation(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame):
        g = self.geometry(problem, y, frame).rotated
        first, off, second = _weights(y, fz.depth)
        return first * g[0] ** 2 + off * (g[1] ** 2 + g[2] ** 2) + second * g[3] ** 2

    def product(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Spectral:
        return _product(self.geometry(problem, y, frame).entries, (y[0], y[1]), frame)

    def factors(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Factors:
        at = self.geometry(problem, y, frame)
        logs = self.product(problem, fz, y, frame).log_values
        column = jnp.stack([jnp.ones_like(frame.column), frame.column])
        return balanced_from_spectrum(fz, matrix(at.left), logs, matrix(at.right).T * column)


class _Spectral(_AbstractPolar):
    def geometry(self, problem: AbstractProblem, y: Vector, frame: _Frame) -> _Geometry:
        return _geometry(problem, self.corner, y, y[2], y[3], frame)

    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        g = self.geometry(problem, y, frame).rotated
        # By the ratio of the singular values: either may be too small for a number.
        ratio = jnp.exp(y[1] - y[0])
        power = 2 / fz.depth
        speed = jnp.exp((1 - power) * y[0]) / -jnp.expm1(power * (y[1] - y[0]))
        a, b = g[2] + ratio * g[1], g[1] + ratio * g[2]
        return jnp.stack([*_growth(y, g, fz.depth, frame), -speed * a, -speed * b])

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        share = _share(self.loss(problem, fz, y, frame), jnp.exp(y[0]))
        one = jnp.ones_like(share)
        return share * jnp.stack([one, 1 + jnp.abs(y[1]), one, one])


class _Residual(_AbstractPolar):
    def geometry(self, problem: AbstractProblem, y: Vector, frame: _Frame) -> _Geometry:
        z, z_prime, _ = frame.observed
        first, second = jnp.exp(y[0]), jnp.exp(y[1])
        upper, lower = z + y[2], z_prime + y[3]
        # w12 + w21 = (s1 - s2) sin(a + b) and w21 - w12 = (s1 + s2) sin(a - b).
        total = jnp.arcsin(frame.flip * (upper + lower) / (first - second))
        difference = jnp.arcsin(frame.flip * (lower - upper) / (first + second))
        a, b = (total + difference) / 2, (total - difference) / 2
        return _geometry(problem, self.corner, y, a, b, frame, residuals=(y[2], y[3]))

    def field(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        at = self.geometry(problem, y, frame)
        g = at.rotated
        first, off, second = _weights(y, fz.depth)
        weighted = first * g[0], off * g[1], off * g[2], second * g[3]
        a, b, c, d = at.right
        moved = multiply(multiply(at.left, weighted), (a, c, b, d))
        return jnp.stack([*_growth(y, g, fz.depth, frame), -moved[1], -moved[2]])

    def scale(self, problem: AbstractProblem, fz: Any, y: Vector, frame: _Frame) -> Vector:
        one = jnp.ones_like(y[0])
        _, upper, lower, last = map(jnp.abs, self.geometry(problem, y, frame).gradient)
        # Near the solutions the residuals follow that of w22 over the large entry.
        natural = 0.1 * (upper + lower + last) * jnp.exp(-y[0])
        return jnp.stack([one, 1 + jnp.abs(y[1]), upper + natural, lower + natural])


class Balanced2x2(AbstractCharts):
    """The charts; `corner`: all entries but (1, 1), `observed`, are fitted by least squares."""

    corner: bool = eqx.field(static=True)
    charts: tuple[Any, ...]
    observed: tuple[float, ...]

    balanced: ClassVar[bool] = True
    name: ClassVar[str] = "spectral"

    def __init__(self, problem: AbstractProblem):
        parameters = razin_cohen_parameters(problem) if problem.shape == (2, 2) else None
        self.corner = parameters is not None
        self.observed = () if parameters is None else parameters[1:]
        charts = (_Conformal(self.corner), _Spectral(self.corner))
        self.charts = (*charts, _Residual(True)) if self.corner else charts

    def start(self, fz: AbstractFactorization, factors: Factors) -> Position:
        assert isinstance(fz, DeepMatrix)
        sign, log_det = log_determinant(fz.matrix_chain(factors))
        one, observed = jnp.ones_like(sign), ()
        column = jnp.where(sign < 0, -one, one)
        if self.corner:
            # Of the state's dtype and not weakly typed: it stays what it is from step to step.
            z, z_prime, eps = (jnp.asarray(number, sign.dtype) for number in self.observed)
            observed = z * column, z_prime, eps * column
        # Factors of size one, whose product cannot underflow, and what they are multiples of.
        units = [power_of_two(jnp.max(jnp.abs(factor))) for factor in factors]
        product = fz.compose(tuple(map(operator.truediv, factors, units)))
        size = power_of_two(jnp.max(jnp.abs(product)))
        unit = math.prod(units, start=size)
        frame = _Frame(sign, column, one, observed, unit)
        conformal = to_conformal(_reflected(four((product / size).reshape(4)), frame))
        near = jnp.hypot(*conformal[2:]) <= _APART * jnp.hypot(*conformal[:2])
        log_unit = sum(map(jnp.log, units), jnp.log(size))
        spectral = from_singular(conformal, jnp.maximum(log_det, _LOG_ZERO), log_unit)
        kind = jnp.where(near, _CONFORMAL, _SPECTRAL).astype(jnp.int32)
        return Position(jnp.where(near, jnp.stack(conformal), spectral), kind, frame)

    def reexpressed(
        self, fz: AbstractFactorization, stages: FloatArray, position: Position, following: _Frame
    ) -> FloatArray:
        return stages * jnp.where(
            position.kind == _CONFORMAL, position.frame.unit / following.unit, 1
        )

    def leave(
        self,
        chart: Any,
        problem: AbstractProblem,
        fz: AbstractFactorization,
        y: Vector,
        frame: _Frame,
    ) -> Position:
        if isinstance(chart, _Conformal):
            there, kind, flip, unit = self._leave_conformal(y, frame)
        else:
            way = self._leave_residual if isinstance(chart, _Residual) else self._leave_spectral
            there, kind, flip, unit = way(chart.geometry(problem, y, frame), y, frame)
        return Position(there, kind, _Frame(frame.sign, frame.column, flip, frame.observed, unit))

    def rests(
        self,
        chart: Any,
        problem: AbstractProblem,
        fz: AbstractFactorization,
        y: Vector,
        frame: _Frame,
    ) -> BoolScalar:
        if not self.corner:
            return jnp.asarray(False)
        z, z_prime, eps = frame.observed
        _, b, c, d = chart.entries(problem, y, frame)
        # With a positive determinant w11 w22 > w12 w21 > 0, so that w22 cannot vanish.
        wrong = (z * z_prime > 0) & (b * c > 0) & (d * eps < 0)
        return wrong & (chart.loss(problem, fz, y, frame) < eps**2 / 2 * (1 + _AT_REST))

    def _leave_conformal(self, y: Vector, frame: _Frame):
        inner, outer = jnp.hypot(y[0], y[1]), jnp.hypot(y[2], y[3])
        log_unit = jnp.log(frame.unit)
        log_det = jnp.log(inner - outer) + jnp.log(inner + outer) + 2 * log_unit
        apart = outer > _APART * inner
        # The unit follows the product, in powers of two: no digit changes.
        grown = power_of_two(inner)
        there = jnp.where(apart, from_singular(four(y), log_det, log_unit), y / grown)
        kind = jnp.where(apart, _SPECTRAL, _CONFORMAL).astype(jnp.int32)
        return there, kind, jnp.ones_like(frame.flip), frame.unit * grown

    def _leave_spectral(self, at: _Geometry, y: Vector, frame: _Frame):
        conformal = to_conformal(at.entries)
        unit = power_of_two(jnp.hypot(*conformal[:2]))
        together = jnp.hypot(*conformal[2:]) < _TOGETHER * jnp.hypot(*conformal[:2])
        kind = jnp.where(together, _CONFORMAL, _SPECTRAL).astype(jnp.int32)
        there = jnp.where(together, jnp.stack(conformal) / unit, y)
        if not self.corner:
            return there, kind, frame.flip, unit
        z, z_prime, eps = frame.observed
        # Without the last one, which does not vanish on the wrong branch.
        small = _half_squares((*at.gradient[:3], jnp.zeros_like(eps))) < _SMALL_LOSS
        steep = jnp.abs(at.entries[0]) > _STEEP * jnp.abs(at.entries[3])
        different = jnp.abs(at.gradient[3]) > _DIFFERENT * jnp.abs(eps)
        enter = small & steep & different & (z * z_prime > 0)
        residual = jnp.stack([y[0], y[1], at.gradient[1], at.gradient[2]])
        flip = jnp.where(at.entries[0] < 0, -jnp.ones_like(frame.flip), 1)
        return (
            jnp.where(enter, residual, there),
            jnp.where(enter, _RESIDUAL, kind).astype(jnp.int32),
            jnp.where(enter, flip, frame.flip),
            unit,
        )

    def _leave_residual(self, at: _Geometry, y: Vector, frame: _Frame):
        _, _, eps = frame.observed
        leave = jnp.abs(at.entries[0]) < _FLAT * jnp.abs(at.entries[3])
        leave = leave | (jnp.abs(at.gradient[3]) < _EQUAL * jnp.abs(eps))
        # The product's overall sign stays in the flip.
        a = jnp.arctan2(frame.flip * at.left[2], frame.flip * at.left[0])
        polar = jnp.stack([y[0], y[1], a, jnp.arctan2(at.right[2], at.right[0])])
        there = jnp.where(leave, polar, y)
        kind = jnp.where(leave, _SPECTRAL, _RESIDUAL).astype(jnp.int32)
        return there, kind, frame.flip, frame.unit


def _share(loss: FloatScalar, size: FloatScalar) -> FloatScalar:
    """What errors are relative to near a solution, as a share of the coordinates' size.

    They must be small beside the residual, or they shift the time at which it reaches a level.
    """
    residual = jnp.sqrt(2 * loss) / jnp.where(size > 0, size, 1)
    return jnp.clip(_RESIDUAL_SHARE * residual, _SMALLEST_SHARE, 1)


def _half_squares(residuals: Four) -> FloatScalar:
    return (residuals[0] ** 2 + residuals[1] ** 2 + residuals[2] ** 2 + residuals[3] ** 2) / 2


def _reflected(entries: Four, frame: _Frame) -> Four:
    a, b, c, d = entries
    return a, b * frame.column, c, d * frame.column


def _loss(problem: AbstractProblem, corner: bool, frame: _Frame, entries: Four) -> FloatScalar:
    if corner:
        return _half_squares(_gradient(problem, corner, frame, entries))
    return problem.loss(Dense(matrix(_reflected(entries, frame))))


def _gradient(problem: AbstractProblem, corner: bool, frame: _Frame, entries: Four) -> Four:
    """The gradient of the loss with respect to the reflected product."""
    if corner:
        z, z_prime, eps = frame.observed
        return jnp.zeros_like(z), entries[1] - z, entries[2] - z_prime, entries[3] - eps
    return jax.grad(lambda w: _loss(problem, corner, frame, w))(entries)


def _geometry(problem, corner, y, a, b, frame: _Frame, residuals=None) -> _Geometry:
    first, second = jnp.exp(y[0]), jnp.exp(y[1])
    cosine_a, sine_a = frame.flip * jnp.cos(a), frame.flip * jnp.sin(a)
    cosine_b, sine_b = jnp.cos(b), jnp.sin(b)
    entries = (
        first * cosine_a * cosine_b + second * sine_a * sine_b,
        first * cosine_a * sine_b - second * sine_a * cosine_b,
        first * sine_a * cosine_b - second * cosine_a * sine_b,
        first * sine_a * sine_b + second * cosine_a * cosine_b,
    )
    gradient = _gradient(problem, corner, frame, entries)
    if residuals is not None:
        # The coordinates themselves: not differences of entries of size one.
        gradient = gradient[0], *residuals, gradient[3]
    left = cosine_a, -sine_a, sine_a, cosine_a
    right = cosine_b, -sine_b, sine_b, cosine_b
    transposed = cosine_a, sine_a, -sine_a, cosine_a
    rotated = multiply(multiply(transposed, gradient), right)
    return _Geometry(left, right, entries, gradient, rotated)


def _growth(y: Vector, rotated: Four, depth: int, frame: _Frame) -> tuple[FloatScalar, FloatScalar]:
    """Velocities of the logarithms of the singular values; a zero stays one for ever."""
    power = 1 - 2 / depth
    second = -depth * jnp.exp(power * y[1]) * rotated[3]
    return (
        -depth * jnp.exp(power * y[0]) * rotated[0],
        jnp.where(frame.sign == 0, jnp.zeros_like(second), second),
    )


def _weights(y: Vector, depth: int) -> tuple[FloatScalar, FloatScalar, FloatScalar]:
    r"""$\sum_j \sigma_a^{2(L-j)/L} \sigma_b^{2(j-1)/L}$ for $(a, b) = (1, 1), (1, 2), (2, 2)$."""
    p, q = jnp.exp(2 * y[0] / depth), jnp.exp(2 * y[1] / depth)
    # The sum itself: its closed form divides by a difference.
    off = sum((p ** (depth - 1 - j) * q**j for j in range(depth)), jnp.zeros_like(p))
    return depth * p ** (depth - 1), off, depth * q ** (depth - 1)


def _product(entries: Four, logs: tuple[FloatScalar, FloatScalar], frame: _Frame) -> Spectral:
    # Equal singular values round either way; the order is a promise.
    second = jnp.where(frame.sign == 0, -jnp.inf, jnp.minimum(logs[1], logs[0]))
    return Spectral(matrix(_reflected(entries, frame)), jnp.stack([logs[0], second]), frame.sign)
