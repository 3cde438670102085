"""What this machine's memory cannot hold is refused before it is asked for.

An allocation that fails inside compiled code ends the process, and one that the system grants and
cannot keep is killed later: neither can be caught.
"""

import functools
import os
from pathlib import Path

__all__ = ["refuse_too_large"]

# Where Linux says how much a container may use; "max", or a number near 2^63, is no limit.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def refuse_too_large(count: int, what: str, remedy: str) -> None:
    """Refuse `count` numbers in double precision that this machine's memory cannot hold.

    **Raises:** `ValueError` that says what takes how many bytes, how many there are, and `remedy`.
    """
    needed = 8 * count
    if needed > _memory():
        # Numbers of hundreds of digits say less than their logarithm.
        size = str(needed) if needed < 2**63 else f"2^{needed.bit_length() - 1}"
        raise ValueError(
            f"{what} takes {size} bytes in double precision, and this machine has {_memory()}. "
            f"{remedy}"
        )


@functools.cache
def _memory() -> int:
    """Bytes of memory for this process; a terabyte where the system does not say."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = 2**40
    return min([physical, *map(_limit, _LIMITS)])


def _limit(file: str) -> int:
    try:
        return int(Path(file).read_text())
    except (OSError, ValueError):
        return 2**63
