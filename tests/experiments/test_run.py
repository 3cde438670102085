"""Running: one compilation per structure, the same bits in any batch, nothing lost."""

import importlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

import factorflow as ff
from experiments.common import base
from factorflow.experiments import RandomLowRankTask, RazinCohenTask, Store, run, sweep

# The package's `run` is the function.
module = importlib.import_module("factorflow.experiments.run")


def variables(store, runs):
    dataset = store.dataset(runs)
    return {name: dataset[name].values for name in dataset.data_vars}


@pytest.fixture(scope="module")
def runs():
    return sweep(base(), dynamics__optimizer=[1e-2, 2e-2], seed=range(3))


@pytest.fixture(scope="module")
def store(runs, tmp_path_factory):
    return run(runs, tmp_path_factory.mktemp("together") / "store", progress=False)


def test_a_batch_agrees_with_single_runs_bit_for_bit(runs, store, tmp_path):
    together = variables(store, runs)
    for chunk, order in ((1, runs), (4, runs[::-1])):
        apart = run(order, tmp_path / str(chunk), chunk=chunk, progress=False)
        for name, values in variables(apart, runs).items():
            np.testing.assert_array_equal(values, together[name], err_msg=name)


def test_a_run_agrees_with_simulate(runs, store):
    experiment = runs[1]
    spec = experiment.build()
    trajectory = ff.simulate(
        experiment.task.build(jax.random.key(0)),
        experiment.factorization,
        experiment.dynamics,
        spec.factors,
        observe=experiment.observe,
        stop=experiment.stop,
        measures=experiment.measures,
    )
    stored = store.dataset([experiment])
    for name, values in trajectory.measures.items():
        np.testing.assert_array_equal(values, stored[name].values[0])
    np.testing.assert_array_equal(trajectory.steps, stored["step"].values[0])


@pytest.mark.x64
def test_one_compilation_per_structure(tmp_path, monkeypatch):
    """Two depths with many learning rates, scales, seeds and levels are two structures."""
    traced = []
    from factorflow import _follow

    original = _follow._start

    def counted(spec):
        traced.append(spec.factorization.depth)
        return original(spec)

    monkeypatch.setattr(_follow, "_start", counted)
    jax.clear_caches()
    runs = sweep(
        base(measures=["loss"]),
        factorization__depth=[2, 3],
        dynamics__optimizer=[1e-2, 2e-2],
        initializer__product_scale=[1e-2, 2e-2],
        seed=range(3),
    )
    run(runs, tmp_path / "store", progress=False, chunk=5)
    # 12 runs per depth in chunks of 4: three batches of one width, traced once.
    assert sorted(traced) == [2, 3]


def test_each_lane_stops_on_its_own(store, runs):
    steps = store.dataset(runs)["steps"].values
    fast, slow = steps[3:], steps[:3]
    assert np.all(fast < slow)
    # Half the rate takes about twice the steps.
    np.testing.assert_allclose(slow / fast, 2, rtol=0.1)


def test_running_again_computes_nothing(runs, store, monkeypatch):
    monkeypatch.setattr(module, "follow_certified", lambda *_: pytest.fail("ran again"))
    run(runs, Store(store.path), progress=False)


def test_an_interrupted_run_keeps_finished_batches_and_resumes(tmp_path, monkeypatch):
    runs = sweep(base(), seed=range(6))
    original, calls = module.follow_certified, []

    def interrupted(specs, width, certify):
        calls.append(len(specs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(specs, width, certify)

    monkeypatch.setattr(module, "follow_certified", interrupted)
    with ThreadPoolExecutor(1) as one, pytest.raises(KeyboardInterrupt):
        run(runs, tmp_path / "store", executor=one, chunk=2, progress=False)
    # The first batch is in; a third, in flight at the interruption, may be.
    assert len(Store(tmp_path / "store")) in (2, 4)
    monkeypatch.setattr(module, "follow_certified", original)
    finished = run(runs, tmp_path / "store", chunk=2, progress=False)
    assert len(finished) == 6
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_an_interruption_ends_what_other_threads_follow(tmp_path, monkeypatch):
    # Of hours: without an end of its own this test would not come back.
    endless = base(dynamics=ff.GradientDescent(1e-9), stop=ff.Stop(loss=3e-2, max_steps=2**31 - 1))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "wait", interrupted)
    with ThreadPoolExecutor(1) as one, pytest.raises(KeyboardInterrupt):
        run(endless, tmp_path / "store", executor=one, progress=False)
    assert not (tmp_path / "store").exists()


def test_an_interruption_while_writing_loses_nothing_that_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILES_EVERY", 0)
    original, interruptions = Store.add, [KeyboardInterrupt]

    def add(self, *batch):
        if interruptions:
            raise interruptions.pop()
        original(self, *batch)

    monkeypatch.setattr(Store, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run(base(), tmp_path / "store", progress=False)
    assert len(Store(tmp_path / "store")) == 1


def test_what_ends_at_once_shares_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILES_EVERY", 1e9)
    runs = sweep(base(), factorization__depth=[2, 3], seed=range(5))
    store = run(runs, tmp_path / "store", chunk=2, progress=False)
    assert sorted(store.index["file"].value_counts()["count"]) == [5, 5]
    seeds = store.dataset(runs)["seed"].values
    np.testing.assert_array_equal(seeds, [*range(5), *range(5)])
    (alone,) = store.dataset(runs[3])["entry[0,0]"].values
    again = run(runs[3], tmp_path / "other", progress=False).dataset()
    np.testing.assert_array_equal(alone, again["entry[0,0]"].values[0])


def test_a_failed_run_is_stored_with_its_result(tmp_path):
    wild = base(dynamics=ff.GradientDescent(50.0))
    store = run([wild, base()], tmp_path / "store", progress=False)
    assert store.dataset([wild, base()])["result"].values.tolist() == [
        "loss_nonfinite",
        "loss_reached",
    ]


def test_the_same_experiment_twice_runs_once(tmp_path):
    assert len(run([base(), base()], tmp_path / "store", progress=False)) == 1


def test_a_bad_experiment_is_refused_before_anything_runs(tmp_path):
    narrow = base(factorization=ff.DeepMatrix((2, 2), 2, hidden=1))
    with pytest.raises(ValueError, match=r"hidden width.*In the experiment with axes"):
        run([base(), narrow], tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_a_bad_experiment_is_refused_while_the_largest_compile(tmp_path, monkeypatch):
    """The largest have begun by then: nothing of them is stored, nobody waits for them."""
    begun, over = threading.Event(), threading.Event()

    def endless(*_):
        begun.set()
        over.wait(60)

    monkeypatch.setattr(module, "follow_certified", endless)
    large = base(task=RazinCohenTask(dim=3), factorization=ff.DeepMatrix((3, 3), 2))
    narrow = base(factorization=ff.DeepMatrix((2, 2), 2, hidden=1))
    with pytest.raises(ValueError, match=r"hidden width.*In the experiment with axes"):
        run([narrow, large], tmp_path / "store", progress=False)
    assert begun.wait(10)
    assert not (tmp_path / "store").exists()
    over.set()


def test_chunk_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="chunk must be 1 or more, got 0"):
        run([base()], tmp_path / "store", chunk=0)


def test_progress_goes_to_stderr(tmp_path, capsys):
    run(base(), tmp_path / "store")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/1" in captured.err


@pytest.mark.x64
def test_what_takes_longest_begins_first_flows_and_descents_in_turn(tmp_path, monkeypatch):
    descents = sweep(base(), **{"factorization.hidden": [2, 4, 3]})
    flow = base().replace(dynamics=ff.GradientFlow("Tsit5"))
    begun = recorded(monkeypatch)
    with ThreadPoolExecutor(1) as one:
        run([*descents, flow], tmp_path / "store", executor=one, progress=False)
    assert begun == [("Tsit5", 2), ("descent", 4), ("descent", 3), ("descent", 2)]


@pytest.mark.x64
def test_of_small_flows_those_that_most_runs_need_begin_first():
    """Larger ones come before all: they take longer to run than to compile."""
    flow = base().replace(dynamics=ff.GradientFlow("Tsit5"))
    few = sweep(flow, **{"factorization.hidden": [2, 3]})
    many = sweep(flow, **{"factorization.hidden": [4], "initializer.product_scale": [0.1, 0.2]})
    large = flow.replace(**{"factorization.hidden": 40})
    chunks = module._chunks([*few, *many, large], 64)
    runs = Counter(chunk.group for chunk in chunks for _ in chunk.specs)
    ordered = module._longest_first(chunks, runs)
    assert [chunk.specs[0].factorization.hidden_widths for chunk in ordered] == [
        (40,),
        (4,),
        (2,),
        (3,),
    ]


def recorded(monkeypatch):
    """What is begun, by integrator and hidden width, in order."""
    begun = []
    follow_certified = module.follow_certified

    def follow(specs, *rest):
        begun.append((specs[0].dynamics.integrator_name, specs[0].factors[0].shape[0]))
        return follow_certified(specs, *rest)

    monkeypatch.setattr(module, "follow_certified", follow)
    return begun


@pytest.mark.x64
def test_runs_that_go_one_by_one_share_files():
    alone = base().replace(
        task=small_tensor(),
        factorization=ff.CP((3, 3, 3), rank=2),
        observe=ff.AtEnd(),
        initializer=ff.Gaussian(factor_scale=0.1),
        dynamics=ff.MultirateFlow(),
        measures=["loss"],
    )
    chunks = module._chunks(sweep(alone, seed=range(9)), 64)
    assert [len(chunk.specs) for chunk in chunks] == [4, 4, 1]


def small_tensor():
    return RandomLowRankTask(shape=(3, 3, 3), rank=1, n_observed=20)
