"""Input that is refused, in a process of its own: with the type checks of the tests off."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, warnings
import jax, jax.numpy as jnp, numpy as np
import factorflow as ff

early = ff.Completion((2, 2), [[0, 1]], [1 / 3])
fz = ff.DeepMatrix((2, 2), 2)
half = ff.Identity(factor_scale=0.5)


def go(problem, factors, dynamics=ff.GradientDescent(0.1), observe=ff.AtSteps([1]), **options):
    stop = ff.Stop(max_steps=1)
    return ff.simulate(problem, fz, dynamics, factors, observe=observe, stop=stop, **options)


with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        go(early, half(fz))
said = [str(warning.message) for warning in seen]

jax.config.update("jax_enable_x64", True)
factors, problem = half(fz), ff.razin_cohen_problem()
masked = np.ma.masked_array([1.0, 99.0], mask=[False, True])
two = [[0, 1], [1, 1]]
of = lambda dtype: tuple(factor.astype(dtype) for factor in factors)
loss = lambda f: go(problem, f, measures=["loss"]).measures["loss"][0]
calls = {
    "early": lambda: go(early, factors),
    "complex": lambda: ff.Completion((2, 2), two, [1j, 1.0]),
    "complex array": lambda: ff.Completion((2, 2), two, jnp.array([1j, 1.0])),
    "complex target": lambda: ff.Completion((2, 2), two, [1.0, 1.0], target=np.eye(2) * 1j),
    "complex measurements": lambda: ff.Sensing(np.ones((1, 2, 2)) * 1j, [1.0]),
    "complex factors": lambda: go(problem, of(complex)),
    "complex product": lambda: ff.Balanced(product=np.eye(2) * 1j),
    "bfloat16": lambda: go(problem, of(jnp.bfloat16)),
    "float16": lambda: go(problem, of(jnp.float16)),
    "integers": lambda: go(problem, of(int)),
    "masked": lambda: ff.Completion((2, 2), two, masked),
    "masked factor": lambda: go(problem, (np.ma.masked_array(np.eye(2), np.eye(2)), factors[1])),
    "where": lambda: ff.Completion((2, 2), np.where(np.eye(2)), [1.0, 2.0]),
    "words": lambda: ff.Completion((2, 2), two, ["a", "b"]),
    "large": lambda: go(ff.Completion((2, 2), two, [1e200, 1.0]), factors, ff.GradientFlow(),
                        ff.AtLosses([0.1])),
    "seed": lambda: go(problem, factors, key=5),
    "seed of a start": lambda: ff.Gaussian(product_scale=0.1)(fz, 5),
    "seed of a problem": lambda: ff.random_low_rank_problem(5),
    "no problem": lambda: go(3, factors),
    "jit": lambda: jax.jit(loss)(factors),
    "vmap": lambda: jax.vmap(loss)(jax.tree.map(lambda leaf: leaf[None], factors)),
    "grad": lambda: jax.grad(loss)(factors),
    "grad of a rate": lambda: jax.grad(
        lambda rate: go(problem, factors, ff.GradientDescent(rate)).measures["loss"][0])(0.1),
    "jit of a level": lambda: jax.jit(lambda x: ff.AtLosses([x]) and 0.0)(0.1),
}
refused = {}
for name, call in calls.items():
    try:
        refused[name] = f"accepted: {call()!r}"
    except Exception as error:
        refused[name] = f"{type(error).__name__}: {error}"
hidden = float(problem.loss(ff.Dense(jnp.array([[1e200, 1.0], [1.0, 1.0]]))))
print(json.dumps([said, refused, hidden]))
"""
OUTSIDE = "call `simulate` outside"
EXPECTED = {
    "early": "numbers are float32, the factors float64.*after jax.config.update",
    "complex": "values must be real, got complex128",
    "complex array": "values must be real",
    "complex target": "target must be real",
    "complex measurements": "measurements must be real",
    "complex factors": "factors must be real",
    "complex product": "product must be real",
    "bfloat16": "float32 or float64, got bfloat16",
    "float16": "float32 or float64, got float16",
    "integers": "float32 or float64, got int64",
    "masked": "values is a masked array with 1 masked",
    "masked factor": "factor is a masked array with 2 masked",
    "where": "as np.where gives.*np.argwhere",
    "words": "values must be an array of real numbers",
    "large": r"values of size 1e\+200 have squares beyond float64.*Divide",
    "seed": r"as jax.random.key\(5\), got 5",
    "seed of a start": r"as jax.random.key\(5\), got 5",
    "seed of a problem": r"as jax.random.key\(5\), got 5",
    "no problem": "problem must be a problem, such as Completion or Sensing, got 3",
    "jit": OUTSIDE,
    "vmap": OUTSIDE,
    "grad": OUTSIDE,
    "grad of a rate": OUTSIDE,
    "jit of a level": OUTSIDE,
}


@pytest.fixture(scope="module")
def outcome():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.x64
@pytest.mark.parametrize("name", EXPECTED)
def test_a_refusal_says_what_to_do(outcome, name):
    import re

    refused = outcome[1][name]
    assert refused.startswith("ValueError: ") and re.search(EXPECTED[name], refused), refused


@pytest.mark.x64
def test_single_precision_is_said_once_with_the_remedy(outcome):
    (said,) = outcome[0]
    assert 'jax.config.update("jax_enable_x64", True)' in said


@pytest.mark.x64
def test_a_hidden_entry_whose_square_overflows_does_not_touch_the_loss(outcome):
    assert outcome[2] == 0.5
