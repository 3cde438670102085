"""Matrix products, determinants and logarithms without rounding: over the rationals.

A float is a rational number, so what a chain of rounded factors multiplies to is known exactly.
"""

import decimal
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

__all__ = ["determinant", "log", "log_singular_values_2x2", "product", "to_float"]

Rational = list[list[Fraction]]


def product(factors: Sequence) -> Rational:
    """`W_L ... W_1` of `(W_1, ..., W_L)`."""
    result = _rational(factors[0])
    for factor in factors[1:]:
        columns = list(zip(*result, strict=True))
        result = [
            [
                sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0))
                for column in columns
            ]
            for row in _rational(factor)
        ]
    return result


def determinant(matrix: Rational) -> Fraction:
    """Gaussian elimination."""
    rows = [list(row) for row in matrix]
    result = Fraction(1)
    for k in range(len(rows)):
        pivot = next((i for i in range(k, len(rows)) if rows[i][k] != 0), None)
        if pivot is None:
            return Fraction(0)
        if pivot != k:
            rows[k], rows[pivot] = rows[pivot], rows[k]
            result = -result
        result *= rows[k][k]
        for i in range(k + 1, len(rows)):
            ratio = rows[i][k] / rows[k][k]
            rows[i] = [x - ratio * y for x, y in zip(rows[i], rows[k], strict=True)]
    return result


def log(value: Fraction) -> float:
    """Natural logarithm of a positive rational, of any size."""
    with decimal.localcontext(prec=60):
        return float(_decimal(value).ln())


def log_singular_values_2x2(matrix: Rational) -> tuple[float, float]:
    """Logs of both singular values, to 60 digits: sigma_1 +- sigma_2 = sqrt(|W|^2 +- 2 |det W|)."""
    square = sum((x * x for row in matrix for x in row), Fraction(0))
    size = abs(determinant(matrix))
    with decimal.localcontext(prec=60):
        first = (_decimal(square + 2 * size).sqrt() + _decimal(square - 2 * size).sqrt()) / 2
        return float(first.ln()), float(_decimal(size).ln() - first.ln())


def to_float(matrix: Rational) -> np.ndarray:
    return np.array([[float(x) for x in row] for row in matrix])


def _rational(matrix) -> Rational:
    return [[Fraction(float(x)) for x in row] for row in np.asarray(matrix)]


def _decimal(value: Fraction) -> decimal.Decimal:
    return decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)
