"""Files that appear whole or not at all, whoever else writes to the same folder."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import time
import uuid
from pathlib import Path

__all__ = ["publish", "read_bytes", "remove_dead", "sizes"]

# What writes it, and a number nobody else has: write-<machine>-<process>-<random>.tmp
_TEMPORARY = re.compile(r"write-([0-9a-f]{12})-(\d+)-[0-9a-f]{16}\.tmp")
# As earlier versions named them: nothing says whose they are.
_OLD_TEMPORARY = re.compile(r"(?:index\.parquet|[0-9a-f]{20}\.nc)\.tmp")
# A file takes seconds to write. Where nothing tells whether its writer lives, one that was not
# touched for so long is given up; should the writer live after all, it writes the file again.
_GIVEN_UP_AFTER = 3600.0
_ATTEMPTS = 3


def publish(path: Path, data: bytes) -> None:
    """Write a file under a name of this call's own, sync it, then give it its name at once.

    Nobody sees half of it, and two writers never share a temporary file, so that no lock is
    needed: they do not work on every network file system.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _publish(path, data)
            return
        except FileNotFoundError:
            # Somebody removed the folder, or the temporary file because it looked given up.
            if attempt == _ATTEMPTS - 1:
                raise


def read_bytes(path: Path) -> bytes:
    """A file's bytes; `OSError` for one that this machine's memory cannot hold, before it is read.

    A sparse file claims any size and needs no disk.
    """
    size, memory = os.stat(path).st_size, _memory()
    if size > memory:
        reason = f"{size:,} bytes, where the memory of this machine has {memory:,}"
        raise OSError(errno.EFBIG, reason)
    return path.read_bytes()


def remove_dead(folder: Path) -> None:
    """Remove temporary files whose writers are dead, never those of one that may be alive."""
    with contextlib.suppress(OSError), os.scandir(folder) as items:
        for item in items:
            with contextlib.suppress(OSError):
                if _is_dead(item):
                    os.unlink(item.path)


def sizes(folder: Path) -> dict[str, int]:
    """Sizes of the files in a folder, -1 for what is no regular file; nothing without a folder."""
    found: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as items:
        for item in items:
            with contextlib.suppress(OSError):  # removed meanwhile
                facts = os.stat(item.path)
                found[item.name] = facts.st_size if stat.S_ISREG(facts.st_mode) else -1
    return found


def _publish(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"write-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        # Windows syncs only what is open for writing.
        with open(temporary, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The name itself survives a power cut once its folder is synced, where folders can be.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_dead(item: os.DirEntry) -> bool:
    name = _TEMPORARY.fullmatch(item.name)
    if name is None and _OLD_TEMPORARY.fullmatch(item.name) is None:
        return False
    if name is not None and name[1] == _machine() and os.name == "posix":
        return not _is_running(int(name[2]))
    return time.time() - item.stat(follow_symlinks=False).st_mtime > _GIVEN_UP_AFTER


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # on POSIX signal 0 only asks
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's
    return True


def _machine() -> str:
    """Where process numbers mean the same: this start of this machine, this container."""
    facts = [socket.gethostname(), str(uuid.getnode())]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**63  # Windows does not say
