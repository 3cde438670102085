"""Settings of every test: precision, strict dtypes, deterministic examples."""

import os
import pathlib

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from threadpoolctl import threadpool_limits

X64 = os.environ.get("FACTORFLOW_TEST_PRECISION", "float64") != "float32"

jax.config.update("jax_enable_x64", X64)
# A float64 that meets a float32 is a bug of ours: refuse instead of promoting.
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The processes that run tests share the cores: threads of small matrices would wait for each other.
threadpool_limits(1, user_api="blas")

hypothesis.settings.register_profile(
    "factorflow",
    derandomize=True,  # a failure of today is a failure of tomorrow
    deadline=None,  # the first example of a shape compiles
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # for the same reason
)
hypothesis.settings.load_profile("factorflow")


# Not even imported by the float32 job: what has no precision (messages, files, processes, names),
# or one of its own whatever the session's, as the papers have and all of `analysis`. What such code
# does in a session of single precision is in `test_single_precision_sessions`.
ONCE = [
    "analysis",
    "campaign",
    "cli",
    "drawing",
    "experiments",
    "papers",
    "report",
    "_dynamics/test_optax.py",
    "_measure/test_registry.py",
    "reference/test_cp_errors.py",
    "reference/test_cp_fit.py",
    "reference/test_cp_rank.py",
    "test_as_users_do.py",
    "test_at_end.py",
    "test_bad_input.py",
    "test_interrupt.py",
    "test_observe.py",
    "test_pages.py",
    "test_public_names.py",
    "test_registry.py",
    "test_results.py",
]
collect_ignore = [] if X64 else ONCE


# The files that take longest, in CPU time, the longest first. Whole files go to the processes in
# this order (`--dist loadfile --no-loadscope-reorder`): one that came last would leave the other
# process with nothing to do.
LONGEST = [
    "papers/test_gunasekar_2017.py",
    "papers/test_arora_cohen_hu_luo_2019.py",
    "papers/test_razin_cohen_2020.py",
    "papers/test_bai_2024.py",
    "papers/test_razin_maman_cohen_2021.py",
    "papers/test_li_luo_lyu_2021.py",
    "test_trusted_numbers.py",
    "test_certificate.py",
    "_dynamics/test_certified_flows.py",
    "_dynamics/test_oracle.py",
    "_dynamics/charts/test_balanced_2x2.py",
    "_dynamics/charts/test_balanced_square.py",
    "_dynamics/charts/test_factor_space.py",
    "_dynamics/test_multirate_flow.py",
    "analysis/test_minimized.py",
    "analysis/test_greedy.py",
    "_dynamics/test_gradient_flow.py",
    "test_simulate.py",
    "cli/test_processes.py",
    "test_pages.py",
]


def pytest_configure(config: pytest.Config) -> None:
    if not X64:
        # What users are told once, and this job means.
        config.addinivalue_line("filterwarnings", "ignore:This run is in single precision")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = pathlib.Path(__file__).parent
    places = {tests / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))  # stable within a file
    if X64:
        return
    skip = pytest.mark.skip(reason="needs double precision")
    for item in items:
        if item.get_closest_marker("x64") is not None:
            item.add_marker(skip)


# Of the session, because hypothesis refuses fixtures made anew for each test but not each example.
@pytest.fixture(scope="session")
def dtype() -> jnp.dtype:
    """The widest floating dtype of this job."""
    return jnp.dtype(jnp.float64 if X64 else jnp.float32)
