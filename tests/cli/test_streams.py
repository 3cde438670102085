"""Streams that fail: what is printed is dropped, work is done, and exit statuses stay true."""

import io
import os
import subprocess
import sys

import pytest

from factorflow.cli.output import Sink, safe_streams

# Nothing that depends on precision.
pytestmark = pytest.mark.x64

COMMAND = [sys.executable, "-m", "factorflow"]


@pytest.fixture
def closed_pipe():
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def status(*arguments, environment=None, **streams):
    options = {"stderr": subprocess.PIPE, "timeout": 60} | streams
    environment = os.environ | (environment or {})
    end = subprocess.run([*COMMAND, *arguments], text=True, env=environment, **options)
    assert "Traceback" not in (end.stderr or "")
    return end.returncode, end.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list", "papers"]])
def test_output_that_was_the_work_and_is_not_read_is_no_success(arguments, closed_pipe):
    assert status(*arguments, stdout=closed_pipe) == (141, "")


def test_a_message_that_is_not_read_changes_no_exit_status(closed_pipe):
    assert status("lst", stdout=closed_pipe, stderr=closed_pipe) == (2, None)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_to_a_full_disk_is_said():
    with open("/dev/full", "w") as full:
        code, errors = status("list", "papers", stdout=full)
    assert code == 2
    assert errors == "factorflow: Cannot write to standard output: No space left on device.\n"


def test_streams_closed_from_the_start_are_not_taken_by_the_next_file():
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "list", "papers"]
    assert subprocess.run(closing, timeout=60).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_on_a_terminal_of_few_letters(encoding):
    code, _ = status("--help", environment={"PYTHONIOENCODING": encoding}, stdout=subprocess.PIPE)
    assert code == 0


def test_listing_papers_and_the_version_import_no_jax():
    code = (
        "import sys\n"
        "from factorflow.cli import main\n"
        "for arguments in ['list', 'papers'], ['--version'], ['run', '--help']:\n"
        "    try: main(arguments)\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "razin_cohen_2020" in result.stdout and "factorflow 0." in result.stdout


class Failing(io.RawIOBase):
    """Takes a few bytes at a time, then nothing more."""

    def __init__(self, room):
        self.taken, self.room = b"", room

    def writable(self):
        return True

    def write(self, data):
        part = bytes(data[:3])[: self.room - len(self.taken)]
        if not part:
            raise BrokenPipeError(32, "Broken pipe")
        self.taken += part
        return len(part)


def test_a_sink_writes_all_it_can_and_remembers_why_it_stopped():
    whole, short = Failing(100), Failing(8)
    assert Sink(whole).write(b"0123456789") == 10
    assert whole.taken == b"0123456789"
    sink = Sink(short)
    for _ in range(2):
        assert sink.write(b"0123456789") == 10
    assert short.taken == b"01234567"
    assert sink.error is not None and sink.error.errno == 32


def test_letters_that_a_terminal_lacks_are_written_plainly(monkeypatch):
    raw = Failing(10**6)
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with safe_streams() as streams:
        print("✓ holds 2\N{MULTIPLICATION SIGN}2 ╭─│ é \udcff 日")
        assert streams.failure is None
    assert raw.taken == b"+ holds 2x2 +-| e \xff ?\n"
    assert sys.stdout is stream
