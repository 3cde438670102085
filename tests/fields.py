"""The end-to-end flow of a product, written as its definition, in NumPy and double precision."""

import numpy as np
import scipy.linalg

__all__ = ["end_to_end_field", "field_in_bases", "rotation"]


def power(matrix, exponent: float, rank: int) -> np.ndarray:
    """Of a positive semidefinite matrix of known rank, with 0^0 = 1."""
    if exponent == 0:
        return np.eye(len(matrix))
    values, vectors = scipy.linalg.eigh(matrix)
    # What rounding leaves of zeros would be large as a root.
    values[: len(values) - rank] = 0
    return (vectors * values**exponent) @ vectors.T


def end_to_end_field(product, gradient, depth: int, rank: int | None = None) -> np.ndarray:
    """The sum over layers, as written."""
    product, gradient = (np.asarray(array, float) for array in (product, gradient))
    rank = min(product.shape) if rank is None else rank
    total = np.zeros_like(product)
    for layer in range(1, depth + 1):
        left = power(product @ product.T, (depth - layer) / depth, rank)
        right = power(product.T @ product, (layer - 1) / depth, rank)
        total -= left @ gradient @ right
    return total


def field_in_bases(left, values, right, gradient, depth: int) -> np.ndarray:
    """The same sum for a square product `left @ diag(values) @ right.T`, whatever its condition."""
    total = np.zeros_like(left)
    for layer in range(1, depth + 1):
        outer = (left * values ** (2 * (depth - layer) / depth)) @ left.T
        inner = (right * values ** (2 * (layer - 1) / depth)) @ right.T
        total -= outer @ np.asarray(gradient, float) @ inner
    return total


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
