"""Flows in coordinates of their own, against trajectories integrated to 20 digits and more."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._certificate import VERDICTS
from factorflow._certify import follow_certified
from factorflow._results import RESULTS, result_name
from factorflow._spec import prepare
from factorflow.reference import REFERENCE_FLOWS, entry_bound

pytestmark = pytest.mark.x64

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "oracle.json").read_text())["cases"]
CASES = {f"{case['case']}{case['L']}": case for case in ORACLE}
LEVELS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
# The end of the oracle, where residuals are a millionth of what the entries round by.
FAR = (*LEVELS, 1e-16, 1e-20)


def specs(depth: int, names: tuple[str, ...], levels=LEVELS) -> list:
    runs = []
    for name in names:
        case = CASES[name]
        key = "factors_W1_to_WL_rowmajor" + ("_25digits" if case["balanced"] else "")
        z, z_prime, eps = (float(case[key]) for key in ("z", "zp", "eps"))
        runs.append(
            prepare(
                ff.razin_cohen_problem(z=z, z_prime=z_prime, eps=eps),
                ff.DeepMatrix((2, 2), depth),
                ff.GradientFlow(),
                tuple(jnp.asarray([float(x) for x in w]).reshape(2, 2) for w in case[key]),
                observe=ff.AtLosses(levels),
                stop=ff.Stop(loss=levels[-1], max_steps=5_000),
                measures=["product", "log_singular_values"],
            )
        )
    return runs


@functools.cache
def batch(depth: int, names: tuple[str, ...], levels=FAR) -> dict[str, ff.Trajectory]:
    together = follow_certified(specs(depth, names, levels), len(names))
    lanes = range(len(names))
    return {names[i]: jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in lanes}


BALANCED = {"a2": 2, "c2": 2, "a3": 3, "b3": 3, "d3": 3}


@pytest.mark.parametrize("name", BALANCED)
def test_balanced_flows_have_eleven_digits_to_a_loss_of_1e_20(name):
    depth = BALANCED[name]
    trajectory = batch(depth, tuple(n for n, d in BALANCED.items() if d == depth))[name]
    assert trajectory.integrator == "spectral"
    rows = CASES[name]["rows"]
    assert [float(row["loss"]) for row in rows] == list(FAR)

    def truth(key):
        return np.array([float(row[key]) for row in rows])

    # A step errs by less than 1e-10 of the coordinates, and the flow forgets most of it.
    product = trajectory.measures["product"]
    np.testing.assert_allclose(product[:, 0, 0], truth("w11"), rtol=1e-11)
    others = np.stack([truth("w12"), truth("w21"), truth("w22")], axis=-1)
    np.testing.assert_allclose(product.reshape(-1, 4)[:, 1:], others, rtol=0, atol=1e-11)
    second = trajectory.measures["log_singular_values"][:, 1]
    np.testing.assert_allclose(second, truth("log_sigma2"), rtol=1e-10)
    # Where the loss falls exponentially, rounding of a residual of 1e-6 shifts the time, and one
    # of 1e-10 by ten thousand times as much.
    rtol = np.full(len(FAR), 5e-9 if name in ("c2", "d3") else 1e-9)
    rtol[len(LEVELS) :] = 1e-7 if name in ("c2", "d3") else 1e-9
    assert np.all(np.abs(trajectory.times / truth("t") - 1) < rtol)
    trusted = trajectory.certificate.trusted
    assert trusted[: len(LEVELS)].all()
    # By then the energy identity of a vanishing loss rounds, and only that is in doubt.
    assert trusted.all() or name == "c2"


def test_unbalanced_flow_has_ten_digits_to_a_loss_of_1e_12():
    trajectory = batch(3, ("e3",), LEVELS)["e3"]
    assert trajectory.integrator == "radau"
    truth = np.array([float(row["w11"]) for row in CASES["e3"]["rows"]])
    np.testing.assert_allclose(trajectory.measures["product"][:, 0, 0], truth, rtol=1e-10)
    assert VERDICTS[trajectory.certificate.code] == "flow_faithful"
    # Far below the imbalance that the flow conserves.
    evidence = trajectory.certificate.evidence
    assert evidence["balancedness_drift"] < 1e-9 * evidence["balancedness_gap"]


def test_the_packaged_references_are_the_oracle():
    for known in REFERENCE_FLOWS:
        rows = CASES[known.name]["rows"][: len(known.rows)]
        expected = [[float(row[key]) for key in ("loss", "t", "w11", "log_sigma2")] for row in rows]
        np.testing.assert_array_equal(known.rows, expected)


@functools.cache
def square(seed: int) -> ff.Trajectory:
    fz = ff.DeepMatrix((3, 3), depth=2)
    return ff.simulate(
        ff.razin_cohen_problem(3),
        fz,
        ff.GradientFlow(),
        ff.Balanced(product_scale=1e-3, determinant="positive")(fz, jax.random.key(seed)),
        observe=ff.AtLosses([1e-2, 1e-4, 1e-6, 1e-8]),
        stop=ff.Stop(loss=1e-8),
        measures=["loss", "entry[0,0]", "log_singular_values", "determinant_sign"],
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_three_dimensions_at_depth_2_keep_their_determinant_to_1e_8(seed):
    trajectory = square(seed)
    assert trajectory.stats["integrator"] == "split"
    loss, entry = trajectory.measures["loss"], np.abs(trajectory.measures["entry[0,0]"])
    # The bound holds, and from 1e-4 on the entry is 1/r - r + r^3/2 and nothing else: followed in
    # factor space it stays near 10.
    assert np.all(entry_bound(3).holds(loss, entry))
    r = np.sqrt(2 * loss)
    np.testing.assert_allclose(entry[1:], (1 / r - r + r**3 / 2)[1:], rtol=1e-9)
    assert trajectory.certificate.verdict == "flow_faithful"
    # Like exp(-x^2 / 2): far below anything the product's entries could show.
    log_sigma = trajectory.measures["log_singular_values"][:, -1]
    np.testing.assert_allclose(log_sigma[-1], -(entry[-1] ** 2) / 2, rtol=1e-4)
    assert np.all(trajectory.measures["determinant_sign"] == 1)


# Logarithms of the singular values of a 3x3 flow of depth 2 to a rank-one matrix, where the loss is
# a millionth of that of zero, by product scale of the start: from a Taylor series in extended
# precision. At 1e-200 what matters is that nothing underflows: from 1e-18 on the flow is the same
# but for the factor, up to a relative difference of that size.
SMALL_VALUES = {
    1e-14: [-0.83114372, -31.77297647, -32.84831673],
    1e-16: [-0.83114372, -36.37814666, -37.45348692],
    1e-18: [-0.83114372, -40.98331684, -42.05865712],
}
SMALL_VALUES[1e-200] = [
    SMALL_VALUES[1e-18][0],
    *(value - 182 * np.log(10) for value in SMALL_VALUES[1e-18][1:]),
]


@pytest.mark.parametrize("scale", SMALL_VALUES)
def test_every_small_singular_value_keeps_its_digits(scale):
    rng, fz = np.random.default_rng(0), ff.DeepMatrix((3, 3), depth=2)
    target = np.outer(rng.normal(size=3), rng.normal(size=3))
    level = 0.5 * np.sum(target**2) * 1e-6
    trajectory = ff.simulate(
        ff.Completion((3, 3), [(i, j) for i in range(3) for j in range(3)], target.ravel()),
        fz,
        ff.GradientFlow(),
        ff.Balanced(product_scale=scale)(fz, jax.random.key(2)),
        observe=ff.AtLosses([level]),
        stop=ff.Stop(loss=level),
        measures=["log_singular_values", "distance_to_rank[1]"],
    )
    assert trajectory.stats["integrator"] == "split"
    found = trajectory.measures["log_singular_values"][-1]
    # To the digits that are given.
    np.testing.assert_allclose(found, SMALL_VALUES[scale], rtol=0, atol=2e-8)
    distance = np.hypot(*np.exp(SMALL_VALUES[scale][1:]))
    measured = trajectory.measures["distance_to_rank[1]"][-1]
    np.testing.assert_allclose(measured, distance, rtol=3e-8)
    assert trajectory.certificate.verdict == "flow_faithful"


def test_a_rank_deficient_start_is_followed_and_keeps_its_rank():
    fz = ff.DeepMatrix((3, 3), depth=2)
    start = ff.balanced_factors(fz, 1e-3 * np.outer([1.0, 2.0, 2.0], [2.0, -1.0, 2.0]))
    trajectory = ff.simulate(
        ff.Completion((3, 3), [(i, j) for i in range(3) for j in range(3)], 2 * np.eye(3).ravel()),
        fz,
        ff.GradientFlow(),
        start,
        # Of a target of three equal singular values one can be reached: 2 * 4 / 2 is left.
        observe=ff.AtLosses([5.0, 4.1]),
        stop=ff.Stop(loss=4.1),
        measures=["loss", "log_singular_values"],
    )
    assert trajectory.stats["integrator"] == "split"
    assert trajectory.reached.all()
    logs = trajectory.measures["log_singular_values"]
    assert np.isfinite(logs[:, 0]).all() and (logs[:, 1:] == -np.inf).all()


# A positive determinant with w22 < 0 < eps, which w22 cannot reach; and a determinant of zero.
SPECIAL = {
    "wrong branch": (0.05, [[-7e-3, 4e-3], [5e-3, -6e-3]]),
    "wrong branch of a large eps": (0.5, [[-7e-3, 4e-3], [5e-3, -6e-3]]),
    "zero": (0.0, [[2e-3, 1e-3], [4e-3, 2e-3]]),
}


def special_spec(eps: float, product, end: float = FAR[-1]):
    fz = ff.DeepMatrix((2, 2), depth=3)
    return prepare(
        ff.razin_cohen_problem(eps=eps),
        fz,
        ff.GradientFlow(),
        ff.Balanced(product=product)(fz),
        observe=ff.AtLosses(FAR),
        stop=ff.Stop(loss=end, max_steps=5_000),
        measures=["product", "log_singular_values"],
    )


@functools.cache
def special() -> dict[str, ff.Trajectory]:
    """Three, as the balanced ones of depth 3: batches of one width share their compilation."""
    together = follow_certified([special_spec(*case) for case in SPECIAL.values()], len(SPECIAL))
    return {
        name: jax.tree.map(lambda leaf, i=i: leaf[i], together) for i, name in enumerate(SPECIAL)
    }


@pytest.mark.parametrize("name", list(SPECIAL)[:2])
def test_the_wrong_branch_is_named(name):
    trajectory, eps = special()[name], SPECIAL[name][0]
    assert result_name(trajectory.result) == "wrong_branch"
    assert trajectory.reached.tolist() == [level > eps**2 / 2 for level in FAR]
    assert trajectory.stats["loss"] == pytest.approx(eps**2 / 2, rel=1e-5)
    assert "sign opposite to eps" in str(RESULTS[RESULTS.wrong_branch])
    # What was reached is the flow all the same, but the run is not what was asked for.
    assert trajectory.certificate.trusted[trajectory.reached].all()
    assert VERDICTS[trajectory.certificate.code] == "unverified"


def test_a_zero_determinant_stays_zero_and_obeys_the_bound():
    trajectory = special()["zero"]
    assert result_name(trajectory.result) == "loss_reached"
    assert np.all(trajectory.measures["log_singular_values"][:, 1] == -np.inf)
    entry = trajectory.measures["product"][:, 0, 0]
    assert np.all(entry_bound().holds(np.asarray(FAR), entry))


def test_unbalanced_factors_are_refused_where_balance_is_needed():
    fz = ff.DeepMatrix((2, 2), depth=2)
    factors = ff.Gaussian(factor_scale=0.1)(fz, jax.random.key(0))
    for name in ("spectral", "split"):
        with pytest.raises(ValueError, match=r"balancedness gap of .*'radau'. or 'Stabilized'"):
            ff.GradientFlow(name).resolve(ff.razin_cohen_problem(), fz, factors)


def test_losses_below_rounding_are_refused():
    with pytest.raises(ValueError, match="is below"):
        special_spec(0.0, [[1e-3, 0.0], [0.0, 1e-3]], end=1e-40)
