"""The YAML and Python examples of the pages under ``docs``, each with its place and its marker.

The first words after ``` say what an example is:

    yaml spec            a whole spec
    yaml piece           top-level keys, put over BASE; without a graph a plain one is added
    yaml part NAME       goes on the spec of that name
    yaml refused CODE    a piece that is refused with this code
    yaml machine         a machine file
    yaml import TYPE     the file of that model type, as it is
    python NAME          code that a test of that name runs
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs"
BASE = "dims: {vocab: 256, embed: 64, heads: 4, kv_heads: 2, head_dim: 16, mlp: 256, rnn: 96, experts: 8, active: 2}\n"
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    page: str
    line: int
    kind: str  # "spec", "piece", …
    word: str  # what follows the kind
    text: str

    @property
    def spec(self) -> str:
        """A whole spec."""
        if self.kind == "spec":
            return self.text
        head = "name: example\n" if not re.search(r"^name:", self.text, re.MULTILINE) else ""
        head += "" if re.search(r"^dims:", self.text, re.MULTILINE) else BASE
        tail = "" if re.search(r"^graph:", self.text, re.MULTILINE) else "graph: [embed, unembed]\n"
        return head + self.text + tail

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(language: str) -> list[Example]:
    """Of all pages that people wrote."""
    found = []
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text("utf-8")
        for match in _FENCE.finditer(text):
            if match[1] == language:
                kind, _, word = match[2].strip().partition(" ")
                found.append(Example(page.name, text.count("\n", 0, match.start()) + 1, kind, word, match[3]))
    return found


def named(word: str, language: str = "python") -> Example:
    """The one example with this word."""
    (found,) = [e for e in examples(language) if word in (e.kind, e.word)]
    return found
