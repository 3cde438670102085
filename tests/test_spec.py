"""Runs that are refused before anything compiles."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from runs import DTYPE, on_device, random_factors

PROBLEM = ff.razin_cohen_problem()
FZ = ff.DeepMatrix((2, 2), depth=2)
START = on_device(random_factors(FZ))


def bad(factors=START, problem=PROBLEM, fz=FZ, **changes):
    options = {"observe": ff.AtSteps([1]), "stop": ff.Stop(max_steps=1), "measures": "loss"}
    dynamics = changes.pop("dynamics", ff.GradientDescent(0.1))
    # Unwrapped: the run-time type checks of the tests would refuse some before we can.
    call = inspect.unwrap(ff.simulate)
    return lambda: call(problem, fz, dynamics, factors, **options | changes)


def with_factor(index: int, value) -> tuple:
    return tuple(value if i == index else w for i, w in enumerate(START))


NAN = jnp.full((2, 2), jnp.nan)
SMALL = tuple(jnp.eye(2) * float(np.finfo(DTYPE).tiny) ** 0.52 for _ in START)

BAD_INPUT = [
    (
        "too few factors",
        bad(START[:1]),
        r"shapes \(\(2, 2\), \(2, 2\)\), got \(\(2, 2\),\)",
    ),
    ("a wrong shape", bad(with_factor(1, jnp.ones((2, 3)))), r"got .*\(2, 3\).*Initializers"),
    ("NaN", bad(with_factor(0, NAN)), "factors hold NaN or infinity"),
    ("mixed dtypes", bad(with_factor(0, jnp.eye(2, dtype=jnp.float16))), "one floating dtype.*16"),
    ("underflow", bad(SMALL), f"underflows {DTYPE}.*larger initialization scale or a wider dtype"),
    ("all zero", bad((jnp.zeros((2, 2)),) * 2), "stationary point that no dynamics leaves"),
    (
        "another problem",
        bad(problem=ff.razin_cohen_problem(dim=3)),
        r"product has shape \(2, 2\), the problem's has \(3, 3\)",
    ),
    ("an unknown certificate", bad(certify="ful"), "Did you mean 'full'.*Known: cheap, full"),
    ("an unknown measure", bad(measures=["nuclear_nrm"]), "Did you mean 'nuclear_norm'"),
    ("a measure twice", bad(measures=["loss", "loss"]), "'loss' is requested twice"),
    ("log-spaced rows without limit", bad(observe=ff.LogSpaced(3), stop=ff.Stop()), "LogSpaced"),
    (
        "minibatches without a key",
        bad(dynamics=ff.GradientDescent(0.1, batch_size=2)),
        "give simulate a `key=`",
    ),
    (
        "noise without a key",
        bad(dynamics=ff.GradientDescent(0.1, label_noise=0.1)),
        "give simulate a `key=`",
    ),
    (
        "a batch of more than all",
        bad(dynamics=ff.GradientDescent(0.1, batch_size=4), key=jax.random.key(0)),
        "batch_size=4 exceeds the 3 observations",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [row[1:] for row in BAD_INPUT], ids=[row[0] for row in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
