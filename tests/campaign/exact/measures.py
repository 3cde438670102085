"""What a row of the exact flow measures, from its factors in double-double."""

import itertools

import numpy as np

from campaign.exact.balance import log_singular_values, multiply
from campaign.exact.runs import Problem

__all__ = ["measure", "product_of"]

# Singular values below this share of the largest are not known from 32 digits after many steps.
RESOLVED = 1e-17


def product_of(factors) -> np.ndarray:
    result = np.stack(factors[0])
    for factor in factors[1:]:
        result = multiply(np.stack(factor), result)
    return result


def measure(
    problem: Problem, factors, balanced: bool, names, rank: int | None = None
) -> dict[str, np.ndarray]:
    """Values by name; NaN where they are not known to the digits that are compared.

    Beyond the `rank` of the start's product singular values are its rounding, however they grow.
    """
    product = product_of(factors)
    logs = _logs(product, factors, balanced)
    known = logs[0] - logs < -np.log(RESOLVED) * (len(factors) if balanced else 1)
    known &= np.arange(len(logs)) < (len(logs) if rank is None else rank)
    values: dict[str, np.ndarray] = {"product": product[0]}
    sizes = np.exp(logs)
    sure = np.all(known)
    for name in names:
        if name == "loss":
            values[name] = loss(problem, product)
        elif name == "log_singular_values":
            values[name] = np.where(known, logs, np.nan)
        elif name == "singular_values":
            values[name] = np.where(known, sizes, np.nan)
        elif name == "nuclear_norm":
            values[name] = np.sum(sizes)
        elif name == "schatten_norm[0.5]":
            root = np.where(known, np.exp(logs / 2), 0)
            values[name] = np.sum(root) ** 2 if known[0] else np.nan
        elif name == "log_abs_determinant":
            values[name] = np.sum(logs) if sure else np.nan
        elif name == "effective_rank_excess":
            # Beside the second, what is not known is nothing.
            values[name] = _excess(logs) if len(logs) > 1 and known[1] else np.nan
        elif name.startswith("distance_to_rank["):
            k = int(name[len("distance_to_rank[") : -1])
            values[name] = np.sqrt(np.sum(sizes[k:] ** 2)) if known[k] else np.nan
        elif name == "balancedness_gap":
            values[name] = _gap(factors)
        elif name == "product":
            pass
        elif name.startswith("entry["):
            place = tuple(int(i) for i in name[len("entry[") : -1].split(","))
            values[name] = product[0][place]
        else:
            raise KeyError(name)
    return {name: np.asarray(value) for name, value in values.items()}


def loss(problem: Problem, product: np.ndarray) -> float:
    if problem.measurements is None:
        places = tuple(problem.places.T)
        high, low = product[0][places], product[1][places]
        residuals = (high - problem.values) + low
    else:
        terms = np.longdouble(problem.measurements) * (
            np.longdouble(product[0]) + np.longdouble(product[1])
        )
        residuals = np.float64(np.sum(terms, axis=(1, 2)) - np.longdouble(problem.values))
    sizes = np.abs(residuals)
    if problem.penalty == "squared":
        sizes = sizes**2
    elif problem.penalty == "huber":
        sizes = np.where(sizes <= 1, sizes**2 / 2, sizes - 0.5)
    return float(np.mean(sizes) if problem.mean else np.sum(sizes) / 2)


def _logs(product: np.ndarray, factors, balanced: bool) -> np.ndarray:
    if not balanced:
        return log_singular_values(product)
    # Every factor has the roots of the product's: they are known much further down.
    first = log_singular_values(np.stack(factors[0]))
    count = min(product.shape[1:])
    logs = np.full(count, -np.inf)
    known = min(count, len(first))
    logs[:known] = len(factors) * first[:known]
    return logs


def _excess(logs: np.ndarray) -> float:
    shares = np.exp(logs - np.logaddexp.reduce(logs))
    rest = float(np.sum(shares[1:]))
    entropy = -(1 - rest) * np.log1p(-rest) if rest < 0.5 else -shares[0] * np.log(shares[0])
    small = shares[1:][shares[1:] > 0]
    return float(np.expm1(entropy - np.sum(small * np.log(small))))


def _gap(factors) -> float:
    gaps = [0.0]
    for (ah, al), (bh, bl) in itertools.pairwise(factors):
        left = multiply(np.stack([bh.T, bl.T]).copy(), np.stack([bh, bl]))
        right = multiply(np.stack([ah, al]), np.stack([ah.T, al.T]).copy())
        gaps.append(float(np.linalg.norm((left[0] - right[0]) + (left[1] - right[1]), 2)))
    return max(gaps)
