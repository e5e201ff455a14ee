"""SVG whose words fit their boxes in any font: each text is told the width that Graphviz made room for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

# the metrics are Helvetica's; most machines have one of these
FONTS = "Helvetica, Arial, 'Liberation Sans', 'Nimbus Sans', sans-serif"
_TEXT = re.compile(r'<text ([^>]*?)x="([-\d.]+)" y="([-\d.]+)"([^>]*)>([^<]+)</text>')
_FAMILY = re.compile(r'font-family="[^"]*"')


def fitted(svg: str, placed: str) -> str:
    """The SVG with the width of every text. ``placed``: the same picture as Graphviz's JSON, whose texts have widths.
    A viewer without Helvetica then narrows or widens the letters of its own font."""
    widths = {_key(x, y, text): width for x, y, width, text in _texts(json.loads(placed))}

    def sized(found: re.Match[str]) -> str:
        before, x, y, after, text = found.groups()
        width = widths.get(_key(float(x), -float(y), unescape(text)))
        room = f' textLength="{width:g}" lengthAdjust="spacingAndGlyphs"' if width and text.strip() else ""
        return f'<text {before}x="{x}" y="{y}"{room}{_FAMILY.sub(_family, after)}>{text}</text>'

    return _TEXT.sub(sized, svg)


def _family(_: re.Match[str]) -> str:
    return f'font-family="{FONTS}"'


def _key(x: float, y: float, text: str) -> tuple[int, int, str]:
    """Both formats round coordinates, in their own ways."""
    return round(x), round(y), " ".join(text.split())


def _texts(value: Any) -> Iterator[tuple[float, float, float, str]]:
    """(x, y, width, text) of every text that is drawn."""
    if isinstance(value, list):
        for v in value:
            yield from _texts(v)
    elif isinstance(value, dict):
        if value.get("op") == "T":
            yield value["pt"][0], value["pt"][1], value["width"], value["text"]
        else:
            for v in value.values():
                yield from _texts(v)
