"""Families in a table: a CSV file beside a spec, of the same name, with a row for each size. `spec@row` is that spec
with the dims and args of the row, which its first column names."""

from __future__ import annotations

import csv
from pathlib import Path

from compiler.errors import Problem, SpecError, nearest

MARK = "@"


def apart(name: str) -> tuple[str, str | None]:
    """The spec and the row of `spec@row`; no row where there is none, or where a file has this name."""
    spec, mark, row = name.rpartition(MARK)
    return (spec, row) if mark and not Path(name).exists() else (name, None)


def rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the table beside a spec, by name: values of dims and args as text. Lines that begin with # are
    comments. Raises SpecError where there is no such table, or it is none."""
    table = path.with_suffix(".csv")
    if not table.is_file():
        message = f"{path.stem} has no table of sizes: there is no {table.name} beside it"
        raise SpecError(Problem("file-missing", message))
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.strip() and line[0] != "#"]
    columns, *entries = [[cell.strip() for cell in cells] for cells in csv.reader(lines)] or [[]]
    found: dict[str, dict[str, str]] = {}
    for cells in entries:
        if len(cells) != len(columns) or cells[0] in found:
            twice = cells[0] in found
            what = f"two rows are called {cells[0]}" if twice else f"{len(cells)} values in {','.join(cells)}"
            raise SpecError(Problem("bad-table", f"{table.name}: {what}, for the columns {', '.join(columns)}"))
        found[cells[0]] = dict(zip(columns[1:], cells[1:], strict=True))
    return found


def row(path: Path, name: str) -> dict[str, str]:
    """One of them. Raises SpecError with the nearest name."""
    known = rows(path)
    if name not in known:
        message = f"{path.stem} has no size called {name}"
        raise SpecError(Problem("unknown-spec", message, None, tuple(known), nearest(name, known)))
    return known[name]
