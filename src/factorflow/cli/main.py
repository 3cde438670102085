"""How a command begins and how it ends. Nothing is imported before Ctrl-C is obeyed."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from factorflow._interrupt import guarded
from factorflow.cli.output import Streams, safe_streams

__all__ = ["main"]

_REFUSED, _DEFECT, _INTERRUPTED, _NO_READER = 2, 70, 130, 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `factorflow` command: raises `SystemExit`, or ends the process at once.

    The latter after Ctrl-C, and where the process is its own (no `arguments` are given).
    """
    guest = arguments is not None
    arguments = sys.argv[1:] if arguments is None else arguments
    ending = _Ending()
    with safe_streams() as streams:
        with guarded(ending.interrupted):
            status = ending.of(arguments)
        if not guest and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # All is done but Python's own end, which would print where it was interrupted.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        status = ending.after_printing(status, streams)
        others = set(threading.enumerate()) - {threading.main_thread()}
        if status and not guest and any(not thread.daemon for thread in others):
            # Compiled code in other threads cannot be stopped, and would be waited for.
            _leave(status)
    sys.exit(status)


class _Ending:
    """What a command's end is to its caller: an exit status, and a sentence where one is due."""

    def __init__(self):
        # Help and the version, which no command prints, are for whoever reads them.
        self.printed, self.kept = True, False

    def of(self, arguments: Sequence[str]) -> int:
        """Do what is asked for; an exit status."""
        try:
            return self._do(arguments)
        except SystemExit as end:  # tyro's, after it has printed
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:
            status, sentence = _explained(error)
            if status == _DEFECT and "FACTORFLOW_TRACEBACK" in os.environ:
                raise
            return _say(sentence, status)

    def _do(self, arguments: Sequence[str]) -> int:
        if list(arguments[:1]) in (["--version"], ["-V"]):
            from importlib.metadata import version

            print(f"factorflow {version('factorflow')}")
            return 0
        from factorflow.cli.arguments import parse

        command, changes = parse(arguments)
        self.printed, self.kept = command.printed, command.kept
        from factorflow.cli.commands import carry_out

        return carry_out(command, changes)

    def after_printing(self, status: int, streams: Streams) -> int:
        """The exit status, now that it is known whether what was printed has arrived."""
        failure = streams.failure
        if failure is None or status or not self.printed:
            return status
        if failure.errno == errno.EPIPE:
            return _NO_READER
        return _say(f"Cannot write to standard output: {failure.strerror}.", _REFUSED)

    def interrupted(self) -> NoReturn:
        """End after Ctrl-C, from whichever thread."""
        kept = "; finished batches are kept, run again to resume" if self.kept else ""
        # Not by sys.stderr, which the main thread may be holding.
        with contextlib.suppress(OSError):
            os.write(2, f"\ninterrupted{kept}\n".encode())
        os._exit(_INTERRUPTED)


def _explained(error: Exception) -> tuple[int, str]:
    """The exit status, and a sentence for a user, of what ended a command."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return _REFUSED, f"Not enough memory for this. {text}".strip()
    if isinstance(error, RecursionError):
        return _REFUSED, "What was given is nested too deeply."
    if isinstance(error, OSError) and error.strerror is not None:
        place = "" if error.filename is None else f" ({os.fsdecode(error.filename)})"
        return _REFUSED, f"{error.strerror}{place}."
    if isinstance(error, ValueError | ImportError | OSError):
        return _REFUSED, str(error)
    return _DEFECT, (
        f"A defect of factorflow, or of a library it uses: {type(error).__name__}: {text} Please "
        "report it with the command; FACTORFLOW_TRACEBACK=1 in the environment shows where it is."
    )


def _say(sentence: str, status: int) -> int:
    print(f"factorflow: {sentence}", file=sys.stderr)
    return status


def _leave(status: int) -> NoReturn:
    """End at once: compiled code in other threads cannot be stopped, and would be waited for."""
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)
