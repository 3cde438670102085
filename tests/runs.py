"""Small runs, and independent references for them in NumPy and SciPy.

Compilation dominates the time of these tests. `limits` and `flow` therefore give every run of a
kind the same structure, whatever its numbers: it compiles once per process.
"""

import functools
import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import factorflow as ff

# Read after conftest has chosen the precision of this job.
DTYPE = np.dtype(jnp.result_type(float))
EPS = float(np.finfo(DTYPE).eps)
X64 = DTYPE.itemsize == 8
# A loss that no run here reaches, above what the dtype resolves (smaller ones are refused).
NEVER = EPS**2

# No symmetry that could hide an error, and a positive determinant.
GENERIC = np.array([[0.007, -0.004], [0.005, 0.006]])

Array = np.ndarray
Chain = tuple[np.ndarray, ...]


def limits(
    loss: float = NEVER,
    gradient_norm: float = 1e-30,
    max_steps: int = 100_000,
    max_time: float = 1e6,
    **checks: int,
) -> ff.Stop:
    """A `Stop` that names every limit; those not given are never reached."""
    return ff.Stop(float(loss), float(gradient_norm), max_steps, float(max_time), **checks)


def flow(integrator="Tsit5", rtol: float | None = None) -> ff.GradientFlow:
    """A gradient flow with both tolerances given."""
    rtol = (1e-9 if X64 else 1e-5) if rtol is None else rtol
    return ff.GradientFlow(integrator, rtol=rtol, atol=rtol / 100)


class Linear:
    """Half the sum of squares of `<A_i, W> - b_i`, times `weight`: completion and sensing alike."""

    def __init__(self, measurements, values, weight: float = 1.0):
        self.measurements = np.asarray(measurements, DTYPE)
        self.values = np.asarray(values, DTYPE)
        self.weight = weight

    @classmethod
    def completion(cls, shape, indices, values, weight: float = 1.0) -> "Linear":
        measurements = np.zeros((len(values), *shape))
        for row, place in enumerate(indices):
            measurements[(row, *place)] = 1
        return cls(measurements, values, weight)

    @classmethod
    def razin_cohen(cls, z=1.0, z_prime=1.0, eps=0.0) -> "Linear":
        return cls.completion((2, 2), [(0, 1), (1, 0), (1, 1)], [z, z_prime, eps])

    def residuals(self, factors: Chain) -> Array:
        product = compose(factors)
        return np.tensordot(self.measurements.astype(product.dtype), product, 2) - self.values

    def loss(self, factors: Chain) -> float:
        return float(self.weight * np.sum(self.residuals(factors) ** 2) / 2)

    def gradient(self, factors: Chain) -> Chain:
        """With respect to every factor."""
        residuals = self.residuals(factors)
        outer = self.weight * np.tensordot(residuals, self.measurements.astype(residuals.dtype), 1)
        gradients = []
        for layer in range(len(factors)):
            left = compose(factors[layer + 1 :], np.eye(factors[layer].shape[0], dtype=outer.dtype))
            right = compose(factors[:layer], np.eye(outer.shape[1], dtype=outer.dtype))
            gradients.append(left.T @ outer @ right.T)
        return tuple(gradients)

    def gradient_norm(self, factors: Chain) -> float:
        return float(np.sqrt(sum(np.sum(g**2) for g in self.gradient(factors))))


RAZIN_COHEN = Linear.razin_cohen()


def compose(factors: Chain, first: Array | None = None) -> Array:
    """`W_L ... W_1 first`."""
    chain = factors if first is None else (first, *factors)
    return functools.reduce(lambda product, factor: factor @ product, chain)


def imbalance(factors: Chain) -> list[Array]:
    return [b.T @ b - a @ a.T for a, b in itertools.pairwise(factors)]


def in_numpy(factors, dtype=DTYPE) -> Chain:
    return tuple(np.asarray(factor, dtype) for factor in factors)


def on_device(factors) -> tuple:
    """As JAX arrays, which is what `simulate` takes."""
    return tuple(jnp.asarray(factor) for factor in factors)


def draw(shapes, scale: float = 1.0, seed: int = 0) -> Chain:
    """Gaussian arrays in the job's dtype."""
    rng = np.random.default_rng(seed)
    return tuple((scale * rng.normal(size=shape)).astype(DTYPE) for shape in shapes)


def random_factors(fz: ff.DeepMatrix, scale: float = 0.5, seed: int = 0) -> Chain:
    return draw([struct.shape for struct in fz.shapes()], scale, seed)


def descend(problem: Linear, factors: Chain, rate: float) -> Iterator[Chain]:
    """Gradient descent in the factors' dtype, from step 0 on."""
    while True:
        yield factors
        gradients = problem.gradient(factors)
        rate_ = factors[0].dtype.type(rate)
        factors = tuple(w - rate_ * g for w, g in zip(factors, gradients, strict=True))


def steps_of(path: Iterator[Chain], count: int) -> list[Chain]:
    """States 0 to `count`."""
    return list(itertools.islice(path, count + 1))


def integrate(problem: Linear, factors: Chain, times, method: str = "DOP853") -> list[Chain]:
    """Gradient flow at `times` by SciPy, in double precision, nearly to rounding."""
    shapes = [factor.shape for factor in factors]
    splits = np.cumsum([factor.size for factor in factors])[:-1]

    def chain(y: Array) -> Chain:
        return tuple(
            part.reshape(shape) for part, shape in zip(np.split(y, splits), shapes, strict=True)
        )

    def field(t: float, y: Array) -> Array:
        return -np.concatenate([g.ravel() for g in problem.gradient(chain(y))])

    start = np.concatenate([np.asarray(factor, float).ravel() for factor in factors])
    times = np.atleast_1d(np.asarray(times, float))
    solution = solve_ivp(field, (0, times[-1]), start, method, t_eval=times, rtol=1e-12, atol=1e-14)
    assert solution.success
    return [chain(y) for y in solution.y.T]


def assert_ulps(actual, expected, count: float) -> None:
    """Within `count` roundings of the largest expected entry, in the dtype of `actual`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    allowed = count * float(np.finfo(actual.dtype).eps)
    scale = float(np.max(np.abs(expected), initial=0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed * scale)
