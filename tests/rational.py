"""Exact rational arithmetic on the doubles that are there."""

import math
from fractions import Fraction

import numpy as np


def square_norm(tensor) -> Fraction:
    return sum((Fraction(float(entry)) ** 2 for entry in np.ravel(tensor)), Fraction(0))


def square_distance(tensor, factors) -> Fraction:
    """Of a tensor to the sum of the outer products of the columns of the factors."""
    rows = [[[Fraction(entry) for entry in row] for row in factor.tolist()] for factor in factors]
    total = Fraction(0)
    for place in np.ndindex(tensor.shape):
        chosen = [row[k] for row, k in zip(rows, place, strict=True)]
        product = sum((math.prod(column) for column in zip(*chosen, strict=True)), Fraction(0))
        total += (Fraction(float(tensor[place])) - product) ** 2
    return total
