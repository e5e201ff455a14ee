"""The gallery: every shipped spec with its picture, its sizes and what it assumes, written from the specs.

``python -m blockgraph.reference.gallery docs`` writes gallery.md and pictures/gallery/NAME.svg; a test holds the
committed page to the specs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blockgraph.inspect import runs, summary
from blockgraph.reference import text
from compiler.language import table
from compiler.language.load import shipped
from compiler.language.model import load
from costmodel import units

HEAD = (
    "<!-- Written by `blockgraph docs --gallery` from the specs: change these, not this page. -->\n\n# Gallery\n\n"
    "Every shipped spec: its picture (repeated layers once), its sizes, what it assumes. Each number follows from the "
    "YAML file alone. A stand-in has sizes that its authors never published.\n\n"
)
PICTURES = Path("pictures") / "gallery"
CONTEXT = 8192  # tokens, of the state


def page() -> str:
    """The whole page."""
    made = {name: summary(load(name), CONTEXT) for name in shipped()}
    index = text.table(
        ("spec", "parameters", "paper"),
        ((f"[{name}](#{_anchor(name)})", _range(name, found), _paper(found)) for name, found in made.items()),
    )
    return HEAD + index + "".join(_section(name, found) for name, found in made.items())


def _sizes(name: str) -> list[str]:
    """Of a spec with a table of sizes, their names."""
    path = shipped()[name]
    return list(table.rows(path)) if path.with_suffix(".csv").is_file() else []


def _anchor(name: str) -> str:
    return name.replace(".", "")


def _paper(found: Mapping[str, Any]) -> str:
    return f"{found['paper'] or ''}{' (a stand-in)' if found['stand_in'] else ''}"


def _range(name: str, found: Mapping[str, Any]) -> str:
    sizes = _sizes(name)
    if not sizes:
        return f"{found['parameters']['total']:,}"
    counts = sorted(load(f"{name}@{size}").parameter_count() for size in (sizes[0], sizes[-1]))
    return f"{counts[0]:,} to {counts[1]:,} ({len(sizes)} sizes)"


def _section(name: str, found: Mapping[str, Any]) -> str:
    parts = [f"## {name}\n\n"]
    if found["stand_in"]:
        parts.append(f"**A stand-in:** {found['stand_in']}.\n\n")
    if found["paper"]:
        parts.append(f"{found['paper']}.\n\n")
    parts.append(f"![{name}]({PICTURES.as_posix()}/{name}.svg)\n\n")
    parts.append(text.table(("block", "layers", "parameters", "share"), _blocks(found)))
    parts.append(f"Runs {runs(found['phases'])}. {_state(found['state'])}\n\n")
    if sizes := _sizes(name):
        counts = ((f"`{name}@{size}`", f"{load(f'{name}@{size}').parameter_count():,}") for size in sizes)
        parts.append(text.table(("size", "parameters"), counts))
    if found["assumed"]:
        parts.append("Assumed:\n\n")
        parts += [f"- `{place}`: {' '.join(str(why).split())}\n" for place, why in found["assumed"].items()]
        parts.append("\n")
    return "".join(parts)


def _blocks(found: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    p = found["parameters"]
    for block in p["by_block"]:
        if "." not in block["path"] and block["parameters"]:
            layers = found["layers"].get(block["path"], "")
            yield block["path"], layers, f"{block['parameters']:,}", f"{block['parameters'] / p['total']:.1%}"
    yield "**all**", "", f"**{p['total']:,}**", ""
    yield "of these embedding", "", f"{p['embedding']:,}", f"{p['embedding'] / p['total']:.1%}"
    if p["active"] != p["total"]:
        yield "used by a token", "", f"{p['active']:,}", f"{p['active'] / p['total']:.1%}"
    if p["trainable"] != p["total"]:
        yield "trained", "", f"{p['trainable']:,}", f"{p['trainable'] / p['total']:.1%}"


def _state(state: Mapping[str, Any]) -> str:
    if "none" in state:
        return f"No decode: {state['none']}."
    more = f", without what depends on {', '.join(state['unknown_sizes'])}" if state["unknown_sizes"] else ""
    return f"State of one sequence at a context of {CONTEXT:,}: {units.memory_text(state['bytes'])}{more}."


def write_gallery(out: str | Path = "docs", say: Callable[[str], None] | None = None) -> list[Path]:
    """Writes the page and every picture into ``out``; returns their paths."""
    from blockgraph.picture import draw

    out = Path(out)
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    written = [out / "gallery.md"]
    written[0].write_text(page().rstrip() + "\n", encoding="utf-8")
    for name in shipped():
        if say is not None:
            say(name)
        written.append(draw(load(name), out / PICTURES / f"{name}.svg"))
    return written


if __name__ == "__main__":
    for path in write_gallery(sys.argv[1] if len(sys.argv) > 1 else "docs"):
        print(path)
