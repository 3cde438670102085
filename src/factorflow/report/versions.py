"""Which software produced a result."""

import platform
from importlib import metadata

_PACKAGES = ("factorflow", "jax", "jaxlib", "equinox", "diffrax", "optax", "numpy")


def versions() -> dict[str, str]:
    """The releases that numbers depend on, and the kind of machine: nothing that names it.

    Reads the installed packages' metadata, so nothing is imported. A package without
    metadata is reported as `"not installed"`.
    """
    found = {name: _release(name) for name in _PACKAGES}
    found["python"] = f"{platform.python_implementation()} {platform.python_version()}"
    # Not platform.platform(): kernel releases can carry names that an owner gave them.
    found["platform"] = f"{platform.system()} {platform.machine()}".strip()
    return found


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
