"""Looking a name up, with a helpful refusal."""

import difflib

__all__ = ["named"]


def named(kind: str, name: str, known) -> str:
    """`name`, or a `ValueError` that lists what is known and suggests the nearest."""
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(known))}.")
