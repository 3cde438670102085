"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_files"]


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files through temporary names, so that none is ever seen half-written.

    All temporary files are complete and on disk before the first one takes its final name.
    Missing folders are made. On failure the temporary files are removed.

    **Raises:**

    - `OSError`: of the fitting kind (`PermissionError`, `IsADirectoryError`, ...), with the
        path and the reason.
    """
    staged: dict[Path, Path] = {}
    path = Path()
    try:
        for path in contents:
            _make_room(path)
        for path, content in contents.items():
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            staged[path] = temporary
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in staged.items():
            os.replace(temporary, path)
    except OSError as error:
        explained = type(error)(f"Cannot write {path}: {error.strerror or error}")
        explained.errno = error.errno
        raise explained from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _make_room(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError("a folder of that name is in the way")
    for folder in path.parents:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file, not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
