"""Explicit flows against trajectories integrated to 20 digits and more, and where they must fail.

All runs of an integrator and depth are one batch: they compile and go together.
"""

import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._certify import follow_certified as follow
from factorflow._spec import prepare
from runs import EPS, GENERIC, RAZIN_COHEN, compose, in_numpy, integrate

pytestmark = pytest.mark.x64

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "oracle.json").read_text())
CASES = {(case["case"], case["L"]): case for case in ORACLE["cases"]}
MEASURES = [
    "loss",
    "product",
    "log_singular_values",
    "effective_rank_excess",
    "determinant_sign",
]
LEVELS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
GENERIC_LEVELS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
RTOL = {"Dopri8": 1e-12, "RKC2": 1e-10}
# Where each run ends. At depth 3 the slow manifold is stiff: Dopri8 takes 3e5 steps to 1e-4.
ENDS = {
    ("Dopri8", 3): {"a": 1e-2, "b": 1e-2, "d": 1e-6, "e": 1e-12},
    ("RKC2", 3): {"a": 1e-4, "b": 1e-4, "d": 1e-12},
    ("Dopri8", 2): {"a": 1e-2, "c": 1e-12, "generic": 1e-4},
}


def start(case: dict) -> tuple:
    balanced = "factors_W1_to_WL_rowmajor_25digits"
    written = case[balanced if case["balanced"] else "factors_W1_to_WL_rowmajor"]
    return tuple(jnp.asarray([float(x) for x in row]).reshape(2, 2) for row in written)


@functools.cache
def batch(integrator: str, depth: int) -> dict[str, ff.Trajectory]:
    fz = ff.DeepMatrix((2, 2), depth)
    rtol = RTOL[integrator]
    specs = []
    for name, end in ENDS[integrator, depth].items():
        z, z_prime, eps, factors = 1.0, 1.0, 0.0, ff.balanced_factors(fz, GENERIC)
        if name != "generic":
            case = CASES[name, depth]
            z, z_prime, eps = (float(case[key]) for key in ("z", "zp", "eps"))
            factors = start(case)
        spec = prepare(
            ff.razin_cohen_problem(z=z, z_prime=z_prime, eps=eps),
            fz,
            ff.GradientFlow(integrator, rtol=rtol, atol=rtol / 100),
            factors,
            observe=ff.AtLosses(GENERIC_LEVELS if name == "generic" else LEVELS),
            stop=ff.Stop(loss=end, max_steps=500_000),
            measures=MEASURES,
        )
        specs.append(spec)
    together = follow(specs)

    def lane(index: int) -> ff.Trajectory:
        return jax.tree.map(lambda leaf: np.asarray(leaf[index]), together)

    return {name: lane(index) for index, name in enumerate(ENDS[integrator, depth])}


ROWS = [
    pytest.param(integrator, depth, name, row, id=f"{integrator}-{name}{depth}-{row['loss']}")
    for (integrator, depth), ends in ENDS.items()
    for name, end in ends.items()
    if name != "generic"
    for row in CASES[name, depth]["rows"]
    if float(row["loss"]) >= end
]


@pytest.mark.parametrize(("integrator", "depth", "name", "row"), ROWS)
def test_rows_of_the_oracle(integrator, depth, name, row):
    trajectory = batch(integrator, depth)[name]
    index = LEVELS.index(float(row["loss"]))
    assert trajectory.reached[index]
    assert not trajectory.certificate.contradicted[index]
    truth = {name: float(value) for name, value in row.items()}
    residual, steps, rtol = (
        math.sqrt(2 * truth["loss"]),
        int(trajectory.steps[index]),
        RTOL[integrator],
    )

    # What the flow contracts forgets the errors of all but the last steps. What it conserves adds
    # them up: the imbalance, which log sigma_2 rests on, and the time lost on the plateau. Steps of
    # Dopri8 are limited by stability instead, and far more accurate than asked for.
    forgotten, kept = (10 * rtol, steps * rtol) if integrator == "RKC2" else (rtol, rtol)
    # The determinant of a factor, (sigma_1 sigma_2)^(1/L), is a difference of products that round.
    log_product = math.log(truth["sigma1"]) + truth["log_sigma2"]
    kept_by_factors = kept + 8 * depth * EPS * (
        truth["sigma1"] ** (2 / depth) / math.exp(log_product / depth)
    )

    # Observed entries are of size one: they round by EPS, which the residual divides by.
    losses = trajectory.measures["loss"]
    assert losses[index] == pytest.approx(truth["loss"], rel=16 * EPS * (1 + 1 / residual))
    # The residual's error moves the time at which it reaches its level.
    assert trajectory.times[index] == pytest.approx(truth["t"], rel=kept + forgotten / residual)
    expected = np.array([[truth["w11"], truth["w12"]], [truth["w21"], truth["w22"]]])
    size = np.max(np.abs(expected))
    np.testing.assert_allclose(
        trajectory.measures["product"][index], expected, rtol=0, atol=forgotten * size
    )
    log_first, log_second = trajectory.measures["log_singular_values"][index]
    assert log_first == pytest.approx(math.log(truth["sigma1"]), abs=forgotten)
    assert log_second == pytest.approx(truth["log_sigma2"], abs=kept_by_factors)
    excess = trajectory.measures["effective_rank_excess"][index]
    assert excess == pytest.approx(truth["erank_minus_1"], rel=kept_by_factors)


@pytest.mark.parametrize(("integrator", "depth"), ENDS)
def test_runs_end_at_their_level(integrator, depth):
    for name, end in ENDS[integrator, depth].items():
        trajectory = batch(integrator, depth)[name]
        assert trajectory.result_name == "loss_reached"
        np.testing.assert_array_equal(trajectory.reached, trajectory.levels >= end)


# --- Depth 2 from a start without symmetry: right at first, wrong in the end


def generic() -> ff.Trajectory:
    return batch("Dopri8", 2)["generic"]


# |w11| = 1/r - r + r^3/2 + O(r^5) on the slow manifold.
RESIDUALS = np.sqrt(2 * np.array(GENERIC_LEVELS))
SLOW_MANIFOLD = 1 / RESIDUALS - RESIDUALS + RESIDUALS**3 / 2


def test_depth_2_agrees_with_scipy_and_the_slow_manifold_to_a_loss_of_1e_2():
    trajectory, rows = generic(), slice(0, 3)
    start = in_numpy(ff.balanced_factors(ff.DeepMatrix((2, 2), 2), GENERIC))
    expected = [compose(f) for f in integrate(RAZIN_COHEN, start, trajectory.times[rows])]
    # Ten times the tolerance of both, at entries of size seven. The determinant is lost already:
    # the asymmetric mode multiplies 1e-14 by exp(w11^2 / 4) = 2e5, but entries feel its square.
    np.testing.assert_allclose(trajectory.measures["product"][rows], expected, rtol=0, atol=7e-11)
    entries = trajectory.measures["product"][rows, 0, 0]
    relative = np.abs(entries / SLOW_MANIFOLD[rows] - 1)
    assert np.all(relative < RESIDUALS[rows] ** 6)
    # The flow has a positive determinant for ever, and the first rows still do.
    assert trajectory.measures["determinant_sign"][:2].tolist() == [1, 1]
    assert trajectory.certificate.contradicted[:2].tolist() == [False, False]


def test_depth_2_leaves_the_flow_beyond_and_the_certificate_says_so():
    trajectory = generic()
    entries = trajectory.measures["product"][:, 0, 0]
    # Measured 84% below at a loss of 1e-4, as for every method that follows the factors.
    assert entries[-1] < 0.2 * SLOW_MANIFOLD[-1]
    assert np.all(trajectory.measures["determinant_sign"][3:] == -1)
    certificate = trajectory.certificate
    assert certificate.verdict in ("rounding_limited", "step_limited")
    assert certificate.contradicted[3:].all()
    assert not certificate.trusted.any()
    assert "determinant must keep its sign" in certificate.explanation
