"""Pieces of Markdown, and what the source says beside the code."""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Sequence
from typing import Any

HEAD = "<!-- Written by `blockgraph docs` from the code: change the docstrings, not this page. -->\n\n"


def doc(thing: Any) -> str:
    """The docstring as running text; empty where there is none of its own."""
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    if isinstance(thing, type) and text.startswith(f"{thing.__name__}("):  # what dataclasses write by themselves
        return ""
    return " ".join(text.replace("``", "`").split())


def cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|") or " "


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows]
    return "\n".join(lines) + "\n\n"


def code(text: str, language: str = "yaml") -> str:
    return f"```{language}\n{text.strip()}\n```\n\n"


def comments(cls: type) -> dict[str, str]:
    """The comment at the end of each field's line, base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] not in ("compiler", "costmodel", "runtime"):
            continue
        try:
            text = inspect.getsource(base)
        except (OSError, TypeError):
            continue
        fields = {i: m[1] for i, line in enumerate(text.splitlines(), 1) if (m := re.match(r"    (\w+): ", line))}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and token.start[0] in fields:
                found[fields[token.start[0]]] = token.string.lstrip("# ")
    return {k: v for k, v in found.items() if not v.startswith(("type:", "fmt:"))}


def value(x: object) -> str:
    """A default as YAML would say it."""
    if x is None:
        return "null"
    if isinstance(x, bool):
        return str(x).lower()
    if isinstance(x, tuple):
        return "[" + ", ".join(value(i) for i in x) + "]"
    return f"{x:g}" if isinstance(x, float) and not 1e-4 < abs(x) < 1e6 and x else str(x)
