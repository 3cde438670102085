"""Settings of every test: precision, strict dtypes, deterministic examples."""

import os

import hypothesis
import jax
import jax.numpy as jnp
import pytest

X64 = os.environ.get("FACTORFLOW_TEST_PRECISION", "float64") != "float32"

jax.config.update("jax_enable_x64", X64)
# A float64 that meets a float32 is a bug of ours: refuse instead of promoting.
jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile(
    "factorflow",
    derandomize=True,  # a failure of today is a failure of tomorrow
    deadline=None,  # the first example of a shape compiles
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # for the same reason
)
hypothesis.settings.load_profile("factorflow")


def pytest_configure(config: pytest.Config) -> None:
    if not X64:
        # What users are told once, and this job means.
        config.addinivalue_line("filterwarnings", "ignore:This run is in single precision")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
