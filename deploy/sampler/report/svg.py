"""Matplotlib's figures as parts of a page: small, without anything from elsewhere, in the colours of the page's theme.

A figure is drawn in stand-in colours, which become variables of the page's style. So one drawing does for dark and for
light.
"""

from __future__ import annotations

import io
import itertools
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from common.terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#000001", "#000002", "#000003"
SERIES = tuple(f"#0000{number:02x}" for number in range(16, 24))
"""Colours to draw with; the page's style says what they are."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    color: f"--series-{number}" for number, color in enumerate(SERIES)
}
_COLOR = re.compile("|".join(_VARIABLES))
_NUMBER = re.compile(r"-?\d+\.\d+")
_FONT = re.compile(r"\s*font-family:[^;]*;?|\s*font:[^;]*?(?=\d+px)")
_REFERENCE = re.compile(r"(#)([\w.-]+)")
_XLINK = "{http://www.w3.org/1999/xlink}href"
_REFERRING = ("href", "clip-path")
_PLACES = ("d", "points", "x", "y", "transform", "width", "height")
_numbers = itertools.count(1)
"""Of figures: names within a page must differ."""


def inline(figure: Figure, label: str) -> Markup:
    """A figure as an `<svg>` element; `label` is read out to those who can't see it."""
    import matplotlib

    buffer = io.StringIO()
    # Text as text: it is in the page's font, and can be found and copied.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"])
        )
    root = ElementTree.fromstring(buffer.getvalue())
    _drop_foreign(root)
    for element in root.iter():
        _slim(element)
    for element in root.iter():
        _say_once(element)
    _rename(root, f"f{next(_numbers)}-")
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "plot", "role": "img", "aria-label": visible(label)}
    # Made of nothing but what matplotlib wrote, and escaped by the library.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _drop_foreign(root: ElementTree.Element) -> None:
    """Its metadata, which names other sites, and its style, which would be the whole page's."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)


def _slim(element: ElementTree.Element) -> None:
    element.tag = element.tag.rpartition("}")[2]
    element.text = element.text if element.tag in ("text", "tspan") else None
    element.tail = None
    if _XLINK in element.attrib:
        element.set("href", element.attrib.pop(_XLINK))
    for name in _PLACES:
        if name in element.attrib:
            shorter = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), element.get(name, ""))
            element.set(name, " ".join(shorter.split()))
    if "style" in element.attrib:
        plain = _FONT.sub(" font-size: " if "font:" in element.get("style", "") else "", element.get("style", ""))
        element.set("style", _COLOR.sub(lambda found: f"var({_VARIABLES[found[0]]})", plain).strip())


def _say_once(element: ElementTree.Element) -> None:
    """Give hundreds of points that look the same their style by the group that they are in."""
    styles = {child.get("style") for child in element}
    if len(element) > 1 and len(styles) == 1 and all(child.tag == "use" for child in element):
        element.set("style", styles.pop() or "")
        for child in element:
            child.attrib.pop("style", None)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Keep the names that something refers to, and make them the figure's own."""
    used = {
        found[2] for item in root.iter() for name in _REFERRING for found in _REFERENCE.finditer(item.get(name, ""))
    }
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{prefix}{own}")
        for name in _REFERRING:
            if name in element.attrib:
                element.set(name, _REFERENCE.sub(rf"\1{prefix}\2", element.get(name, "")))
