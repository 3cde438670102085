"""Losses, entries and errors: against numpy, and how they relate to each other."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from _measure.references import DTYPE, EXTREMES, assert_agrees, rows
from factorflow._measure import as_measure, as_measures
from tolerances import assert_close

SHAPE = (3, 2)
PLACES = list(itertools.product(range(3), range(2)))
RNG = np.random.default_rng(8)
TARGET, PRODUCT, OTHER = RNG.normal(size=(3, *SHAPE)).astype(DTYPE)


def observe(names, product, problem) -> dict[str, np.ndarray]:
    snapshot = ff.Snapshot(problem, ff.Dense(jnp.asarray(product, DTYPE)))
    return {measure.name: np.asarray(measure(snapshot)) for measure in as_measures(names)}


def completion(places=PLACES, target=TARGET, **options) -> ff.Completion:
    values = [target[place] for place in places]
    return ff.Completion(SHAPE, places, values, target=target, **options)


def sensing(target=TARGET, **options) -> ff.Sensing:
    measurements = np.random.default_rng(9).normal(size=(4, *SHAPE)).astype(DTYPE)
    values = np.tensordot(measurements, target, 2)
    return ff.Sensing(measurements, values, target=target, **options)


PROBLEMS = {
    "half-sum": completion(PLACES[:4]),
    "mean": completion(PLACES[:4], normalization="mean"),
    "sensing": sensing(),
    "sensing-mean": sensing(normalization="mean"),
}
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@pytest.mark.parametrize(("case", "measure", "family", "parameters"), rows("fit"))
def test_against_numpy(case, measure, family, parameters):
    assert_agrees(case, measure, family, parameters)


@every_problem
def test_everything_is_zero_at_the_target(problem):
    names = ("loss", "held_out_loss", "reconstruction_error", "gradient_norm")
    for value in observe(names, TARGET, problem).values():
        assert_close(value, 0.0)  # sensing sums six products of size one


@every_problem
def test_degrees_in_the_distance_to_the_target(problem):
    """Losses of squares are of degree two, the gradient and the error of degree one."""
    degrees = {"loss": 2, "held_out_loss": 2, "reconstruction_error": 1, "gradient_norm": 1}
    near = observe(list(degrees), TARGET + OTHER, problem)
    far = observe(list(degrees), TARGET - 3 * OTHER, problem)
    for name, degree in degrees.items():
        assert near[name] > 0.01
        assert_close(far[name], 3**degree * near[name], scale=10.0)


@every_problem
def test_gradient_norm_against_differences_of_the_loss(problem):
    step = float(np.finfo(DTYPE).eps) ** (1 / 3)
    slopes = []
    for place in PLACES:
        shift = np.zeros(SHAPE, DTYPE)
        shift[place] = step
        up, down = (observe(["loss"], PRODUCT + s, problem)["loss"] for s in (shift, -shift))
        slopes.append((float(up) - float(down)) / (2 * step))
    norm = observe(["gradient_norm"], PRODUCT, problem)["gradient_norm"]
    assert_close(norm, np.linalg.norm(slopes), "finite_difference", scale=10.0)


def test_training_and_held_out_loss_share_the_entries():
    part = observe(["loss", "held_out_loss"], PRODUCT, completion(PLACES[1:4]))
    whole = observe(["loss", "held_out_loss"], PRODUCT, completion())
    assert_close(part["loss"] + part["held_out_loss"], whole["loss"])
    assert whole["held_out_loss"] == 0
    mean = observe(
        ["loss", "held_out_loss"], PRODUCT, completion(PLACES[1:4], normalization="mean")
    )
    assert_close(mean["loss"], 2 * part["loss"] / 3)
    assert_close(mean["held_out_loss"], 2 * part["held_out_loss"] / 3)


def test_sensing_holds_out_the_whole_target():
    error = np.mean((PRODUCT.astype(float) - TARGET) ** 2)
    assert_close(observe(["held_out_loss"], PRODUCT, sensing())["held_out_loss"], error)


def test_penalty_of_the_problem_is_used():
    actual = observe(["loss", "gradient_norm"], PRODUCT, completion(loss="absolute"))
    assert_close(actual["loss"], np.sum(np.abs(PRODUCT - TARGET)) / 2)
    assert_close(actual["gradient_norm"], np.sqrt(6) / 2)  # six signs, halved


def test_entries_make_up_the_product():
    names = [f"entry[{row},{column}]" for row, column in PLACES]
    actual = observe([*names, "product"], PRODUCT, completion())
    assert (np.stack([actual[name] for name in names]).reshape(SHAPE) == PRODUCT).all()
    assert (actual["product"] == PRODUCT).all()


def test_entry_of_a_tensor():
    tensor = np.arange(24, dtype=DTYPE).reshape(2, 3, 4)
    problem = ff.Completion((2, 3, 4), [[0, 0, 0]], [1.0])
    assert observe(["entry[1,2,0]"], tensor, problem)["entry[1,2,0]"] == tensor[1, 2, 0]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ((3, 0), r"entry\[3, 0\] is outside a product of shape \(3, 2\)"),
        ((0, 2), r"entry\[0, 2\] is outside a product of shape \(3, 2\)"),
        ((0, 0, 0), r"entry\[0, 0, 0\] is outside a product of shape \(3, 2\)"),
    ],
)
def test_entry_out_of_range(index, message):
    with pytest.raises(ValueError, match=message):
        observe([ff.entry(*index)], PRODUCT, completion())


def test_reconstruction_error_is_relative_and_not_symmetric():
    error = observe(["reconstruction_error"], 2 * TARGET, completion())["reconstruction_error"]
    assert_close(error, 1.0)
    other = completion(target=2 * TARGET)
    assert_close(observe(["reconstruction_error"], TARGET, other)["reconstruction_error"], 0.5)
    zero = observe(["reconstruction_error"], 0 * TARGET, completion())["reconstruction_error"]
    assert_close(zero, 1.0)


@pytest.mark.parametrize("size", EXTREMES)
def test_neither_underflow_nor_overflow(size):
    scale = DTYPE.type(size)
    expected = observe(["reconstruction_error", "gradient_norm"], PRODUCT, completion())
    large = completion(target=TARGET * scale)
    actual = observe(["reconstruction_error", "gradient_norm"], PRODUCT * scale, large)
    assert_close(actual["reconstruction_error"], expected["reconstruction_error"])
    assert_close(actual["gradient_norm"] / scale, expected["gradient_norm"])


@pytest.mark.parametrize("name", ["reconstruction_error", "held_out_loss"])
@pytest.mark.parametrize("kind", ["completion", "sensing"])
def test_measures_of_a_target_need_one(name, kind):
    problem = (
        ff.Completion((2, 2), [[0, 0]], [1.0])
        if kind == "completion"
        else ff.Sensing(np.ones((1, 2, 2)), [1.0])
    )
    snapshot = ff.Snapshot(problem, ff.Dense(jnp.eye(2)))
    with pytest.raises(ValueError, match=rf"{name} needs a .*target.*target="):
        as_measure(name)(snapshot)
