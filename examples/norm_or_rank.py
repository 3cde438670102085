"""Draw docs/images/norm_or_rank_*.png: three problems, and what training minimizes on each."""

import sys
from pathlib import Path

import jax
import numpy as np

import factorflow as ff
from factorflow.drawing import draw_minimized, save_figure


def problems() -> dict[str, tuple[ff.Completion, ff.DeepMatrix]]:
    """One where every norm diverges, one in two pieces, one in one piece."""
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(d, 1)) @ rng.normal(size=(1, d + 1)) for d in (2, 3)]
    places = [(i, j) for i in range(2) for j in range(3)]
    places += [(2 + i, 3 + j) for i in range(3) for j in range(4)]
    values = np.concatenate([block.ravel() / np.linalg.norm(block) for block in blocks])
    pieces = ff.Completion((5, 7), places, values)
    connected = ff.random_low_rank_problem(jax.random.key(0), (20, 20), rank=2, n_observed=240)
    return {
        "diverging": (ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=3)),
        "disconnected": (pieces, ff.DeepMatrix((5, 7), depth=2)),
        "connected": (connected, ff.DeepMatrix((20, 20), depth=2)),
    }


def main(folder: Path) -> None:
    """Ask, print, draw."""
    jax.config.update("jax_enable_x64", True)
    for name, (problem, fz) in problems().items():
        answer = ff.what_is_minimized(problem, fz, progress=print)
        print(f"\n{name}: {answer}\n")
        save_figure(draw_minimized(answer), folder, f"norm_or_rank_{name}").svg.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
