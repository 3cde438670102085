"""Ctrl-C that is obeyed within a second, and compiled work in threads that can be cancelled.

Python raises `KeyboardInterrupt` in the main thread, between two instructions of Python. That is
too late while XLA compiles there, and in vain inside a callback of the garbage collector, such as
the one JAX installs, or inside a finalizer: Python prints what is raised there and goes on.
"""

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["Cancelled", "cancellable", "check", "forced", "guarded", "saving"]

# Seconds after Ctrl-C: until the process is ended whatever it does, and until that happens to one
# that is just saving results; and between two looks at the clock.
_FORCED, _SAVED, _TICK = 0.7, 10.0, 0.05
# Two within this time are one: shells and `timeout` signal a process and then its group.
_ONE = 0.3

_saving = 0


class Cancelled(Exception):
    """The work of this thread is no longer wanted."""


def forced() -> None:
    """End the process at once, as Ctrl-C does: with a word on stderr and exit code 130."""
    # Not through `sys.stderr`, whose lock the main thread may hold.
    with contextlib.suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(130)


@contextlib.contextmanager
def guarded(leave: Callable[[], object] = forced) -> Iterator[None]:
    """Within this block Ctrl-C is obeyed within a second, whatever the main thread is doing.

    `KeyboardInterrupt` is raised as always, but not through a module that is being imported: an
    extension would print it, or crash. Where it is swallowed it is raised again; where it is
    not raised, or does not end the block, a thread calls `leave`, which ends the process. A second
    Ctrl-C ends it at once. For programs, such as the command line, and not for libraries. Does
    nothing outside the main thread, or where SIGINT is ignored, as in background jobs of a shell.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return
    # Bytes arrive in C, the moment the signal does, while the handler waits for the main thread.
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    swallowed = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(ears, swallowed, leave), name="ctrl-c", daemon=True
    )
    watch.start()

    def obey(signum: int, frame: FrameType | None) -> None:
        if not _saving and _is_imported(frame):
            leave()
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGINT, obey)
    wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    hook, sys.unraisablehook = sys.unraisablehook, _noticed(sys.unraisablehook, swallowed)
    try:
        yield
    except KeyboardInterrupt:
        leave()
        raise
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, handler)
        # The thread reads the end of the stream, and ends.
        mouth.close()


def _is_imported(frame: FrameType | None) -> bool:
    """Whether the main thread is within the import of a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(ears: socket.socket, swallowed: threading.Event, leave: Callable[[], object]) -> None:
    since, echo = None, False
    while True:
        if since is not None:
            waited = time.monotonic() - since
            if waited > (_SAVED if _saving else _FORCED):
                leave()
                return
            if swallowed.is_set():
                swallowed.clear()
                echo = True
                _thread.interrupt_main()
        ears.settimeout(None if since is None else _TICK)
        try:
            heard = ears.recv(64)
        except TimeoutError:
            continue
        if not heard:
            # The block has ended: so has the duty.
            ears.close()
            return
        if signal.SIGINT not in heard:
            continue
        if since is None:
            since = time.monotonic()
        elif echo:
            echo = False  # of what this thread has raised itself
        elif time.monotonic() - since > _ONE:
            leave()
            return


def _noticed(hook: Callable, swallowed: threading.Event) -> Callable:
    def unraisable(problem) -> None:
        if issubclass(problem.exc_type, KeyboardInterrupt):
            # Raised again from the other thread: here it would be swallowed once more.
            swallowed.set()
        else:
            hook(problem)

    return unraisable


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Within this block, in the main thread, Ctrl-C may take longer: results are being written."""
    global _saving
    _saving += 1
    try:
        yield
    finally:
        _saving -= 1


_thread_local = threading.local()


@contextlib.contextmanager
def cancellable(event: threading.Event) -> Iterator[None]:
    """Within this block, runs that this thread follows end soon after `event` is set."""
    before = getattr(_thread_local, "event", None)
    _thread_local.event = event
    try:
        yield
    finally:
        _thread_local.event = before


def check() -> None:
    """Called between two pieces of a long run.

    **Raises:** `Cancelled` where the event of `cancellable` is set.
    """
    event = getattr(_thread_local, "event", None)
    if event is not None and event.is_set():
        raise Cancelled
