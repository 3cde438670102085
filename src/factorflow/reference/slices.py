"""A decomposition that always exists: a tensor as the sum of its slices, each a low-rank matrix."""

import itertools

import numpy as np

from factorflow.reference.cp_fit import Factors


def slice_components(tensor: np.ndarray, target: float) -> Factors:
    """Factors with a squared error below `target`, from the slices along all modes but two.

    For the best pair of modes, the singular triples of all slices are pooled, and the smallest
    are left out as long as their squares sum to less than `target`; none at a target of 0. Every
    slice needs at most as many components as its smaller side, so that the pair with the longest
    mode needs at most prod(shape) / max(shape) in all.

    **Returns:** a batch of one start, as in `factorflow.reference.cp_fit`.
    """
    pairs = itertools.combinations(range(tensor.ndim), 2)
    return min(
        (_components(tensor, pair, target) for pair in pairs),
        key=lambda factors: factors[0].shape[2],
    )


def _components(tensor: np.ndarray, pair: tuple[int, int], target: float) -> Factors:
    others = [mode for mode in range(tensor.ndim) if mode not in pair]
    order = (*others, *pair)
    rows, columns = (tensor.shape[mode] for mode in pair)
    matrices = np.transpose(tensor, order).reshape(-1, rows, columns)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    pooled = values.reshape(-1)
    smallest_first = np.argsort(pooled, kind="stable")
    dropped = int(np.sum(np.cumsum(np.square(pooled[smallest_first])) < target))
    kept = np.sort(smallest_first[dropped:])
    which, triple = np.divmod(kept, values.shape[1])
    factors: Factors = [np.empty(0)] * tensor.ndim
    factors[pair[0]] = left[which, :, triple].T[None]
    factors[pair[1]] = (right[which, triple, :] * pooled[kept, None]).T[None]
    shape = [tensor.shape[mode] for mode in others]
    # Without another mode there is one slice, of which `unravel_index` knows nothing.
    positions = np.unravel_index(which, shape) if shape else ()
    for mode, position in zip(others, positions, strict=True):
        factors[mode] = np.eye(tensor.shape[mode])[:, position][None]
    return factors
