"""SVG pictures inside an HTML page: nothing loaded, nothing run, no ids in conflict."""

import re
from xml.etree import ElementTree

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_XML = "{http://www.w3.org/XML/1998/namespace}"
_REFERENCE = re.compile(r"""url\(\s*(['"]?)([^'")]*)\1\s*\)""")
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_ACTIVE = frozenset({"script", "foreignObject", "iframe", "handler", "set", "animate"})


def inline_svg(source: str, *, prefix: str, label: str) -> str:
    """Rewrite an SVG file so that it can stand inside an HTML page beside others.

    Every id, and every reference to one, gets the prefix; style rules apply to this picture
    alone; metadata, namespaces and event attributes are dropped.

    **Arguments:**

    - `source`: the text of the SVG file.
    - `prefix`: put before ids; no prefix on a page may start another.
    - `label`: what the picture shows, for people who do not see it.

    **Raises:**

    - `ValueError`: if this is not SVG, or it contains scripts or loads anything from outside.
    """
    try:
        root = ElementTree.fromstring(source)
    except ElementTree.ParseError as error:
        raise ValueError(f"this is not a well-formed SVG picture: {error}") from error
    if root.tag != f"{_SVG}svg":
        raise ValueError(f"this is not an SVG picture: its outermost element is {root.tag!r}")
    _clean(root, prefix)
    own = f"{prefix}picture"
    root.set("id", own)
    for style in root.iter("style"):
        style.text = _scoped(style.text or "", own, prefix)
    root.set("role", "img")
    root.set("aria-label", label)
    root.tail = None
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    if element.tag in _ACTIVE:
        raise ValueError(f"a picture in a report must be static, but it has a <{element.tag}>")
    attributes = dict(element.attrib)
    element.attrib.clear()
    for name, value in attributes.items():
        if name.startswith(_XLINK):
            name = name.removeprefix(_XLINK)
            # Only the address has a meaning without the namespace: SVG 2 calls it href too.
            if name != "href":
                continue
        if (name.startswith("{") and not name.startswith(_XML)) or name.lower().startswith("on"):
            continue
        element.set(name, _renamed(element.tag, name, value, prefix))
    for child in list(element):
        foreign = not isinstance(child.tag, str) or not child.tag.startswith(_SVG)
        if foreign or child.tag == f"{_SVG}metadata":
            element.remove(child)
        else:
            _clean(child, prefix)


def _renamed(tag: str, name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}{value}"
    if name in ("aria-labelledby", "aria-describedby"):
        return " ".join(f"{prefix}{reference}" for reference in value.split())
    if name == "href":
        if value.startswith("#"):
            return f"#{prefix}{value[1:]}"
        if value.startswith("data:image/") or (tag == "a" and not value.startswith("javascript:")):
            return value
        raise ValueError(f"a picture in a report must load nothing, but it refers to {value!r}")
    return _local_references(value, prefix)


def _local_references(value: str, prefix: str) -> str:
    def renamed(match: re.Match[str]) -> str:
        address = match[2].strip()
        if address.startswith("#"):
            return f"url(#{prefix}{address[1:]})"
        if address.startswith("data:"):
            return match[0]
        raise ValueError(f"a picture in a report must load nothing, but it refers to {address!r}")

    return _REFERENCE.sub(renamed, value)


def _scoped(css: str, own: str, prefix: str) -> str:
    if "@" in css:
        raise ValueError("a picture in a report can have plain style rules only, without '@'")

    def scoped(match: re.Match[str]) -> str:
        # The id selectors of the picture were renamed with its ids.
        selectors = [
            f"#{own} " + re.sub(r"#([\w-]+)", rf"#{prefix}\1", selector.strip())
            for selector in match[1].split(",")
        ]
        return f"{', '.join(selectors)}{{{_local_references(match[2], prefix)}}}"

    return _RULE.sub(scoped, css)
