"""Verdicts of `what_is_minimized` on 50 random problems whose answer is known."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from timing import Row

import factorflow as ff

# What the theory says of each kind, as the word before the colon of the verdict.
EXPECTED = {"commuting": "norm", "disconnected": "norm", "2x2": "rank", "rank-1 PSD": "both"}


def measure() -> list[Row]:
    """How many verdicts are right, wrong and undecided, by kind."""
    rows, total = [], Counter()
    for kind, problems in PROBLEMS.items():
        counts, started = Counter(), time.perf_counter()
        for problem, factorization, options in problems():
            found = ff.what_is_minimized(problem, factorization, **options).verdict.split(":")[0]
            right = found == EXPECTED[kind]
            counts["right" if right else found if found == "undecided" else "wrong"] += 1
        total += counts
        rows += _rows(f"{kind} ({EXPECTED[kind]})", counts)
        rows.append(Row(f"{kind}: s", f"{time.perf_counter() - started:.0f}"))
    return rows + _rows("all", total, ("", "0", "<= 5"))


def _rows(name: str, counts: Counter, targets: tuple[str, ...] = ("", "", "")) -> list[Row]:
    words = ("right", "wrong", "undecided")
    return [
        Row(f"{name}: {word}", str(counts[word]), target)
        for word, target in zip(words, targets, strict=True)
    ]


def _commuting() -> Iterator[tuple[Any, Any, dict]]:
    """Diagonal measurements, which commute, of a diagonal target; starts at the identity.

    Off-diagonal entries can be chosen to make the solutions' rank 1, but flow leaves them zero.
    """
    for seed in range(16):
        rng = np.random.default_rng(seed)
        weights, target = rng.normal(size=(2, 5)), rng.exponential(size=5)
        measurements = np.stack([np.diag(row) for row in weights])
        problem = ff.Sensing(measurements, weights @ target)
        options = {"initializer": ff.Identity(product_scale=1.0), "semidefinite": True, "seeds": 1}
        yield problem, ff.DeepMatrix((5, 5), depth=2 + seed % 2), options


def _disconnected() -> Iterator[tuple[Any, Any, dict]]:
    """Two complete blocks of low rank: their ranks add up, where the infimal rank is the larger."""
    for seed in range(14):
        rng = np.random.default_rng(100 + seed)
        first, second = (3, 2) if seed % 2 else (2, 3), (2, 3)
        indices, values, corner = [], [], (0, 0)
        for rows, columns in (first, second):
            rank = int(rng.integers(1, 3))
            block = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
            places = np.argwhere(np.ones((rows, columns), bool)) + corner
            indices, values = [*indices, *places.tolist()], [*values, *block.ravel()]
            corner = (corner[0] + rows, corner[1] + columns)
        problem = ff.Completion(corner, indices, values)
        yield problem, ff.DeepMatrix(corner, depth=2), {"seeds": 2, "determinant": None}


def _two_by_two() -> Iterator[tuple[Any, Any, dict]]:
    for seed in range(10):
        z, z_prime = np.random.default_rng(200 + seed).uniform(0.3, 3, size=2)
        problem = ff.razin_cohen_problem(z=float(z), z_prime=float(z_prime))
        yield problem, ff.DeepMatrix((2, 2), depth=2 + seed % 2), {"seeds": 2}


def _rank_one() -> Iterator[tuple[Any, Any, dict]]:
    """Enough entries, the diagonal among them, that the target has the least nuclear norm too."""
    for seed in range(10):
        rng = np.random.default_rng(300 + seed)
        vector = rng.uniform(0.5, 2, size=5) * rng.choice([-1, 1], size=5)
        mask = np.eye(5, dtype=bool)
        for i in range(1, 5):  # a spanning tree keeps the entries connected, without its longest
            mask[i, rng.integers(i == 4, i)] = True
        mask = mask | np.tril(rng.random((5, 5)) < 0.5)
        mask[4, 0] = False
        mask = mask | mask.T
        target = np.outer(vector, vector)
        problem = ff.Completion((5, 5), np.argwhere(mask), target[mask])
        yield problem, ff.DeepMatrix((5, 5), depth=2), {"seeds": 2}


PROBLEMS: dict[str, Callable[[], Iterator[tuple[Any, Any, dict]]]] = {
    "commuting": _commuting,
    "disconnected": _disconnected,
    "2x2": _two_by_two,
    "rank-1 PSD": _rank_one,
}
