"""Problems that the tests of solution sets share."""

import numpy as np

import factorflow as ff

HIDDEN = np.nan


def completion(matrix):
    """The entries that are not NaN."""
    matrix = np.asarray(matrix, float)
    at = np.argwhere(~np.isnan(matrix))
    return ff.Completion(matrix.shape, at, matrix[tuple(at.T)])


def gaussian(count, shape, values, seed=0):
    measurements = np.random.default_rng(seed).standard_normal((count, *shape))
    if values is None:
        generator = np.random.default_rng([seed, 1])
        target = np.outer(*(generator.standard_normal(dim) for dim in shape))
        values = np.tensordot(measurements, target, 2)
    return ff.Sensing(measurements, values)
