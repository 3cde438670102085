"""Runs that would be wrong without a word are refused at the boundary."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import factorflow as ff

FZ = ff.DeepMatrix((2, 2), depth=2)


def simulate(**changes):
    arguments = {
        "problem": ff.razin_cohen_problem(),
        "factorization": FZ,
        "dynamics": ff.GradientDescent(1e-2),
        "factors": ff.Identity(factor_scale=0.5)(FZ),
        "observe": ff.AtSteps([0, 1]),
        "stop": ff.Stop(max_steps=1),
        "measures": ["loss"],
    }
    arguments |= changes
    parts = [arguments.pop(name) for name in ("problem", "factorization", "dynamics", "factors")]
    return ff.simulate(*parts, **arguments)


BAD_INPUT = [
    (
        lambda: simulate(
            dynamics=ff.GradientDescent(optax.adam(1e-3)), observe=ff.AtTimes([0.0, 1.0])
        ),
        "no scalar step size",
    ),
    (
        lambda: simulate(
            dynamics=ff.GradientDescent(ff.Optimizer("adam", {"learning_rate": 1e-3})),
            stop=ff.Stop(max_time=1.0),
        ),
        "no scalar step size",
    ),
    (lambda: ff.Stop(max_steps=3_000_000_000), r"at most 2\^31 - 1"),
    (lambda: ff.AtSteps([0, 3_000_000_000]), r"counts to 2\^31 - 1"),
    (lambda: ff.GradientDescent(optax.adam), "not `optax.adam`"),
    (lambda: ff.GradientDescent(None), "takes a learning rate"),
    (lambda: ff.Optimizer("adam", {}), "needs 'learning_rate'"),
    (lambda: ff.Optimizer("adam", {"learning_rate": -1.0}), "learning_rate must be positive"),
    (lambda: ff.GradientFlow(diffrax.KenCarp4()), "not made for a single ordinary"),
    (lambda: ff.EndToEndFlow("RKC2"), "cannot use RKC2"),
    (lambda: ff.EndToEndFlow("Kvaerno5"), "cannot use Kvaerno5"),
    (lambda: ff.balanced_factors(FZ, [[jnp.nan, 0.0], [0.0, 1.0]]), "NaN or infinity"),
    (lambda: ff.balanced_factors(FZ, np.eye(2) * 1j), "must be real"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUT)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_float32_time_does_not_drift():
    """A hundred thousand additions of 1e-3 in float32 would be off by 1e-3 of the time."""
    factors = tuple(factor.astype(jnp.float32) for factor in ff.Identity(factor_scale=0.5)(FZ))
    trajectory = simulate(
        dynamics=ff.GradientDescent(1e-3),
        factors=factors,
        observe=ff.AtSteps([100_000]),
        stop=ff.Stop(max_steps=100_000),
    )
    # One rounding of the rate and one of the product.
    np.testing.assert_allclose(trajectory.times, [100.0], rtol=3e-7)


def test_repeated_observations_with_label_noise_stay_unbiased():
    """Noise on an entry seen twice: |e + n1| + |e + n2|, not twice the mean's absolute value."""
    problem = ff.Completion((1, 2), [[0, 0], [0, 0]], [0.0, 0.0], loss="absolute")

    def slope(key):
        noisy = problem.resample(key, label_noise=jnp.asarray(1.0))
        return jax.grad(lambda w: noisy.loss(ff.Dense(jnp.array([[w, 0.0]]))))(0.5)

    slopes = jax.vmap(slope)(jax.random.split(jax.random.key(0), 20_000))
    # d/dw E|w + n| = 2 Phi(w) - 1, once per observation, halved: erf(w / sqrt 2). Each slope has
    # variance below 1: four standard errors of 20000 draws.
    expected = float(jax.scipy.special.erf(0.5 / jnp.sqrt(2.0)))
    assert float(jnp.mean(slopes)) == pytest.approx(expected, abs=4 / np.sqrt(20_000))


def test_a_penalty_without_a_derivative_at_hidden_entries():
    problem = ff.Completion((1, 2), [[0, 0]], [0.0], loss=lambda e: jnp.sqrt(e**2))
    gradient = jax.grad(lambda w: problem.loss(ff.Dense(w)))(jnp.array([[0.5, 0.0]]))
    assert gradient.tolist() == [[0.5, 0.0]]
