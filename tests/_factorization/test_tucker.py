"""Tucker products against explicit sums, TensorLy and what gradient flow conserves."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorly

import factorflow as ff
from tolerances import assert_close


def entry_by_sum(factors, index) -> float:
    """Every entry of the core times the numbers that it meets."""
    core, *matrices = (np.asarray(factor, float) for factor in factors)
    return sum(
        core[place] * math.prod(u[i, a] for u, i, a in zip(matrices, index, place, strict=True))
        for place in np.ndindex(core.shape)
    )


REFERENCES = {ff.Tucker: entry_by_sum}

# (factorization, shapes of its core and matrices)
FACTORIZATIONS = [
    (ff.Tucker((3, 4)), [(3, 4), (3, 3), (4, 4)]),
    (ff.Tucker((4, 3), ranks=5), [(5, 5), (4, 5), (3, 5)]),
    (ff.Tucker((4, 5, 6), ranks=(2, 3, 1)), [(2, 3, 1), (4, 2), (5, 3), (6, 1)]),
    (ff.Tucker((2, 3, 4), ranks=1), [(1, 1, 1), (2, 1), (3, 1), (4, 1)]),
    (ff.Tucker((2, 3, 2, 4)), [(2, 3, 2, 4), (2, 2), (3, 3), (2, 2), (4, 4)]),
    (
        ff.Tucker((2, 1, 3, 2, 2), ranks=[2, 2, 1, 3, 2]),
        [(2, 2, 1, 3, 2), (2, 2), (1, 2), (3, 1), (2, 3), (2, 2)],
    ),
    # A mode whose rows are gathered, not multiplied.
    (ff.Tucker((2, 40, 3), ranks=2), [(2, 2, 2), (2, 2), (40, 2), (3, 2)]),
]
EACH = pytest.mark.parametrize(
    ("factorization", "shapes"),
    FACTORIZATIONS,
    ids=[f"{fz.shape} {fz.core_shape}" for fz, _ in FACTORIZATIONS],
)


def random_like(factorization, dtype, seed: int = 0) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.standard_normal(struct.shape), dtype) for struct in factorization.shapes()
    )


@EACH
def test_shapes(factorization, shapes, dtype):
    assert [struct.shape for struct in factorization.shapes()] == shapes
    assert all(struct.dtype == dtype for struct in factorization.shapes())
    assert factorization.core_shape == shapes[0]
    assert factorization.degree == len(shapes)
    assert factorization.paths == math.prod(factorization.core_shape)
    assert jax.tree.leaves(factorization) == []  # static: it holds no arrays


@EACH
def test_compose_and_entries(factorization, shapes, dtype):
    factors = random_like(factorization, dtype)
    every = np.array(list(np.ndindex(factorization.shape)))[::-1]
    expected = [REFERENCES[ff.Tucker](factors, index) for index in every]
    product, entries = jax.jit(
        lambda factors: (
            factorization.compose(factors),
            factorization.entries(factors, jnp.asarray(every)),
        )
    )(factors)
    assert product.dtype == entries.dtype == dtype
    assert product.shape == factorization.shape
    assert_close(entries, expected, scale=10.0)  # entries of about 10
    assert_close(product[tuple(every.T)], expected, scale=10.0)
    core, *matrices = (np.asarray(factor, float) for factor in factors)
    by_tensorly = tensorly.tucker_to_tensor((core, matrices))
    assert_close(product, by_tensorly, scale=10.0)


@pytest.mark.parametrize("shape", [(4, 3), (5, 5)])
def test_order_2_is_a_chain_of_matrices(shape, dtype):
    factorization = ff.Tucker(shape, ranks=5)
    factors = random_like(factorization, dtype)
    product = ff.Factored(factorization, factors)
    first, core, last = factorization.matrix_chain(factors)
    assert_close(last @ core @ first, product.dense(), scale=10.0)
    values = np.exp(product.log_singular_values())
    expected = np.linalg.svd(np.asarray(product.dense(), float), compute_uv=False)
    assert_close(values, expected, "linear_algebra", scale=10.0)


def test_higher_orders_have_no_singular_values(dtype):
    factorization = ff.Tucker((2, 3, 4))
    with pytest.raises(ValueError, match="tensor of order 3, which has no singular values"):
        factorization.matrix_chain(random_like(factorization, dtype))


def test_entries_never_materialize_the_product(dtype):
    factorization = ff.Tucker((60, 50, 40), ranks=3)
    indices = jnp.zeros((7, 3), jnp.int32)
    structs = factorization.shapes()
    compiled = jax.jit(factorization.entries).lower(structs, indices).compile()
    # A matrix is hundreds of times smaller than the product.
    assert compiled.memory_analysis().temp_size_in_bytes < dtype.itemsize * 60 * 50 * 40 / 10


def test_entries_of_order_12(dtype):
    """The core is taken as a matrix between two groups of modes: per entry few numbers are made."""
    factorization = ff.Tucker((50,) * 12, ranks=2)
    factors = [factor / 4 for factor in random_like(factorization, dtype)]
    factors = (4 * factors[0], *factors[1:])
    indices = np.random.default_rng(1).integers(50, size=(2000, 12))
    compiled = jax.jit(factorization.entries).lower(factors, jnp.asarray(indices)).compile()
    # Some arrays of 2000 rows and 2^6 columns, not 2^11.
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * dtype.itemsize * 2000 * 2**6
    entries = compiled(factors, jnp.asarray(indices))
    assert_close(entries[:5], [entry_by_sum(factors, index) for index in indices[:5]])


# --- Gradients


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 2)])
def test_gradients_against_finite_differences(shape):
    factorization = ff.Tucker(shape, ranks=3)
    rng = np.random.default_rng(1)
    indices = rng.permutation(list(np.ndindex(shape)))[: math.prod(shape) // 2]
    dense = ff.Completion(shape, indices, rng.standard_normal(len(indices)))
    # Without its mask the loss asks for entries instead of the whole product.
    sparse = eqx.tree_at(lambda problem: problem.masked, dense, None)
    step = 6e-6  # the cubic root of epsilon

    @jax.jit
    def derivatives(factors, direction):
        def loss(factors, problem=dense):
            return problem.loss(ff.Factored(factorization, factors))

        def moved(size):
            return loss(jax.tree.map(lambda f, d: f + size * d, factors, direction))

        by_compose, by_entries = (jax.grad(loss)(factors, problem) for problem in (dense, sparse))
        return by_compose, by_entries, (moved(step) - moved(-step)) / (2 * step)

    factors, direction = (random_like(factorization, jnp.float64, seed) for seed in (0, 2))
    by_compose, by_entries, slope = derivatives(factors, direction)
    size = max(float(jnp.max(jnp.abs(gradient))) for gradient in by_compose)
    for one, other in zip(by_compose, by_entries, strict=True):
        assert_close(one, other, scale=size)
    expected = sum(np.sum(g * d) for g, d in zip(by_compose, direction, strict=True))
    # The third derivative of a polynomial of this degree is some hundred times its size.
    assert_close(slope, expected, "finite_difference", scale=100 * size)


# --- Conservation


def balances(factors, sign: float = -1.0) -> list[np.ndarray]:
    """Entry by entry; with a sign of +1 a quantity that is not conserved."""
    core, *matrices = (np.asarray(factor, float) for factor in factors)
    sums = []
    for mode, matrix in enumerate(matrices):
        total = np.zeros((matrix.shape[1],) * 2)
        for a, b in np.ndindex(total.shape):
            slices = np.take(core, a, mode), np.take(core, b, mode)
            total[a, b] = matrix[:, a] @ matrix[:, b] + sign * np.sum(slices[0] * slices[1])
        sums.append(total)
    return sums


@EACH
def test_conserved_quantities(factorization, shapes, dtype):
    factors = random_like(factorization, dtype)
    conserved = jax.jit(factorization.conserved)(factors)
    assert len(conserved) == len(shapes) - 1
    for quantity, expected in zip(conserved, balances(factors), strict=True):
        assert_close(quantity, expected, scale=100.0)
        assert_close(quantity, np.asarray(quantity).T, scale=100.0)


@pytest.mark.x64
def test_gradient_flow_conserves_them():
    factorization = ff.Tucker((3, 2, 4), ranks=(2, 3, 2))
    start = ff.Gaussian(factor_scale=0.5)(factorization, jax.random.key(0))
    rng = np.random.default_rng(0)
    indices = rng.permutation(list(np.ndindex(factorization.shape)))[:16]
    trajectory = ff.simulate(
        ff.Completion(factorization.shape, indices, rng.standard_normal(16)),
        factorization,
        ff.GradientFlow("Tsit5", rtol=1e-10, atol=1e-12),  # conserves nothing by construction
        start,
        observe=ff.AtTimes([4.0]),
        stop=ff.Stop(),
    )
    end = jax.tree.map(jnp.asarray, trajectory.factors)
    for before, after in zip(
        factorization.conserved(start), factorization.conserved(end), strict=True
    ):
        assert np.linalg.norm(before) > 0.1
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)  # ten times the tolerance
    for before, after in zip(balances(start, sign=1.0), balances(end, sign=1.0), strict=True):
        assert np.max(np.abs(after - before)) > 0.1


# --- Starting and descending


def test_the_scale_of_a_gaussian_product():
    factorization = ff.Tucker((3, 4, 2), ranks=(2, 5, 3))
    count, scale = 4000, 0.7
    keys = jax.random.split(jax.random.key(1), count)
    gaussian = ff.Gaussian(product_scale=scale)
    draw = jax.jit(jax.vmap(lambda key: factorization.compose(gaussian(factorization, key))))
    squares = np.mean(np.asarray(draw(keys), float) ** 2, axis=(1, 2, 3))
    # Five standard errors: once in a million keys, and this one is fixed.
    assert abs(np.mean(squares) - scale**2) < 5 * np.std(squares) / math.sqrt(count)


def test_descent_completes_a_tensor_of_small_ranks(dtype):
    truth = ff.Tucker((4, 5, 3), ranks=1)
    target = truth.compose(random_like(truth, dtype))
    indices = np.random.default_rng(1).permutation(list(np.ndindex(truth.shape)))[:40]
    problem = ff.Completion(
        truth.shape, indices, np.asarray(target)[tuple(indices.T)], target, normalization="mean"
    )
    factorization = ff.Tucker(truth.shape)
    trajectory = ff.simulate(
        problem,
        factorization,
        ff.GradientDescent(ff.group_rmsprop(1e-2)),
        ff.Gaussian(factor_scale=1e-2)(factorization, jax.random.key(0)),
        observe=ff.AtLosses([1e-6]),
        stop=ff.Stop(loss=1e-6, max_steps=20_000),
    )
    assert trajectory.result_name == "loss_reached"
    # A small start finds the ranks of the truth, and with them what was not observed.
    found = jax.tree.map(jnp.asarray, trajectory.factors)
    held_out = problem.held_out_loss(ff.Factored(factorization, found))
    assert float(held_out) < 1e-3


# --- Identity of a description


def test_equal_descriptions_are_equal():
    one = ff.Tucker((4, 3), ranks=[5, 6])
    assert one == ff.Tucker([4, 3], ranks=(5, 6))
    assert hash(one) == hash(ff.Tucker((4, 3), ranks=(5, 6)))
    assert one != ff.Tucker((4, 3), ranks=(6, 5))
    assert ff.Tucker((4, 3, 2), ranks=np.int64(5)).ranks == 5
    assert ff.Tucker((4, 3, 2)).ranks is None


# --- Bad input


def tucker(*args, **kwargs):
    return lambda: ff.Tucker(*args, **kwargs)


BAD_INPUT = [
    ("order 1", tucker((3,)), "two or more modes, got (3,)"),
    ("order 784", tucker((2,) * 784, ranks=1), "up to 63, got 784: use TensorTrain or CP"),
    ("empty mode", tucker((3, 0, 2)), "size 1 or more, got (3, 0, 2)"),
    ("a fraction of a size", tucker((3, 2.5)), "shape counts indices per mode: integers, got 2.5"),
    ("rank 0", tucker((3, 3), ranks=0), "ranks must be 1 or more, got 0"),
    ("a rank of 0", tucker((3, 3), ranks=(2, 0)), "ranks must be 1 or more, got (2, 0)"),
    ("too few ranks", tucker((3, 3), ranks=(2,)), "an integer or 2 ranks, one per mode, got (2,)"),
    ("too many ranks", tucker((3, 3), ranks=(2, 2, 2)), "one per mode, got (2, 2, 2)"),
    ("a fraction of a rank", tucker((3, 3), ranks=1.5), "ranks counts summed indices: integers"),
    ("too large", tucker((2,) * 40), "Tucker(shape of order 40, ranks=None) takes 8796093023488"),
    ("a large rank", tucker((2,) * 3, ranks=10**5), "ranks=100000) takes 8000000004800000 bytes"),
    ("the remedy", tucker((2,) * 40), "Give smaller ranks=."),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
