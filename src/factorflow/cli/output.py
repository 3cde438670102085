"""Standard streams that cannot make work fail.

A pipe whose reader has gone, a full disk behind `>` and a terminal of few letters end no command:
what cannot be written is dropped, the work goes on, and how it ends is decided by `Streams`.
"""

import codecs
import contextlib
import io
import os
import select
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Sink", "Streams", "safe_streams"]

_PLAIN = {
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{CHECK MARK}": "+",
    "\N{BALLOT X}": "x",
    "\N{BULLET}": "*",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
}


class Sink(io.RawIOBase):
    """Bytes go to `raw` until it fails for the first time, and nowhere from then on.

    `error` is why, and `None` before.
    """

    def __init__(self, raw: io.RawIOBase | None, error: OSError | None = None):
        self._raw = raw
        self.error = error

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw is not None and self._raw.isatty()

    def fileno(self) -> int:
        if self._raw is None:
            raise io.UnsupportedOperation("fileno: this stream was closed from the start")
        return self._raw.fileno()

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        size = view.nbytes
        while self._raw is not None and self.error is None and view.nbytes:
            try:
                written = self._raw.write(view)
            except BlockingIOError:
                written = None
            except OSError as error:
                self.error = error
                # Compiled code that writes here itself finds an open file too.
                with contextlib.suppress(OSError):
                    _to_nowhere(self.fileno())
                break
            if written is None:  # somebody made the terminal non-blocking
                select.select([], [self.fileno()], [])
            else:
                view = view[written:]
        return size


class Streams(NamedTuple):
    """What became of the two streams."""

    stdout: Sink | None
    stderr: Sink | None

    @property
    def failure(self) -> OSError | None:
        """Why not all of stdout was written, or `None`."""
        sys.stdout.flush()
        return self.stdout.error if self.stdout else None


@contextlib.contextmanager
def safe_streams() -> Iterator[Streams]:
    """Inside, `sys.stdout` and `sys.stderr` raise neither `OSError` nor `UnicodeEncodeError`.

    Streams that are no files (a notebook's) are left as they are.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    _occupy()
    codecs.register_error("factorflow.plain", _plain)
    sys.stdout, out = _safe(before[1], 1)
    sys.stderr, err = _safe(before[2], 2)
    try:
        yield Streams(out, err)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _, sys.stdout, sys.stderr = before


def _safe(stream: Any, number: int) -> tuple[Any, Sink | None]:
    if stream is None:
        sink, encoding, interactive = Sink(None, OSError(9, "Bad file descriptor")), "utf-8", False
    else:
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer
        if not isinstance(raw, io.RawIOBase):
            return stream, None
        stream.flush()
        sink, encoding, interactive = Sink(raw), stream.encoding, stream.isatty()
    buffered = io.BufferedWriter(sink)
    lines = interactive or number == 2
    text = io.TextIOWrapper(buffered, encoding, "factorflow.plain", line_buffering=lines)
    return text, sink


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for letters that the terminal's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    if all("\udc80" <= letter <= "\udcff" for letter in text):
        # The bytes of a file's name, as they came in.
        return bytes(ord(letter) - 0xDC00 for letter in text), error.end
    return "".join(map(_letter, text)), error.end


def _letter(letter: str) -> str:
    if letter in _PLAIN:
        return _PLAIN[letter]
    name = unicodedata.name(letter, "")
    if name.startswith("BOX DRAWINGS"):
        return {"─": "-", "│": "|"}.get(letter, "+")
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return plain or "?"


def _occupy() -> None:
    """Open what is closed of 0, 1 and 2: the next file opened would be taken for a stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
