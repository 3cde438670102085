"""CP ranks: certified ones of tensors as training leaves them, planted ones, linear baselines."""

import functools
import itertools
import time
from collections.abc import Sequence

import numpy as np
from timing import Row, best_of

from factorflow.reference import RankBounds, cp_rank

NOISES = (1e-8, 1e-10, 1e-12)
# Entries kept of 512, and the ranks published for alternating least squares at the same MSE.
PUBLISHED = dict(
    zip(
        (50, 100, 150, 200, 250, 300, 350, 400, 450, 511),
        (12, 16, 17, 17, 17, 17, 17, 16, 16, 2),
        strict=True,
    )
)
BASELINE_FITS = 5


def measure() -> list[Row]:
    """Seconds, and how often the rank asked for was found."""
    rows = [row for shape in ((8, 8, 8), (8, 8, 8, 8)) for row in _as_trained(shape)]
    rows += [_planted(range(1, 13), seeds=5, relative_error=None)]
    rows += [_planted(range(1, 13), seeds=5, relative_error=1e-4)]
    rows += [_planted((15,), seeds=3, relative_error=None)]
    rows += [_planted((15,), seeds=3, relative_error=1e-4)]
    return rows + _baselines() + _against_tensorly()


def _tensor(shape: Sequence[int], rank: int, seed: int, noise: float = 0.0) -> np.ndarray:
    """Gaussian components of norm one together, plus noise of that mean square."""
    generator = np.random.default_rng(seed)
    modes = "abcd"[: len(shape)]
    sums = ",".join(f"{mode}z" for mode in modes) + "->" + modes
    tensor = np.einsum(sums, *(generator.standard_normal((dim, rank)) for dim in shape))
    return tensor / np.linalg.norm(tensor) + np.sqrt(noise) * generator.standard_normal(shape)


def _as_trained(shape: tuple[int, ...]) -> list[Row]:
    cases = itertools.product((1, 2, 3), NOISES, range(5))
    tensors = [(_tensor(shape, rank, seed, noise), rank) for rank, noise, seed in cases]
    cp_rank(tensors[0][0])
    start = time.perf_counter()
    found = [cp_rank(tensor) for tensor, _ in tensors]
    seconds = (time.perf_counter() - start) / len(tensors)
    right = sum(b.certified and b.upper == r for b, (_, r) in zip(found, tensors, strict=True))
    name = "x".join(map(str, shape))
    return [
        Row(f"{name}, rank 1 to 3 and noise: ms each", f"{1e3 * seconds:.1f}", "< 5"),
        Row("  certified at the planted rank", f"{right} of {len(tensors)}", "all"),
    ]


def _planted(ranks: Sequence[int], seeds: int, relative_error: float | None) -> Row:
    cases = list(itertools.product(ranks, range(seeds)))
    found = [
        cp_rank(_tensor((8, 8, 8), rank, seed), relative_error=relative_error).upper <= rank
        for rank, seed in cases
    ]
    tolerance = "MSE 1e-6" if relative_error is None else f"relative error {relative_error:.0e}"
    name = f"8x8x8, planted rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    target = "all" if len(ranks) > 1 else "2"
    return Row(f"{name}, {tolerance}: found", f"{sum(found)} of {len(found)}", target)


def _baselines() -> list[Row]:
    start = time.process_time()
    found = {kept: [_baseline(kept, seed) for seed in range(5)] for kept in PUBLISHED}
    seconds = time.process_time() - start
    rows = [Row(f"50 linear baselines, max_fits={BASELINE_FITS}: CPU s", f"{seconds:.1f}", "< 10")]
    for kept, published in PUBLISHED.items():
        uppers = [bounds.upper for bounds in found[kept]]
        lowers = [bounds.lower for bounds in found[kept]]
        text = f"{np.mean(lowers):.1f} to {np.mean(uppers):.1f}"
        rows.append(Row(f"  {kept} of 512 entries: mean bounds", text, f"<= {published}"))
    return rows


def _baseline(kept: int, seed: int) -> RankBounds:
    """A random tensor of rank and norm one, with all but `kept` entries set to zero."""
    tensor = _tensor((8, 8, 8), 1, seed)
    dropped = np.random.default_rng(1000 + seed).permutation(tensor.size)[kept:]
    tensor.reshape(-1)[dropped] = 0.0
    return cp_rank(tensor, max_fits=BASELINE_FITS)


def _against_tensorly() -> list[Row]:
    """Against one fit of TensorLy's alternating least squares at the rank that was planted."""
    try:
        from tensorly.decomposition import parafac
    except ImportError:
        return []
    tensor = _tensor((8, 8, 8), 3, 0, 1e-8)
    fit = functools.partial(parafac, tensor, rank=3, init="random", random_state=0)
    ratio = best_of(5, fit) / best_of(20, functools.partial(cp_rank, tensor))
    return [Row("  one TensorLy fit over one certified rank, rank 3: time", f"{ratio:.1f}", "> 1")]
