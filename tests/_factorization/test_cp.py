"""CP factorization against TensorLy and einsum, conservation, problems, and bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import factorflow as ff
from cp_cases import (
    EACH,
    SOME_ORDERS,
    assert_all_close,
    by_einsum,
    every_index,
    in_double,
    loss_of,
    mttkrp,
    product_by_tensorly,
    random_like,
    stacked,
)
from tolerances import assert_close

REFERENCES = {ff.CP: product_by_tensorly}


# --- The product


@EACH
def test_shapes(fz, rank, dtype):
    assert [s.shape for s in fz.shapes()] == [(size, rank) for size in fz.shape]
    assert all(s.dtype == dtype for s in fz.shapes())
    assert (fz.num_components, fz.paths, fz.degree) == (rank, rank, len(fz.shape))
    assert jax.tree.leaves(fz) == []  # static: it holds no arrays


@EACH
def test_compose_and_entries(fz, rank, dtype):
    factors = random_like(fz, dtype)
    expected = REFERENCES[ff.CP](factors)
    np.testing.assert_allclose(by_einsum(in_double(factors), np), expected, atol=1e-13)
    indices = every_index(fz.shape)
    product, entries = jax.jit(
        lambda factors: (fz.compose(factors), fz.entries(factors, jnp.asarray(indices)))
    )(factors)
    assert product.dtype == entries.dtype == dtype
    assert_close(product, expected, scale=10.0)  # entries of about 10 at most
    assert_close(entries, expected[tuple(indices.T)], scale=10.0)


@SOME_ORDERS
def test_in_batches_and_eagerly(fz, dtype):
    lanes, batch = stacked(fz, dtype)
    indices = jnp.asarray(every_index(fz.shape)[[3, 0, 3]])
    products = jax.vmap(fz.compose)(batch)
    entries = jax.vmap(fz.entries, in_axes=(0, None))(batch, indices)
    # Each lane at an entry of its own, as in runs of several problems.
    own = jax.vmap(fz.entries)(batch, indices[:, None])
    for lane, factors in enumerate(lanes):
        expected = REFERENCES[ff.CP](factors)
        at = expected[tuple(np.asarray(indices).T)]
        assert_close(products[lane], expected, scale=10.0)
        assert_close(entries[lane], at, scale=10.0)
        assert_close(fz.entries(factors, indices), at, scale=10.0)
        assert_close(own[lane], at[lane : lane + 1], scale=10.0)


def test_scaling_all_factors_scales_the_product_to_the_degree(dtype):
    fz = ff.CP((2, 3, 2, 2), rank=3)
    factors = random_like(fz, dtype)
    scaled = tuple(2 * factor for factor in factors)
    np.testing.assert_array_equal(fz.compose(scaled), 2**fz.degree * fz.compose(factors))


def test_a_matrix_has_a_chain_and_a_tensor_has_none(dtype):
    fz = ff.CP((4, 3), rank=5)
    factors = random_like(fz, dtype)
    inner, outer = fz.matrix_chain(factors)
    assert_close(fz.compose(factors), np.asarray(outer) @ np.asarray(inner), scale=10.0)
    tensor = ff.CP((2, 3, 4), rank=2)
    with pytest.raises(ValueError, match=r"tensor of order 3, which has no singular values"):
        tensor.matrix_chain(random_like(tensor, dtype))


def intermediate_sizes(jaxpr) -> list[int]:
    sizes = []
    for eqn in jaxpr.eqns:
        sizes += [math.prod(variable.aval.shape) for variable in eqn.outvars]
        for inner in jaxprs_in_params(eqn.params):
            sizes += intermediate_sizes(inner)
    return sizes


def test_entries_never_materialize_the_product():
    fz = ff.CP((50, 40, 30), rank=3)
    indices = jnp.zeros((7, 3), jnp.int32)
    entries = jax.make_jaxpr(fz.entries)(fz.shapes(), indices)
    gradient = jax.make_jaxpr(jax.grad(lambda f: jnp.sum(fz.entries(f, indices) ** 2)))(fz.shapes())
    compose = jax.make_jaxpr(fz.compose)(fz.shapes())
    # All factors in one array are the largest thing on the way.
    assert max(intermediate_sizes(entries.jaxpr)) <= 3 * 50 * 3
    assert max(intermediate_sizes(gradient.jaxpr)) <= 3 * 50 * 3
    assert max(intermediate_sizes(compose.jaxpr)) >= 50 * 40 * 30


# --- Conservation


@EACH
def test_differences_of_squared_norms_and_their_conservation(fz, rank, dtype):
    factors = random_like(fz, dtype)
    precise = in_double(factors)
    cotangent = np.random.default_rng(1).standard_normal(fz.shape)
    direction = mttkrp(cotangent, precise)
    tangents = tuple(jnp.asarray(d, dtype) for d in direction)
    conserved, drift = jax.jit(lambda f, t: jax.jvp(fz.conserved, (f,), (t,)))(factors, tangents)
    assert len(conserved) == len(fz.shape) - 1
    for k, (difference, change) in enumerate(zip(conserved, drift, strict=True)):
        assert difference.shape == (rank,)
        expected = [
            sum(precise[k + 1][:, r] ** 2) - sum(precise[k][:, r] ** 2) for r in range(rank)
        ]
        assert_close(difference, expected, scale=10.0)
        # To first order they do not move along the gradient of any loss.
        assert_close(change, np.zeros(rank), scale=1000.0)
    other = random_like(fz, dtype, seed=1)
    _, elsewhere = jax.jvp(fz.conserved, (factors,), (other,))
    assert all(float(jnp.max(jnp.abs(change))) > 0.01 for change in elsewhere)


def conserved_along(dynamics, times) -> tuple[np.ndarray, np.ndarray]:
    fz = ff.CP((2, 3, 2), rank=2)
    problem = ff.random_low_rank_problem(jax.random.key(0), fz.shape, rank=1, n_observed=8)
    trajectory = ff.simulate(
        problem,
        fz,
        dynamics,
        ff.Gaussian(factor_scale=0.7)(fz, jax.random.key(1)),
        observe=ff.AtTimes(times),
        stop=ff.Stop(max_time=float(times[-1])),
        measures=["norm_differences", "balancedness_gap", "loss"],
    )
    assert trajectory.reached.all()
    assert trajectory.measures["loss"][-1] < trajectory.measures["loss"][0] / 10
    differences = trajectory.measures["norm_differences"]
    gaps = np.max(np.abs(differences), axis=(1, 2))
    np.testing.assert_array_equal(trajectory.measures["balancedness_gap"], gaps)
    return differences, gaps


@pytest.mark.x64
def test_flow_conserves_them():
    differences, gaps = conserved_along(ff.GradientFlow(rtol=1e-10, atol=1e-12), [0, 0.5, 5])
    assert gaps[0] > 0.1  # there is something to conserve
    # Some tens of steps, each of the local tolerance.
    np.testing.assert_allclose(differences, differences[:1].repeat(3, axis=0), rtol=0, atol=1e-8)


def test_descent_with_large_steps_does_not():
    differences, _ = conserved_along(ff.GradientDescent(0.1), [0, 0.5, 5])
    assert np.max(np.abs(differences - differences[:1])) > 0.01


# --- Problems


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 3, 4, 3)], ids=str)
def test_sensing_and_its_gradient(shape, dtype):
    fz = ff.CP(shape, rank=2)
    rng = np.random.default_rng(6)
    measurements, values = rng.standard_normal((5, *shape)), rng.standard_normal(5)
    problem = ff.Sensing(measurements, values)
    factors = random_like(fz, dtype)
    value, gradient = jax.jit(jax.value_and_grad(loss_of(problem, fz)))(factors)
    measurements, values = (
        np.asarray(array, np.float64) for array in (problem.measurements, problem.values)
    )
    residuals = np.tensordot(measurements, REFERENCES[ff.CP](factors), len(shape)) - values
    assert_close(value, np.sum(residuals**2) / 2, scale=100.0)
    expected = mttkrp(np.tensordot(residuals, measurements, 1), factors)
    assert_all_close(gradient, expected, scale=1000.0)


def test_sensing_descends(dtype):
    fz = ff.CP((3, 2, 3), rank=2)
    rng = np.random.default_rng(7)
    trajectory = ff.simulate(
        ff.Sensing(rng.standard_normal((6, *fz.shape)), rng.standard_normal(6)),
        fz,
        ff.GradientDescent(5e-3),
        random_like(fz, dtype),
        observe=ff.AtSteps([0, 200]),
        stop=ff.Stop(max_steps=200),
        measures=["loss", "frobenius_norm"],
    )
    first, last = trajectory.measures["loss"]
    assert last < first / 10
    size = np.linalg.norm(REFERENCES[ff.CP](trajectory.factors).ravel())
    assert_close(trajectory.measures["frobenius_norm"][-1], size)


@pytest.mark.parametrize(
    ("shape", "rank", "norm"),
    [((4, 3, 5), 3, None), ((3, 2, 4, 3), 2, 0.5)],
    ids=str,
)
def test_random_low_rank_tensors(shape, rank, norm, dtype):
    """Rank of every unfolding and Frobenius norm of the ground truth are those asked for."""
    problem = ff.random_low_rank_problem(
        jax.random.key(rank), shape, rank, math.prod(shape) // 2, frobenius_norm=norm
    )
    target = np.asarray(problem.target, np.float64)
    for mode in range(len(shape)):
        unfolding = np.moveaxis(target, mode, 0).reshape(shape[mode], -1)
        assert np.linalg.matrix_rank(unfolding, tol=1e-4 * np.linalg.norm(target)) == rank
    tolerance = 1e-4 if dtype == jnp.float32 else 1e-6
    snapshot = ff.Snapshot(problem, ff.Dense(problem.target))
    measured = ff.multilinear_rank(tolerance)(snapshot)
    assert measured.tolist() == [rank] * len(shape)
    expected = math.sqrt(math.prod(shape)) if norm is None else norm
    assert_close(np.asarray(np.linalg.norm(target.ravel()), dtype), expected)
    indices = np.asarray(problem.indices)
    assert len(np.unique(indices, axis=0)) == math.prod(shape) // 2
    np.testing.assert_array_equal(problem.values, np.asarray(problem.target)[tuple(indices.T)])


def test_zeros_are_values_like_others(dtype):
    """Descent to the zero tensor; only the relative error, by a norm of 0, has no number."""
    fz = ff.CP((2, 3, 2), rank=2)
    indices = every_index(fz.shape)
    problem = ff.Completion(fz.shape, indices, np.zeros(12), target=np.zeros(fz.shape))
    trajectory = ff.simulate(
        problem,
        fz,
        ff.GradientDescent(0.05),
        random_like(fz, dtype),
        observe=ff.AtSteps([0, 50]),
        stop=ff.Stop(max_steps=50),
        measures=["loss", "reconstruction_error", "multilinear_rank[0.001]"],
    )
    assert trajectory.measures["loss"][1] < trajectory.measures["loss"][0] / 10
    assert np.isposinf(trajectory.measures["reconstruction_error"]).all()


# --- Identity of a description


def test_equal_descriptions_are_equal():
    one = ff.CP((4, 3, 2), rank=5)
    assert one == ff.CP([4, 3, 2], rank=np.int64(5)) == ff.CP(np.array([4, 3, 2]), rank=5.0)
    assert hash(one) == hash(ff.CP([4, 3, 2], 5))
    assert one != ff.CP((4, 3, 2), rank=6)


@pytest.mark.parametrize(
    ("shape", "rank"), [((2, 3, 4), 6), ((5, 5), 5), ((3, 1), 1), ((2, 9, 2), 4)], ids=str
)
def test_the_default_is_enough_for_every_tensor(shape, rank, dtype):
    fz = ff.CP(shape)
    assert fz.num_components == rank
    # One component per fibre of the longest mode: the fibre times unit vectors.
    target = np.random.default_rng(0).standard_normal(shape)
    longest = int(np.argmax(shape))
    others = shape[:longest] + shape[longest + 1 :]
    factors: list = [np.zeros((size, rank)) for size in shape]
    for r, place in enumerate(np.ndindex(others)):
        factors[longest][:, r] = np.moveaxis(target, longest, -1)[place]
        for mode, index in zip([m for m in range(len(shape)) if m != longest], place, strict=True):
            factors[mode][index, r] = 1
    product = fz.compose(tuple(jnp.asarray(factor, dtype) for factor in factors))
    np.testing.assert_array_equal(product, target.astype(dtype))


# --- Bad input


def cp(*args, **kwargs):
    return lambda: ff.CP(*args, **kwargs)


BAD_INPUT = [
    ("no modes", cp(()), r"two or more modes, got \(\)"),
    ("order 1", cp((3,)), r"two or more modes, got \(3,\): a vector has nothing to factor"),
    ("an empty mode", cp((2, 0, 3)), r"modes of size 1 or more, got \(2, 0, 3\)"),
    ("a negative mode", cp((2, -1)), r"modes of size 1 or more, got \(2, -1\)"),
    ("half an index", cp((2, 2.5)), r"shape counts indices per mode: integers, got 2.5"),
    ("rank 0", cp((2, 2), rank=0), r"rank counts components and must be 1 or more, got 0"),
    ("rank -1", cp((2, 2), rank=-1), r"1 or more, got -1"),
    ("half a component", cp((2, 2), rank=1.5), r"rank counts components: integers, got 1.5"),
    ("infinite rank", cp((2, 2), rank=math.inf), r"rank counts components: integers, got inf"),
    ("NaN rank", cp((2, 2), rank=math.nan), r"rank counts components: integers, got nan"),
    (
        "default rank beyond memory",
        cp((2,) * 784),
        r"order 784, rank=None\) takes 2\^796 bytes .* machine has \d+\. Give a smaller rank=",
    ),
    (
        "rank beyond memory",
        cp((2, 3), rank=10**13),
        r"order 2, rank=10000000000000\) takes 400000000000000 bytes",
    ),
    (
        "contradicting observations of a tensor",
        lambda: ff.Completion((2, 2, 2), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [1.0, 2.0, 3.0]),
        r"Entry \(0, 1, 0\) is observed more than once with different values, 1.0 and 3.0",
    ),
    (
        "a determinant's sign",
        lambda: ff.Gaussian(product_scale=0.1, determinant="positive")(
            ff.CP((2, 2)), jax.random.key(0)
        ),
        r"determinant='positive' needs a DeepMatrix, got CP",
    ),
    *(
        (
            f"{initializer.__name__} of a CP",
            lambda initializer=initializer: initializer(product_scale=0.1)(
                ff.CP((2, 2)), jax.random.key(0)
            ),
            rf"{initializer.__name__} needs a DeepMatrix, got CP",
        )
        for initializer in (ff.Balanced, ff.Identity, ff.Orthogonal)
    ),
    (
        "factors of another rank",
        lambda: ff.simulate(
            ff.Completion((2, 2, 2), [[0, 0, 0]], [1.0]),
            ff.CP((2, 2, 2), rank=2),
            ff.GradientDescent(0.1),
            tuple(jnp.ones((2, 3)) for _ in range(3)),
            observe=ff.AtEnd(),
            stop=ff.Stop(max_steps=1),
        ),
        r"factorization's shapes \(\(2, 2\), \(2, 2\), \(2, 2\)\), got \(\(2, 3\)",
    ),
    (
        "a problem of another order",
        lambda: ff.simulate(
            ff.Completion((2, 2), [[0, 0]], [1.0]),
            ff.CP((2, 2, 2), rank=2),
            ff.GradientDescent(0.1),
            tuple(jnp.ones((2, 2)) for _ in range(3)),
            observe=ff.AtEnd(),
            stop=ff.Stop(max_steps=1),
        ),
        r"product has shape \(2, 2, 2\), the problem's has \(2, 2\)",
    ),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
