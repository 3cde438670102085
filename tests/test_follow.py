"""Many runs at once: bits do not depend on company, numbers do not cause compilation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import factorflow as ff
from factorflow._certify import follow_certified as follow
from factorflow._spec import prepare
from runs import (
    GENERIC,
    RAZIN_COHEN,
    assert_ulps,
    compose,
    descend,
    flow,
    in_numpy,
    limits,
    on_device,
    random_factors,
    steps_of,
)

FZ = ff.DeepMatrix((2, 2), depth=2)
MEASURES = ["loss", "product"]


def numbers(index: int) -> dict:
    """What differs between runs of one structure: everything that is a number."""
    problem = ff.razin_cohen_problem(z=1 - 0.02 * index, eps=0.01 * index)
    return {
        "problem": problem,
        "factors": on_device(random_factors(FZ, seed=index)),
        "observe": ff.AtLosses(np.geomspace(0.3, 1e-2 * (1 + index), 4)),
        "stop": limits(loss=1e-3 * (1 + index), max_steps=300 - 10 * index, max_time=20 - index),
    }


DYNAMICS = {
    "descent": lambda index: ff.GradientDescent(0.05 + 0.01 * index),
    "flow": lambda index: flow(rtol=1e-5 * (1 + index)),
}
every_dynamics = pytest.mark.parametrize("dynamics", DYNAMICS.values(), ids=DYNAMICS)


def bits(trajectory) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trajectory)]


@every_dynamics
def test_a_run_has_the_same_bits_alone_and_in_any_batch(dynamics):
    count = 17
    runs = [{**numbers(index), "dynamics": dynamics(index)} for index in range(count)]
    alone = [ff.simulate(factorization=FZ, measures=MEASURES, **run) for run in runs]
    endings = {trajectory.result_name for trajectory in alone}
    assert len(endings) > 1, "the lanes should end for different reasons"
    specs = [prepare(factorization=FZ, measures=MEASURES, **run) for run in runs]
    for width in (1, 2, 3, 17):
        # The last ones, so that a lane's place differs from batch to batch.
        first = count - width
        batch = follow(specs[first:])
        for lane in range(width):
            in_batch = jax.tree.map(lambda leaf, lane=lane: leaf[lane], batch)
            assert bits(in_batch) == bits(alone[first + lane]), f"lane {lane} of {width}"


@pytest.mark.x64
@pytest.mark.parametrize("shape, rank, widths", [((8, 8, 8), 64, (4, 16)), ((3, 3, 2), 2, (4, 8))])
def test_a_tensor_has_the_same_bits_alone_and_in_batches(shape, rank, widths):
    # Sums of many numbers over a wide batch, and of few over a narrow one: a compiler may reorder
    # either. (With 16 numbers a run, it does so again from 16 lanes on, in the last digit.)
    fz = ff.CP(shape, rank=rank)

    def run(seed: int) -> dict:
        key = jax.random.key(seed)
        return {
            "problem": ff.random_low_rank_problem(key, shape, rank=1, n_observed=12),
            "factorization": fz,
            "dynamics": ff.GradientDescent(
                ff.Optimizer("group_rmsprop", {"learning_rate": 1e-2, "eps": 1e-6})
            ),
            "factors": ff.Gaussian(factor_scale=0.3)(fz, key),
            "observe": ff.AtEnd(),
            "stop": limits(max_steps=30 + seed),
            "measures": ["loss", "component_norms"],
        }

    alone = bits(ff.simulate(**run(1)))
    specs = [prepare(**run(seed)) for seed in range(max(widths))]
    for width in widths:
        batch = follow(specs[:width])
        assert bits(jax.tree.map(lambda leaf: leaf[1], batch)) == alone, f"width {width}"


def test_a_batch_keeps_the_order_of_its_runs():
    specs = [
        prepare(factorization=FZ, measures=MEASURES, dynamics=ff.GradientDescent(0.1), **numbers(i))
        for i in (0, 1, 2)
    ]
    batch = follow(specs)
    for lane, spec in enumerate(specs):
        np.testing.assert_array_equal(batch.levels[lane], spec.levels)
    # Padding does not show.
    assert follow(specs[:1]).levels.shape == (1, 4)
    assert follow(specs[:1], width=3).levels.shape == (1, 4)


def test_runs_of_one_structure_trace_once():
    traced = []

    def counting(snapshot: ff.Snapshot):
        traced.append(snapshot.step)
        return snapshot.loss

    def run(index: int, dynamics, **changes) -> ff.Trajectory:
        options = {**numbers(index), "dynamics": dynamics, **changes}
        return ff.simulate(factorization=FZ, measures=[counting], **options)

    first = run(0, ff.GradientDescent(0.05))
    once = len(traced)
    assert once > 0
    assert first.measures["counting"].shape == (4,)
    losses = set()
    for index in range(1, 4):
        losses.add(float(run(index, ff.GradientDescent(0.03 * index)).stats["loss"]))
    assert len(losses) == 3
    run(0, ff.GradientDescent(np.float32(0.1)), key=jax.random.key(5))
    assert len(traced) == once
    # Another number of rows is another structure.
    run(0, ff.GradientDescent(0.05), observe=ff.AtLosses([0.1]))
    assert len(traced) == 2 * once


def test_user_functions_see_the_moment_of_their_row():
    def moment(snapshot: ff.Snapshot):
        where = jnp.stack([snapshot.time, snapshot.step.astype(snapshot.time.dtype)])
        return jnp.concatenate([where, snapshot.dense.ravel(), snapshot.factors[0].ravel()])

    def residual(snapshot: ff.Snapshot):
        return snapshot.problem.loss(snapshot.product) - snapshot.loss

    start = random_factors(FZ)
    trajectory = ff.simulate(
        ff.razin_cohen_problem(),
        FZ,
        ff.GradientDescent(0.1),
        on_device(start),
        observe=ff.AtSteps([0, 3]),
        stop=ff.Stop(max_steps=3),
        measures=[moment, residual, "loss"],
    )
    path = steps_of(descend(RAZIN_COHEN, start, 0.1), 3)
    for row, step in enumerate((0, 3)):
        factors = path[step]
        expected = [0.1 * step, step, *compose(factors).ravel(), *factors[0].ravel()]
        # Three steps of some ten roundings.
        assert_ulps(trajectory.measures["moment"][row], expected, 30)
    assert not trajectory.measures["residual"].any()


@every_dynamics
def test_the_factors_dtype_is_the_dtype_of_the_run(dynamics):
    factors = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32),
        ff.balanced_factors(FZ, jnp.asarray(50 * GENERIC)),
    )
    options = {**numbers(0), "stop": limits(loss=1e-2), "dynamics": dynamics(0)}
    options["factors"] = factors
    trajectory = ff.simulate(factorization=FZ, measures=MEASURES, **options)
    # The evidence of the certificate is made of plain numbers, computed outside the run.
    followed = eqx.tree_at(lambda t: t.certificate.evidence, trajectory, {})
    dtypes = {np.asarray(leaf).dtype.name for leaf in jax.tree.leaves(followed)}
    assert dtypes == {"float32", "int32", "bool"}
    assert trajectory.reached.all()
    assert trajectory.result_name == "loss_reached"
    eps = np.finfo(np.float32).eps
    np.testing.assert_array_equal(trajectory.levels, np.geomspace(0.3, 1e-2, 4).astype(np.float32))
    if dynamics(0).continuous:
        # Levels are hit to some ulp of float32.
        losses = trajectory.measures["loss"]
        np.testing.assert_allclose(losses, trajectory.levels, rtol=16 * eps)
    else:
        path = steps_of(
            descend(RAZIN_COHEN, in_numpy(factors, np.float32), 0.05), trajectory.steps[-1]
        )
        expected = [compose(path[step]) for step in trajectory.steps]
        # Ten roundings per step, amplified by what the start grows by, some ten times.
        assert_ulps(trajectory.measures["product"], expected, 10 * trajectory.steps[-1])
