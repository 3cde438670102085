"""What every bound promises as an object: dtypes, transformations, NaN, errors, slack."""

import doctest

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow.reference._bound
import factorflow.reference.bounds
import factorflow.reference.entry
import factorflow.reference.norms
import factorflow.reference.ranks
from factorflow import reference as ref
from factorflow.reference._inputs import require_at_least
from tolerances import assert_close

CASES = {
    "main-2x2": ref.bounds_for(dim=2, schatten=[0.5], loose=True),
    "main-3x3": ref.bounds_for(dim=3, schatten=[], loose=True),
    "perturbed-2x2": ref.bounds_for(dim=2, z=-2.0, z_prime=0.5, eps=0.05, schatten=[]),
    "perturbed-3x3": ref.bounds_for(dim=3, z=-2.0, z_prime=0.5, eps=0.05, schatten=[]),
    "norms": tuple(ref.norm_bound(0.5, 3.0, 2.0, constants=c) for c in ("sharp", "paper")),
}
every_bound = pytest.mark.parametrize(
    "bound",
    [
        pytest.param(bound, id=f"{case}-{bound.name}")
        for case, row in CASES.items()
        for bound in row
    ],
)
LOSSES = np.array([[1e-6, 1e-3, 0.02], [0.3, 0.45, 2.0]])


@every_bound
def test_keeps_dtype_and_shape(bound, dtype):
    for narrow in (jnp.dtype(jnp.float32), dtype):
        losses = jnp.asarray(LOSSES, narrow)
        assert bound(losses).dtype == narrow
        assert bound(losses).shape == LOSSES.shape
        # Float32 constants and losses are rounded once each; the formulas amplify neither.
        expected = [[float(bound(float(loss))) for loss in row] for row in losses]
        assert_close(bound(losses), expected)
    assert bound(0.02).dtype == bound(1).dtype == bound(np.int64(1)).dtype == dtype


@every_bound
def test_transformations_change_nothing(bound):
    losses = jnp.asarray(LOSSES)
    expected = bound(losses)
    assert_close(eqx.filter_jit(lambda b, x: b(x))(bound, losses), expected)
    assert_close(jax.vmap(bound)(losses), expected)


@every_bound
def test_derivative(bound):
    loss = 0.02
    step = jnp.finfo(jnp.result_type(float)).eps ** (1 / 3) * loss
    slope = (bound(loss + step) - bound(loss - step)) / (2 * step)
    actual = jax.grad(bound)(loss)
    assert_close(actual, slope, "finite_difference", scale=float(jnp.abs(slope)) + 1.0)


@every_bound
def test_direction(bound):
    """Lower bounds fall with the loss, upper bounds rise: a better fit is a stronger claim."""
    values = np.ravel(bound(jnp.asarray(LOSSES)))
    rising = values[1:] >= values[:-1]
    assert rising.all() if bound.kind == "upper" else (values[1:] <= values[:-1]).all()
    assert values[0] != values[2]


@every_bound
def test_missing_rows_are_never_evidence(bound):
    assert jnp.isnan(bound(jnp.nan))
    assert not bound.holds(jnp.nan, 1.0)
    assert not bound.holds(0.02, jnp.nan)
    assert not bound.holds(2.0, jnp.nan)  # where the bound may claim nothing at all


@every_bound
def test_zero_loss(bound):
    assert not jnp.isnan(bound(0.0))
    if bound.name.startswith("effective_rank"):
        assert float(bound(0.0)) == (0.0 if bound.name.endswith("_excess") else 1.0)


@every_bound
def test_negative_loss_is_refused_where_it_can_be_seen(bound):
    with pytest.raises(ValueError, match=r"loss must be >= 0, got -0.5"):
        bound(-0.5)
    with pytest.raises(ValueError, match=r"got -0.5"):
        bound(jnp.asarray([1.0, -0.5]))
    assert jax.jit(bound)(-0.5).shape == ()


@every_bound
def test_speaks_for_itself(bound):
    assert len(bound.statement) > 40 and bound.proof_idea.endswith(".")
    assert bound.source in ref.BIBTEX or bound.source == "derived for factorflow"


@pytest.mark.parametrize("case", CASES)
def test_names_are_unique(case):
    names = [bound.name for bound in CASES[case]]
    assert len(set(names)) == len(names)


def test_holds_forgives_eight_roundings_and_no_more(dtype):
    eps = float(jnp.finfo(dtype).eps)
    for bound, direction in [(ref.entry_bound(), -1.0), (ref.distance_bound(), 1.0)]:
        loss = jnp.asarray(0.02, dtype)
        limit = float(bound(loss))
        assert bound.holds(loss, limit * (1 + 4 * direction * eps))
        assert not bound.holds(loss, limit * (1 + 20 * direction * eps))
        assert not bound.holds(loss, limit * (1 + 4 * direction * eps), slack_ulp=0.0)
        assert bound.holds(loss, limit * (1 + 20 * direction * eps), slack_ulp=40.0)
    assert ref.entry_bound().holds(0.02, -100.0)  # the sign of w11 is free
    with pytest.raises(ValueError, match=r"slack_ulp must be >= 0, got -1.0"):
        ref.entry_bound().holds(0.02, 1.0, slack_ulp=-1.0)


@pytest.mark.x64
def test_holds_takes_the_slack_of_the_coarser_dtype():
    bound = ref.entry_bound()
    loss = jnp.asarray(0.02)
    value = bound(loss) * (1 - 1e-7)  # a rounding error of float32
    assert not bound.holds(loss, value)
    assert bound.holds(loss.astype(jnp.float32), value)
    assert bound.holds(loss, value.astype(jnp.float32))


def test_holds_broadcasts_and_vmaps():
    bound = ref.entry_bound()
    losses, values = jnp.asarray([0.02, 0.02, 1e-4]), jnp.asarray([4.9, 4.7, 70.7])
    assert bound.holds(losses, values).tolist() == [True, False, True]
    assert jax.jit(jax.vmap(bound.holds))(losses, values).tolist() == [True, False, True]


def test_observations_are_leaves():
    eps = jnp.asarray([0.01, 0.1, 0.5])
    batched = jax.vmap(lambda e: ref.perturbed_entry_bound(-2.0, 0.5, e)(0.0))(eps)
    assert_close(batched, 1 / np.asarray(eps))
    distances = jax.vmap(lambda e: ref.distance_bound(eps=e)(0.02))(eps)
    assert_close(distances, 0.2 + np.asarray(eps))
    with pytest.raises(ValueError, match="call it outside jit"):
        jax.vmap(lambda e: ref.bounds_for(eps=e)[0](0.0))(eps)


@pytest.mark.x64
def test_excess_keeps_digits_where_the_rank_rounds_to_one():
    assert float(ref.effective_rank_supremum()(1e-20)) == 1.0
    # exp h(p) - 1 at p = l/2, up to terms of size l^2 ln^2 l.
    p = 0.5e-20
    assert_close(ref.effective_rank_supremum(excess=True)(1e-20), p - p * np.log(p), scale=1e-18)
    loss = jnp.asarray([1e-3, 0.1, 0.9])
    for make in (ref.effective_rank_supremum, ref.effective_rank_sqrt_bound):
        assert_close(make(excess=True)(loss) + 1.0, make()(loss))
    assert_close(
        ref.effective_rank_dxd_bound(3, excess=True)(loss[0]) + 1.0,
        ref.effective_rank_dxd_bound(3)(loss[0]),
    )


def test_main_case_is_recognized_up_to_signs():
    names = {bound.name for bound in ref.bounds_for()}
    assert {"entry", "entry_infimum", "distance_to_rank", "effective_rank_supremum"} <= names
    assert names == {bound.name for bound in ref.bounds_for(2, -1.0, 1.0, 0.0)}
    for other in [(2.0, 1.0, 0.0), (1.0, 2.0, 0.0), (1.0, 1.0, 0.1)]:
        names = {bound.name for bound in ref.bounds_for(2, *other)}
        assert names == {
            "perturbed_entry",
            "schatten[0.5]",
            "schatten[1]",
            "schatten[2]",
            "distance_to_rank",
        }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ref.entry_bound(1), "dim must be >= 2, got 1"),
        (lambda: require_at_least("dim", 2.5, 2, ""), "dim must be an integer, got 2.5"),
        (lambda: ref.distance_bound(0), "dim must be >= 2, got 0"),
        (lambda: ref.bounds_for(1), "dim must be >= 2, got 1"),
        (lambda: ref.effective_rank_dxd_bound(2), "effective_rank_supremum"),
        (lambda: ref.schatten_bound(0.0), "p must be > 0, got 0.0"),
        (lambda: ref.schatten_bound(-1.0), "p must be > 0, got -1.0"),
        (lambda: ref.schatten_bound(float("nan")), "p must be > 0, got nan"),
        (lambda: ref.schatten_bound(1.0, ref.distance_bound()), "entry=distance_to_rank"),
        (lambda: ref.perturbed_entry_bound(0.0, 1.0, 0.1), "z must be finite and nonzero"),
        (lambda: ref.bounds_for(2, 1.0, 0.0), "z_prime must be finite and nonzero"),
        (lambda: ref.distance_bound(eps=0.1, constants="paper"), "eps=0.1"),
        (lambda: ref.norm_bound(0.0, 1.0), "norm_e11 must be > 0"),
        (lambda: ref.norm_bound(1.0, -1.0), "norm_unit_max must be > 0"),
        (lambda: ref.norm_bound(1.0, 0.5), "norm_e11=1.0 exceeds norm_unit_max=0.5"),
        (lambda: ref.norm_bound(1.0, 1.0, 0.5), "triangle must be >= 1, got 0.5"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schatten_names_its_measure():
    assert ref.schatten_bound(1).quantity == "schatten_norm[1]"
    assert ref.schatten_bound(1 / 3).quantity == f"schatten_norm[{1 / 3}]"
    assert ref.schatten_bound(float("inf")).quantity == "schatten_norm[inf]"


@pytest.mark.parametrize("module", ["_bound", "bounds", "entry", "norms", "ranks"])
def test_examples_run(module):
    outcome = doctest.testmod(getattr(factorflow.reference, module))
    assert outcome.failed == 0 and outcome.attempted > 0
