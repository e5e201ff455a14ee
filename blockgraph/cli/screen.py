"""The terminal: consoles, tables, numbers, JSON. rich is imported only when something is drawn."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.errors import Position, Problem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPED_WIDTH = 110  # of output that no terminal shows, so that it is the same everywhere
_CONTROL = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def clean(text: str) -> str:
    """Text without control characters: what a file or a model says must not steer the terminal."""
    return text.translate(_CONTROL)


def console(stderr: bool = False) -> Console:
    """A console without highlighting; colours only on a terminal and without NO_COLOR."""
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _columns()
    return Pipe(file=stream, highlight=False, emoji=False, width=width)


def _columns() -> int:
    import os

    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isascii() and asked.isdigit() and 20 <= int(asked) <= 1000 else PIPED_WIDTH


def print_json(value: Any) -> None:
    """One JSON document on stdout; it is always legal JSON, and ASCII."""
    sys.stdout.write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON types; a number that is not finite becomes its name, other things their text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return plain(value.item())
    return str(value)


def problem_text(problem: Problem, also: Sequence[Position] = ()) -> Text:
    """A problem in colours; as plain text it is ``problem.text(also)``."""
    from rich.text import Text

    text = Text(clean(problem.text(also)))
    text.highlight_regex(r"^\S+:\d+:\d+:", "cyan")
    text.highlight_regex(r"\[[a-z0-9-]+\](?=\n|$)", "dim")
    text.highlight_regex(r"(?<=\n    )also at .*", "cyan")
    text.highlight_regex(r"(?<=\n    )(did you mean|try): .*", "green")
    text.highlight_regex(r"(?<=\n    )allowed: .*", "dim")
    return text


def table(*columns: str, title: str = "", left: Sequence[int] = (0,), footer: bool = False) -> Table:
    """A table without a frame; numbers to the right, the columns of ``left`` to the left."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=False,
    )
    for i, name in enumerate(columns):
        # only text behind the first column may wrap: a name or a number that breaks in two is none
        made.add_column(
            name, justify="left" if i in left else "right", no_wrap=i == 0 or i not in left, overflow="fold"
        )
    return made


def facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Short facts: a name in bold, then a text that may wrap."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, text in rows:
        grid.add_row(name, text if not isinstance(text, str) else _text(text))
    return grid


def _text(text: str) -> Text:
    from rich.text import Text

    return Text(clean(text))


def cell(text: object) -> Text:
    """A table cell that is text and never markup."""
    return _text(str(text))


def number(value: object) -> str:
    """With thousands separators; what is no number as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def named(values: Mapping[str, object]) -> str:
    """``vocab 256,128 · embed 3,584``."""
    return " · ".join(f"{name} {number(value)}" for name, value in values.items())


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"
