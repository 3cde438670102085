"""Threads of the linear algebra that JAX calls on CPU."""

import contextlib
import functools
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread"]


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let LAPACK work in one thread.

    Systems here have up to a few hundred unknowns, for which a second thread gains nothing. Where
    its core is busy the first one waits for it at every step: a system of 336 then takes 63 ms
    instead of 2.5. And what is computed no longer depends on how many cores there are.
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> ThreadpoolController:
    # To look for libraries takes a millisecond, and JAX has loaded the one it calls.
    return ThreadpoolController()
