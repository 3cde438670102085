"""The exact flow itself: closed forms, high-precision trajectories, what flow conserves."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import runs as independent
from campaign.exact.balance import balanced, exact_rank, log_singular_values, multiply
from campaign.exact.measures import measure, product_of
from campaign.exact.runs import Problem, follow
from factorflow.reference import lambda_balanced_flow

# Its arithmetic is its own: once is enough.
pytestmark = pytest.mark.x64
ORACLE = json.loads((Path(__file__).parents[1] / "data" / "oracle.json").read_text())


def exactly(*matrices):
    return [(np.asarray(m, float), np.zeros(np.shape(m))) for m in matrices]


def everything(target, **how) -> Problem:
    target = np.asarray(target, float)
    places = np.argwhere(np.ones(target.shape, bool))
    return Problem(target.shape, target.ravel(), places, None, **how)


def one(problem, start, kind, levels, steps=4000, **options):
    return follow([problem], [start], kind, [levels], [1e9], steps, **options)[0]


def test_one_number_follows_the_logistic_law():
    # s' = 2 s (m - s) from 2^-40, and half of it with the mean of one residual: twice as fast.
    times, m = [0.1, 5.0, 8.0], 1.7
    for mean in (False, True):
        root = [[2.0**-20]]
        rows = one(everything([[m]], mean=mean), exactly(root, root), "time", times)
        products = [product_of(factors)[0][0, 0] for factors in rows.factors]
        rate = 2 * m * (2 if mean else 1)
        expected = m / (1 + (m * 2.0**40 - 1) * np.exp(-rate * np.array(times)))
        np.testing.assert_allclose(products, expected, rtol=1e-14)


@pytest.mark.parametrize(("case", "depth"), [("a", 3), ("b", 3), ("c", 2)])
def test_high_precision_trajectories(case, depth):
    """Times and entries of tests/data/oracle.json, from the exactly balanced start."""
    (found,) = (c for c in ORACLE["cases"] if (c["case"], c["L"]) == (case, depth))
    decimals = {
        "a": [["0.001", "0"], ["0", "0.001"]],
        "b": [["0.007", "-0.004"], ["0.005", "0.006"]],
        "c": [["0.007", "0.004"], ["0.005", "-0.006"]],
    }[case]
    exact = [[Fraction(entry) for entry in row] for row in decimals]
    product = np.array([[[float(x) for x in row] for row in exact], [[0.0] * 2] * 2])
    product[1] = [[float(x - Fraction(float(x))) for x in row] for row in exact]
    problem = Problem((2, 2), np.array([1.0, 1.0, 0.0]), np.array([[0, 1], [1, 0], [1, 1]]), None)
    rows = [row for row in found["rows"] if float(row["loss"]) >= 1e-2 or case == "c"]
    start = balanced(product, (2,) * (depth + 1), 2)
    reached = one(problem, start, "loss", [float(row["loss"]) for row in rows])
    assert reached.reached.all()
    for row, time, factors in zip(rows, reached.times, reached.factors, strict=True):
        # Levels of the table are decimal, ours the doubles nearest to them.
        np.testing.assert_allclose(time, float(row["t"]), rtol=1e-13)
        values = measure(problem, factors, True, ["log_singular_values", "balancedness_gap"])
        np.testing.assert_allclose(values["product"][0, 0], float(row["w11"]), rtol=1e-13)
        np.testing.assert_allclose(
            values["log_singular_values"][1], float(row["log_sigma2"]), rtol=1e-13
        )
        assert values["balancedness_gap"] < 1e-26


def test_unbalanced_factors_of_all_shapes():
    """The lambda-balanced closed form, and a second reference with other steps beside it."""
    rng = np.random.default_rng(0)
    first = 0.3 * rng.normal(size=(2, 4))
    left, values, _ = np.linalg.svd(first)
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0][:, :2]
    second = (basis * np.sqrt(values**2 + 0.5)) @ left.T
    target = rng.normal(size=(3, 4))
    times = [0.2, 1.0, 6.0]
    expected = lambda_balanced_flow((first, second), target, times)
    problem, start = everything(target), exactly(first, second)
    rows = one(problem, start, "time", times)
    other = one(problem, start, "time", times, order=22, tolerance=1e-24)
    for factors, others, product in zip(rows.factors, other.factors, expected, strict=True):
        ours, theirs = product_of(factors), product_of(others)
        # What double precision leaves of the closed form; between two series, that a row lies
        # within a step at a place that is a double.
        independent.assert_ulps(ours[0], product, 100)
        assert np.max(np.abs((ours - theirs).sum(0))) < 1e-17
    # W2' W2 - W1 W1' is conserved far beyond double precision; fsum rounds once.
    parts = []
    for sign, ((ah, al), (bh, bl)) in ((1, rows.factors[-1]), (-1, start)):
        parts.append(sign * multiply(np.stack([bh.T, bl.T]).copy(), np.stack([bh, bl])))
        parts.append(-sign * multiply(np.stack([ah, al]), np.stack([ah.T, al.T]).copy()))
    drift = [math.fsum(entry) for entry in np.concatenate(parts).reshape(8, -1).T]
    assert np.max(np.abs(drift)) < 1e-26


def test_sensing_and_huber_against_scipy():
    rng = np.random.default_rng(1)
    factors = tuple(0.6 * rng.normal(size=(2, 2)) for _ in range(3))
    times = [0.3, 2.0]
    measurements = rng.normal(size=(3, 2, 2))
    values = rng.normal(size=3)
    problem = Problem((2, 2), values, None, measurements)
    linear = independent.Linear(measurements, values)
    rows = one(problem, exactly(*factors), "time", times)
    for ours, chain in zip(
        rows.factors, independent.integrate(linear, factors, times), strict=True
    ):
        np.testing.assert_allclose(product_of(ours)[0], independent.compose(chain), atol=1e-10)

    # Residuals of 3 and -2 pass the kink at 1 on the way; phi' = clip(e), half of it in the sum.
    target = np.diag([3.0, -2.0])
    rows = one(everything(target, penalty="huber"), exactly(*factors[:2]), "time", [1.0, 8.0])

    def gradient(chain):
        outer = np.clip(independent.compose(chain) - target, -1, 1) / 2
        return chain[1].T @ outer, outer @ chain[0].T

    class Huber(independent.Linear):
        def gradient(self, factors):
            return gradient(factors)

    path = independent.integrate(Huber(measurements, values), factors[:2], [1.0, 8.0])
    for ours, chain in zip(rows.factors, path, strict=True):
        np.testing.assert_allclose(product_of(ours)[0], independent.compose(chain), atol=1e-7)


def test_small_singular_values():
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    sizes = np.diag([1.0, 0.5, 2**-60, 2**-80])
    product = multiply(np.stack([left, 0 * left]), np.stack([sizes, 0 * sizes]))
    product = multiply(product, np.stack([right, 0 * right]))
    logs = np.log(2) * np.array([0, -1, -60, -80])
    # Bases are orthogonal up to their own rounding.
    np.testing.assert_allclose(log_singular_values(product), logs, atol=1e-14)
    again = product_of(balanced(product, (4, 5, 4, 4), 4))
    assert np.max(np.abs((again - product).sum(0))) < 1e-29


def test_a_start_of_lower_rank_keeps_it():
    """Nothing grows from what 32 digits leave of a singular value that is exactly zero."""
    rng = np.random.default_rng(3)
    first = np.outer([1.0, 0.0], rng.normal(size=2))
    second = np.outer(rng.normal(size=2), [1.0, 0.0])
    assert exact_rank([first, second]) == 1
    assert exact_rank([rng.normal(size=(2, 3)), rng.normal(size=(4, 2))]) == 2
    # One ulp off: not by much, but of full rank.
    assert exact_rank([np.eye(2), np.array([[1.0, 3.0], [1.0, np.nextafter(3.0, 4)]])]) == 2
    start = balanced(product_of(exactly(first, second)), (2, 2, 2), 1)
    # Full rank would be reached within 40 units of time: the target's singular values are 1 and 2.
    (late,) = one(everything(np.diag([1.0, 2.0])), start, "time", [100.0]).factors
    assert np.linalg.matrix_rank(product_of(late)[0], tol=1e-13) == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_kinks_that_are_passed_at_once(depth):
    """Equal residuals of Huber's penalty change sides together; on either side is a closed form."""
    start = np.zeros((2, 2)) if depth == 1 else 1e-3 * np.eye(2)
    problem = everything(2 * np.eye(2), penalty="huber")
    late = 2 + 2 * np.log(10) if depth == 1 else 20.0
    rows = one(problem, exactly(*[start] * depth), "time", [1.0, late])
    # Outside, the entry grows as s' = depth s^(2 - 2 / depth) / 2.
    outside = 0.5 if depth == 1 else 1e-6 * np.e
    np.testing.assert_allclose(product_of(rows.factors[0])[0], outside * np.eye(2), rtol=1e-14)
    # Inside, from 1 at time T on, as s' = (2 - s) / 2, or the logistic s' = s (2 - s).
    if depth == 1:
        inside = 2 - np.exp(-(late - 2) / 2)
    else:
        inside = 2 / (1 + np.exp(-2 * (late - 6 * np.log(10))))
    np.testing.assert_allclose(product_of(rows.factors[1])[0], inside * np.eye(2), rtol=1e-14)
