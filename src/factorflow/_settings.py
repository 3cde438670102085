"""JAX's debugging switches, as the library's own code means them."""

import contextlib
from collections.abc import Iterator

import jax

__all__ = ["own_settings"]


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Run the library's own code under JAX's defaults, whatever is set for a user's code.

    Rows that were not reached are NaN, logarithms of zero are infinite, and small arrays are put on
    the device as they come: `JAX_DEBUG_NANS`, `JAX_DEBUG_INFS`, `JAX_NUMPY_RANK_PROMOTION` and
    `JAX_TRANSFER_GUARD` would take these for errors. Runs report numbers that are not finite by
    their result.
    """
    with (
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield
