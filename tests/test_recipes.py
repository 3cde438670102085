"""The recipes of CONTRIBUTING.md, carried out."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._factorization import AbstractFactorization
from factorflow._measure import MEASURES
from factorflow._problem import AbstractProblem
from factorflow.experiments import sweep

GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def follow(problem, factorization, factors, measures):
    return ff.simulate(
        problem,
        factorization,
        ff.GradientDescent(1e-2),
        factors,
        observe=ff.AtSteps([0, 10, 20]),
        stop=ff.Stop(max_steps=20),
        measures=measures,
    )


def test_every_recipe_of_the_guide_is_here():
    recipes = re.findall(r"^### An? (\w+)$", GUIDE, flags=re.MULTILINE)
    assert recipes == ["measure", "problem", "factorization", "paper"]
    for recipe in recipes:
        assert any(name.startswith(f"test_a_{recipe}") for name in globals())


def test_a_measure_as_written_in_the_guide():
    code = re.search(r"### A measure.*?```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    assert code is not None
    try:
        exec(code[1], {})
        fz = ff.DeepMatrix((2, 2), depth=2)
        factors = ff.Identity(factor_scale=0.5)(fz)
        problem = ff.razin_cohen_problem()
        trajectory = follow(problem, fz, factors, ["largest_row_sum", "product"])
        product = np.asarray(trajectory.measures["product"])
        expected = np.abs(product).sum(axis=2).max(axis=1)
        # One rounding per addition.
        np.testing.assert_allclose(trajectory.measures["largest_row_sum"], expected, rtol=1e-6)
        assert "operator norm" in MEASURES["largest_row_sum"].summary
    finally:
        MEASURES.pop("largest_row_sum", None)


class TraceProblem(AbstractProblem):
    """Half the squared distance of the trace from a value."""

    shape: tuple[int, ...] = eqx.field(static=True)
    target: jax.Array | None
    value: jax.Array

    def loss(self, product):
        return 0.5 * (jnp.trace(product.dense()) - self.value) ** 2

    def held_out_loss(self, product):
        raise ValueError("a trace hides nothing")

    def resample(self, key, *, batch_size=None, label_noise=None):
        del key, batch_size, label_noise
        return self


def test_a_problem_of_ones_own():
    problem = TraceProblem((2, 2), None, jnp.asarray(2.0))
    fz = ff.DeepMatrix((2, 2), depth=2)
    trajectory = follow(problem, fz, ff.Identity(factor_scale=0.5)(fz), ["loss", "entry[0,0]"])
    # Every factor stays a * I, with a' = a - rate * 2 a (a^2 - 1): the scalar recursion.
    a = 0.5
    for _ in range(20):
        a -= 1e-2 * a * (2 * a**2 - 2)
    np.testing.assert_allclose(trajectory.measures["entry[0,0]"][-1], a**2, rtol=1e-5)
    assert float(trajectory.measures["loss"][-1]) < float(trajectory.measures["loss"][0])


class Square(AbstractFactorization):
    """W = A A^T: symmetric, positive semidefinite, one factor."""

    shape: tuple[int, ...] = eqx.field(static=True)

    def shapes(self):
        return (jax.ShapeDtypeStruct(self.shape, jnp.result_type(float)),)

    def compose(self, factors):
        return factors[0] @ factors[0].T

    def entries(self, factors, indices):
        return jnp.sum(factors[0][indices[:, 0]] * factors[0][indices[:, 1]], axis=-1)

    def conserved(self, factors):
        del factors
        return ()

    def matrix_chain(self, factors):
        return (factors[0].T, factors[0])


def test_a_factorization_of_ones_own():
    factors = (jnp.array([[0.3, 0.1], [0.2, 0.4]]),)
    trajectory = follow(
        ff.Completion((2, 2), [[0, 0], [1, 1]], [1.0, 1.0]),
        Square((2, 2)),
        factors,
        ["loss", "product", "log_singular_values"],
    )
    product = np.asarray(trajectory.measures["product"])
    np.testing.assert_array_equal(product, product.swapaxes(1, 2))
    singular = np.linalg.svd(product, compute_uv=False)
    # Values come from the product's entries: rounding of its norm, relative to the smaller one.
    np.testing.assert_allclose(
        np.exp(trajectory.measures["log_singular_values"]), singular, rtol=1e-4
    )


@pytest.mark.x64  # experiments have a precision of their own
def test_a_paper_of_ones_own(tmp_path):
    from experiments.common import base
    from factorflow.drawing import draw_curve, loss_panels
    from factorflow.papers import Claim, Figure, Paper
    from factorflow.report import reproduce

    def draw(dataset, overlays):
        del overlays
        figure, (ax,) = loss_panels(1, ["two rates"])
        for lane in range(dataset.sizes["run"]):
            one = dataset.isel(run=lane)
            draw_curve(ax, np.asarray(one["loss"]), np.asarray(one["entry[0,0]"]))
        return figure

    claim = Claim(
        "rates.end",
        "Every run reaches its loss.",
        "this test",
        "all",
        "none",
        lambda dataset: ("counted", bool(np.all(dataset["result"] == "loss_reached"))),
    )
    figure = Figure(
        "rates",
        "Two learning rates",
        "Entry against loss, both without unit.",
        lambda scale: sweep(base(), dynamics__optimizer=[1e-2, 2e-2]),
        draw,
        (claim,),
    )
    paper = Paper("own", "A paper of one's own", "Abstract.", "@misc{own}", (figure,))
    result = reproduce(paper, tmp_path / "report", scale="quick", progress=False)
    assert result.holds
    assert "Two learning rates" in result.report.read_text()
