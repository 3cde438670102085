"""Draw docs/images/depth_2.png: the same start by descent in two precisions and by the flow."""

import sys
from pathlib import Path

import jax
import numpy as np

import factorflow as ff
from factorflow.drawing import draw_bound, draw_curve, loss_panels, style
from factorflow.reference import entry_bound

LEVELS = np.geomspace(1.0, 1e-4, 41)


def main(path: Path) -> None:
    """Run the three, ask their certificates, draw."""
    jax.config.update("jax_enable_x64", True)
    problem, fz = ff.razin_cohen_problem(), ff.DeepMatrix((2, 2), depth=2)
    start = ff.Balanced(product_scale=1e-5, determinant="positive")(fz, jax.random.key(0))
    single = jax.tree.map(lambda leaf: leaf.astype("float32"), start)
    runs = {
        "descent, single precision": (ff.GradientDescent(6e-3), single),
        "descent, double precision": (ff.GradientDescent(6e-3), start),
        "gradient flow": (ff.GradientFlow(), start),
    }
    with style():
        figure, (ax,) = loss_panels(1, ["depth 2"], limits=(1.0, 7e-5), y_log=True)
        for label, (dynamics, factors) in runs.items():
            trajectory = ff.simulate(
                problem,
                fz,
                dynamics,
                factors,
                observe=ff.AtLosses(LEVELS),
                stop=ff.Stop(loss=1e-4, max_steps=2_000_000),
                measures=["loss", "entry[0,0]"],
                certify="full",
            )
            certificate = trajectory.certificate
            print(f"{label}: {certificate.verdict}. {certificate.explanation}")
            draw_curve(
                ax,
                trajectory.measures["loss"],
                abs(trajectory.measures["entry[0,0]"]),
                trusted=certificate.trusted,
                label=label,
                reason="not gradient flow",
            )
        losses = np.geomspace(1e-4, 3e-1, 200)
        draw_bound(ax, losses, np.asarray(entry_bound()(losses)), "theorem: $1/r - r$")
        ax.set_ylabel("unobserved entry $|w_{11}|$")
        ax.set_ylim(2e-1, 2e2)
        ax.legend(loc="upper left")
        figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/depth_2.png"))
