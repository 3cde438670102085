"""Numbers as people and as JSON read them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """The value in terms that JSON knows.

    NumPy and JAX scalars and arrays become Python numbers and lists. Numbers that are not
    finite become the strings `"nan"`, `"inf"` and `"-inf"`, which `float` reads back;
    anything else that JSON does not know becomes its text.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in "biufU":
            return plain(array.tolist())
    return str(value)


def text(value: Any, digits: int = 6) -> str:
    """The value as a person reads it: floats with the given number of significant digits."""
    value = plain(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list):
        return ", ".join(text(item, digits) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text(item, digits)}" for key, item in value.items())
    return str(value)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of `outer.inner` names with readable values."""
    rows: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{name}.")
        else:
            rows[f"{prefix}{name}"] = text(value)
    return rows


def duration(seconds: float | int) -> str:
    """A span of time, such as `0.42 s`, `12 s`, `3 min 4 s` or `2 h 5 min`."""
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"a duration must be finite and not negative, not {seconds}")
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
