"""Tensor trains against explicit products of slices, TensorLy and what gradient flow conserves."""

import functools
import itertools
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


def entry_by_slices(factors, index) -> float:
    """The product of the matrices that an index picks, one per core."""
    slices = [np.asarray(core, float)[:, i] for core, i in zip(factors, index, strict=True)]
    return functools.reduce(np.matmul, slices).item()


REFERENCES = {ff.TensorTrain: entry_by_slices}

# (factorization, shapes of its cores)
FACTORIZATIONS = [
    (ff.TensorTrain((3, 4)), [(1, 3, 3), (3, 4, 1)]),
    (ff.TensorTrain((4, 3), ranks=5), [(1, 4, 5), (5, 3, 1)]),
    (ff.TensorTrain((4, 5, 6), ranks=(2, 3)), [(1, 4, 2), (2, 5, 3), (3, 6, 1)]),
    (ff.TensorTrain((2, 3, 4), ranks=1), [(1, 2, 1), (1, 3, 1), (1, 4, 1)]),
    (ff.TensorTrain((2, 3, 2, 4)), [(1, 2, 2), (2, 3, 6), (6, 2, 4), (4, 4, 1)]),
    (
        ff.TensorTrain((2, 1, 3, 2, 2), ranks=[2, 4, 1, 3]),
        [(1, 2, 2), (2, 1, 4), (4, 3, 1), (1, 2, 3), (3, 2, 1)],
    ),
    # A mode whose slices are gathered, not multiplied.
    (ff.TensorTrain((2, 40, 3), ranks=2), [(1, 2, 2), (2, 40, 2), (2, 3, 1)]),
]
EACH = pytest.mark.parametrize(
    ("factorization", "shapes"),
    FACTORIZATIONS,
    ids=[f"{fz.shape} {fz.inner_ranks}" for fz, _ in FACTORIZATIONS],
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
    assert factorization.inner_ranks == tuple(after for _, _, after in shapes[:-1])
    assert factorization.degree == len(shapes)
    assert factorization.paths == math.prod(factorization.inner_ranks)
    assert jax.tree.leaves(factorization) == []  # static: it holds no arrays


@EACH
def test_compose_and_entries(factorization, shapes, dtype):
    factors = random_like(factorization, dtype)
    every = np.array(list(np.ndindex(factorization.shape)))[::-1]
    expected = [REFERENCES[ff.TensorTrain](factors, index) for index in every]
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
    by_tensorly = tensorly.tt_to_tensor([np.asarray(core, float) for core in factors])
    assert_close(product, by_tensorly, scale=10.0)


@pytest.mark.parametrize("shape", [(4, 3), (5, 5)])
def test_order_2_is_a_chain_of_matrices(shape, dtype):
    factorization = ff.TensorTrain(shape, ranks=5)
    factors = random_like(factorization, dtype)
    product = ff.Factored(factorization, factors)
    first, second = factorization.matrix_chain(factors)
    assert_close(second @ first, product.dense(), scale=10.0)
    values = np.exp(product.log_singular_values())
    expected = np.linalg.svd(np.asarray(product.dense(), float), compute_uv=False)
    assert_close(values, expected, "linear_algebra", scale=10.0)


def test_higher_orders_have_no_singular_values(dtype):
    factorization = ff.TensorTrain((2, 3, 4))
    with pytest.raises(ValueError, match="tensor of order 3, which has no singular values"):
        factorization.matrix_chain(random_like(factorization, dtype))


def test_entries_never_materialize_the_product(dtype):
    factorization = ff.TensorTrain((60, 50, 40), ranks=3)
    indices = jnp.zeros((7, 3), jnp.int32)
    structs = factorization.shapes()
    compiled = jax.jit(factorization.entries).lower(structs, indices).compile()
    # The largest core is 25 times smaller than the product.
    assert compiled.memory_analysis().temp_size_in_bytes < dtype.itemsize * 60 * 50 * 40 / 10


# --- High orders


def near_identity(factorization, dtype) -> tuple[jax.Array, ...]:
    """Cores whose products neither grow nor vanish, whatever the order."""
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(
            np.eye(before, after)[:, None] + rng.normal(scale=0.02, size=(before, size, after)),
            dtype,
        )
        for before, size, after in (struct.shape for struct in factorization.shapes())
    )


def test_order_784(dtype):
    factorization = ff.TensorTrain((2,) * 784, ranks=4)
    assert factorization.paths == 4**783
    factors = near_identity(factorization, dtype)
    indices = np.random.default_rng(1).integers(2, size=(2000, 784))
    compiled = jax.jit(factorization.entries).lower(factors, jnp.asarray(indices)).compile()
    # The stacked cores, the indices, and a few numbers per row.
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * 2**20
    entries = compiled(factors, jnp.asarray(indices))
    expected = [REFERENCES[ff.TensorTrain](factors, index) for index in indices[:20]]
    # One rounding per mode, some thousand in all.
    assert_close(entries[:20], expected, "linear_algebra")


@pytest.mark.parametrize("ranks", [(2, 3) * 9 + (2,), 3])
def test_padded_cores(ranks, dtype):
    """Beyond order 16 entries come from one scan: unequal sizes, values and gradients."""
    factorization = ff.TensorTrain((2, 3, 2, 4) * 5, ranks=ranks)
    factors = near_identity(factorization, dtype)
    rng = np.random.default_rng(1)
    indices = np.stack([rng.integers(size, size=9) for size in factorization.shape], axis=1)

    def total(factors):
        entries = factorization.entries(factors, jnp.asarray(indices))
        return jnp.sum(entries * jnp.arange(1, 10, dtype=dtype)), entries

    gradient, entries = jax.jit(jax.grad(total, has_aux=True))(factors)
    assert_close(entries, [entry_by_slices(factors, index) for index in indices])
    # The derivative with respect to a core: what stands before it times what stands after it.
    for mode in (0, 7, 19):
        expected = np.zeros(factors[mode].shape)
        for weight, index in enumerate(indices, start=1):
            slices = [np.asarray(core, float)[:, i] for core, i in zip(factors, index, strict=True)]
            before = functools.reduce(np.matmul, slices[:mode], np.eye(1))
            after = functools.reduce(np.matmul, slices[mode + 1 :], np.eye(len(slices[mode].T)))
            expected[:, index[mode]] += weight * np.outer(before, after)
        assert_close(gradient[mode], expected, scale=10.0)


# --- Gradients


@pytest.mark.x64
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 2)])
def test_gradients_against_finite_differences(shape):
    factorization = ff.TensorTrain(shape, ranks=3)
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
    """One slice after the other; with a sign of +1 a quantity that is not conserved."""
    sums = []
    for left, right in itertools.pairwise(factors):
        left, right = np.asarray(left, float), np.asarray(right, float)
        before = sum(left[:, i].T @ left[:, i] for i in range(left.shape[1]))
        after = sum(right[:, i] @ right[:, i].T for i in range(right.shape[1]))
        sums.append(before + sign * after)
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
    factorization = ff.TensorTrain((3, 2, 4), ranks=(2, 3))
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
    factorization = ff.TensorTrain((3, 4, 2), ranks=(2, 5))
    count, scale = 4000, 0.7
    keys = jax.random.split(jax.random.key(1), count)
    gaussian = ff.Gaussian(product_scale=scale)
    draw = jax.jit(jax.vmap(lambda key: factorization.compose(gaussian(factorization, key))))
    squares = np.mean(np.asarray(draw(keys), float) ** 2, axis=(1, 2, 3))
    # Five standard errors: once in a million keys, and this one is fixed.
    assert abs(np.mean(squares) - scale**2) < 5 * np.std(squares) / math.sqrt(count)


def test_descent_completes_a_tensor_of_small_ranks(dtype):
    truth = ff.TensorTrain((4, 5, 3), ranks=1)
    target = truth.compose(random_like(truth, dtype))
    indices = np.random.default_rng(1).permutation(list(np.ndindex(truth.shape)))[:40]
    problem = ff.Completion(
        truth.shape, indices, np.asarray(target)[tuple(indices.T)], target, normalization="mean"
    )
    factorization = ff.TensorTrain(truth.shape)
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
    one = ff.TensorTrain((4, 3, 2), ranks=[5, 6])
    assert one == ff.TensorTrain([4, 3, 2], ranks=(5, 6))
    assert hash(one) == hash(ff.TensorTrain((4, 3, 2), ranks=(5, 6)))
    assert one != ff.TensorTrain((4, 3, 2), ranks=(6, 5))
    assert ff.TensorTrain((4, 3, 2), ranks=np.int64(5)).ranks == 5
    assert ff.TensorTrain((4, 3, 2)).ranks is None


# --- Bad input


def train(*args, **kwargs):
    return lambda: ff.TensorTrain(*args, **kwargs)


BAD_INPUT = [
    ("order 1", train((3,)), "two or more modes, got (3,)"),
    ("empty mode", train((3, 0, 2)), "size 1 or more, got (3, 0, 2)"),
    ("a fraction of a size", train((3, 2.5)), "shape counts indices per mode: integers, got 2.5"),
    ("rank 0", train((3, 3), ranks=0), "ranks must be 1 or more, got 0"),
    ("a rank of 0", train((3, 3, 3), ranks=(2, 0)), "ranks must be 1 or more, got (2, 0)"),
    ("too few ranks", train((3, 3, 3), ranks=(2,)), "an integer or order - 1 = 2 ranks, got (2,)"),
    ("too many ranks", train((3, 3), ranks=(2, 2)), "order - 1 = 1 ranks, got (2, 2)"),
    ("no ranks", train((3, 3), ranks=()), "order - 1 = 1 ranks, got ()"),
    ("a fraction of a rank", train((3, 3), ranks=1.5), "ranks counts summed indices: integers"),
    ("too large", train((2,) * 784), "order 784, ranks=None) takes 2^"),
    ("a large rank", train((2,) * 9, ranks=10**9), "ranks=1000000000) takes 2^66 bytes"),
    ("the remedy", train((2,) * 784), "Give smaller ranks=."),
    ("two large ranks", train((2,) * 3, ranks=(1, 10**15)), "ranks up to 1000000000000000) takes"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
