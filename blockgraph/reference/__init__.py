"""The reference pages, written from the code: docstrings, field types, registries, and examples that are elaborated.

``python -m blockgraph.reference docs/reference`` writes them anew; a test holds the committed pages to that.
"""

from __future__ import annotations

from pathlib import Path

from blockgraph.reference.blocks import blocks_page, forms_page
from blockgraph.reference.functions import axes_page, errors_page, functions_page
from blockgraph.reference.imports import imports_page
from blockgraph.reference.ops import ops_page

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path("docs/reference")


def pages() -> dict[str, str]:
    """Every page by file name."""
    return {
        "blocks.md": blocks_page(), "forms.md": forms_page(), "ops.md": ops_page(), "functions.md": functions_page(),
        "axes.md": axes_page(), "errors.md": errors_page(ROOT), "imports.md": imports_page(),
    }  # fmt: skip


def write(out: str | Path = FOLDER) -> list[Path]:
    """Writes every page into ``out``; returns their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages().items():
        (out / name).write_text(text.rstrip() + "\n", encoding="utf-8")
        written.append(out / name)
    return written


__all__ = ["pages", "write"]
