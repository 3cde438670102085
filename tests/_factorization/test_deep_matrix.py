"""Deep matrix factorization against numpy's products of the same factors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import factorflow as ff
from tolerances import assert_close


def product_by_numpy(factors) -> np.ndarray:
    matrices = [np.asarray(factor, np.float64) for factor in factors][::-1]
    return matrices[0] if len(matrices) == 1 else np.linalg.multi_dot(matrices)


REFERENCES = {ff.DeepMatrix: product_by_numpy}

# (factorization, shapes of its factors)
FACTORIZATIONS = [
    (ff.DeepMatrix((4, 3), depth=1), [(4, 3)]),
    (ff.DeepMatrix((2, 2), depth=2), [(2, 2), (2, 2)]),
    (ff.DeepMatrix((2, 5), depth=2), [(2, 5), (2, 2)]),
    (ff.DeepMatrix((5, 2), depth=3), [(2, 2), (2, 2), (5, 2)]),
    (ff.DeepMatrix((6, 5), depth=3, hidden=7), [(7, 5), (7, 7), (6, 7)]),
    (ff.DeepMatrix((3, 4), depth=4, hidden=(1, 5, 2)), [(1, 4), (5, 1), (2, 5), (3, 2)]),
    (ff.DeepMatrix((3, 3), depth=5), [(3, 3)] * 5),
    (ff.DeepMatrix((1, 1), depth=2, hidden=[3]), [(3, 1), (1, 3)]),
]
EACH = pytest.mark.parametrize(
    ("factorization", "shapes"),
    FACTORIZATIONS,
    ids=[f"{fz.shape} {fz.hidden_widths}" for fz, _ in FACTORIZATIONS],
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
    assert factorization.widths == (shapes[0][1], *(rows for rows, _ in shapes))
    assert factorization.hidden_widths == factorization.widths[1:-1]
    assert jax.tree.leaves(factorization) == []  # static: it holds no arrays


@EACH
def test_compose_and_entries(factorization, shapes, dtype):
    factors = random_like(factorization, dtype)
    expected = REFERENCES[ff.DeepMatrix](factors)
    every = np.array(list(np.ndindex(factorization.shape)))[::-1]
    product, entries = jax.jit(
        lambda factors: (
            factorization.compose(factors),
            factorization.entries(factors, jnp.asarray(every)),
        )
    )(factors)
    assert product.dtype == entries.dtype == dtype
    assert_close(product, expected, scale=10.0)  # entries of about 10 at most
    assert_close(entries, [expected[tuple(index)] for index in every], scale=10.0)
    chain = factorization.matrix_chain(factors)
    np.testing.assert_array_equal(product_by_numpy(chain), expected)


def test_entries_under_vmap_and_eagerly(dtype):
    factorization = ff.DeepMatrix((4, 3), depth=3, hidden=2)
    lanes = [random_like(factorization, dtype, seed) for seed in range(3)]
    stacked = tuple(jnp.stack(layer) for layer in zip(*lanes, strict=True))
    indices = jnp.asarray([[3, 2], [0, 1], [3, 2]])
    batched = jax.vmap(factorization.entries, in_axes=(0, None))(stacked, indices)
    for lane, factors in enumerate(lanes):
        expected = product_by_numpy(factors)[[3, 0, 3], [2, 1, 2]]
        assert_close(batched[lane], expected, scale=10.0)
        assert_close(factorization.entries(factors, indices), expected, scale=10.0)


def intermediate_sizes(jaxpr) -> list[int]:
    sizes = []
    for equation in jaxpr.eqns:
        sizes += [math.prod(variable.aval.shape) for variable in equation.outvars]
        for inner in jaxprs_in_params(equation.params):
            sizes += intermediate_sizes(inner)
    return sizes


@pytest.mark.parametrize("depth", [2, 4])
def test_entries_never_materialize_the_product(depth):
    factorization = ff.DeepMatrix((500, 400), depth=depth, hidden=3)
    indices = jnp.zeros((7, 2), jnp.int32)
    entries = jax.make_jaxpr(factorization.entries)(factorization.shapes(), indices)
    compose = jax.make_jaxpr(factorization.compose)(factorization.shapes())
    # A transposed factor is the largest thing on the way.
    assert max(intermediate_sizes(entries.jaxpr)) <= 500 * 3
    assert max(intermediate_sizes(compose.jaxpr)) >= 500 * 400


# --- Conservation


def gradients_by_hand(factors, gradient: np.ndarray) -> list[np.ndarray]:
    """Of any loss with this gradient in the product: (W_L..W_{j+1})^T G (W_{j-1}..W_1)^T."""
    gradients = []
    for j in range(len(factors)):
        after = np.eye(gradient.shape[0])
        for factor in factors[:j:-1]:
            after = after @ factor
        before = np.eye(gradient.shape[1])
        for factor in factors[:j]:
            before = factor @ before
        gradients.append(after.T @ gradient @ before.T)
    return gradients


@EACH
def test_imbalances_and_their_conservation(factorization, shapes, dtype):
    factors = random_like(factorization, dtype)
    precise = [np.asarray(factor, np.float64) for factor in factors]
    gradient = np.random.default_rng(1).standard_normal(factorization.shape)
    direction = gradients_by_hand(precise, gradient)
    tangents = tuple(jnp.asarray(d, dtype) for d in direction)
    conserved, drift = jax.jit(lambda f, t: jax.jvp(factorization.conserved, (f,), (t,)))(
        factors, tangents
    )
    assert len(conserved) == len(shapes) - 1
    for j, (imbalance, change) in enumerate(zip(conserved, drift, strict=True)):
        width = factorization.hidden_widths[j]
        expected = np.zeros((width, width))
        for a, b in np.ndindex(width, width):
            outgoing = sum(row[a] * row[b] for row in precise[j + 1])
            incoming = sum(precise[j][a] * precise[j][b])
            expected[a, b] = outgoing - incoming
        assert_close(imbalance, expected, scale=10.0)
        # To first order the imbalance does not move along the gradient of any loss...
        size = np.linalg.norm(direction[j]) * np.linalg.norm(precise[j])
        assert_close(change, np.zeros((width, width)), scale=max(size, 1.0))
    # ... to second order it does, by what gradient descent therefore drifts per step.
    step = 0.125
    moved = tuple(f - step * t for f, t in zip(factors, tangents, strict=True))
    for j, imbalance in enumerate(factorization.conserved(moved)):
        outer, inner = direction[j + 1], direction[j]
        expected = np.asarray(conserved[j]) + step**2 * (outer.T @ outer - inner @ inner.T)
        size = max(np.linalg.norm(outer), np.linalg.norm(inner), 10.0) ** 2
        assert_close(imbalance, expected, scale=size)


def test_imbalances_move_in_other_directions(dtype):
    factorization = ff.DeepMatrix((3, 3), depth=3)
    factors, other = random_like(factorization, dtype, 0), random_like(factorization, dtype, 1)
    _, drift = jax.jvp(factorization.conserved, (factors,), (other,))
    assert all(float(jnp.max(jnp.abs(change))) > 0.1 for change in drift)


# --- Identity of a description


def test_equal_descriptions_are_equal():
    one = ff.DeepMatrix((4, 3), depth=3, hidden=[5, 6])
    assert one == ff.DeepMatrix([4, 3], depth=3, hidden=(5, 6))
    assert hash(one) == hash(ff.DeepMatrix((4, 3), depth=3, hidden=(5, 6)))
    assert one != ff.DeepMatrix((4, 3), depth=3, hidden=(6, 5))
    assert ff.DeepMatrix((4, 3), depth=3, hidden=np.int64(5)).hidden_widths == (5, 5)


# --- Bad input


def deep(*args, **kwargs):
    return lambda: ff.DeepMatrix(*args, **kwargs)


BAD_INPUT = [
    ("depth 0", deep((2, 2), depth=0), r"depth counts matrices and must be 1 or more, got 0"),
    ("negative depth", deep((2, 2), depth=-1), r"1 or more, got -1"),
    ("one size", deep((2,), depth=2), r"shape must be two sizes of 1 or more, got \(2,\)"),
    ("three sizes", deep((2, 2, 2), depth=2), r"two sizes.*got \(2, 2, 2\)"),
    ("size 0", deep((0, 2), depth=2), r"1 or more, got \(0, 2\)"),
    ("too few widths", deep((2, 2), depth=3, hidden=(2,)), r"depth - 1 = 2 widths, got \(2,\)"),
    ("too many widths", deep((2, 2), depth=1, hidden=[2]), r"depth - 1 = 0 widths, got \(2,\)"),
    ("width 0", deep((2, 2), depth=2, hidden=0), r"hidden widths must be 1 or more, got 0"),
    ("a width of 0", deep((2, 2), depth=3, hidden=(2, 0)), r"1 or more, got \(2, 0\)"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
