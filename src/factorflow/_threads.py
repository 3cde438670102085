"""Threads of the linear algebra that JAX calls on CPU."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread"]

_lock = threading.Lock()
# Sweeps follow batches in threads, and the limit is the process's: whoever comes first sets it, and
# whoever leaves last takes it back.
_inside = 0
_limit: Any = None


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let LAPACK work in one thread.

    Systems here have up to a few hundred unknowns, for which a second thread gains nothing. Where
    its core is busy the first one waits for it at every step: a system of 336 then takes 63 ms
    instead of 2.5. And what LAPACK computes no longer depends on how many cores there are.
    """
    global _inside, _limit
    with _lock:
        _inside += 1
        if _inside == 1:
            _limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()


@functools.cache
def _controller() -> ThreadpoolController:
    # To look for libraries takes a millisecond, and JAX has loaded the one it calls.
    return ThreadpoolController()
