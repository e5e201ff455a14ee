"""What ``trace`` draws: a table of nodes, and the first one that differs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from blockgraph.cli import screen

SHOWN = 48  # rows without --all
BEFORE, AFTER = 8, 4  # rows around the first difference
_LAYER = re.compile(r"(\[[\d,]+\])?(#\d+)?$")  # what stands behind a node's name


def show_trace(records: Sequence[Any], first: Any, reference: Path | None, only: str | None, every: bool) -> None:
    """Draws the records that are asked for, and says where the first difference is."""
    console = screen.console()
    chosen = [r for r in records if only is None or _inside(r, only)]
    if only is not None and not chosen:
        from compiler.errors import BlockgraphError, Problem, nearest

        paths = list(dict.fromkeys(r.path for r in records if r.path))
        problem = Problem("unknown-path", f"--only: no node is in {only}", None, tuple(paths), nearest(only, paths))
        raise BlockgraphError(problem)
    rows = chosen if every else _last_of_blocks(chosen, first)
    if not every and len(rows) > SHOWN:
        rows = _window(rows, first)
    columns = ("node", "shape", "dtype", "min", "max", "rms", *(["difference"] if reference else []))
    table = screen.table(*columns, left=(0, 1, 2))
    for r in rows:
        values = [_value(r.minimum), _value(r.maximum), _value(r.rms)]
        differs = [_value(r.difference) if r.difference is not None else "–"] if reference else []
        style = "bold red" if r is first or (first is not None and r.name == first.name) else "" if r.finite else "red"
        shape = " ".join(f"{a}={n}" for a, n in zip(r.axes, r.shape, strict=False)) or "number"
        table.add_row(*(screen.cell(t) for t in (r.name, shape, r.dtype, *values, *differs)), style=style)
    console.print(table)
    if len(rows) < len(chosen):
        console.print(f"{len(rows):,} of {len(chosen):,} nodes; --all shows every one", style="dim")
    console.print(_verdict(records, first, reference))


def _place(r: Any) -> tuple[str, str]:
    """The block of a node, and its layer."""
    found = _LAYER.search(r.name)
    return r.path, (found[1] or "") if found else ""


def _inside(r: Any, path: str) -> bool:
    """In this block, or the value of this name itself."""
    return bool(r.path == path or r.path.startswith(path + ".") or _LAYER.sub("", r.name, 1) == path)


def _last_of_blocks(records: Sequence[Any], first: Any) -> list[Any]:
    """The last node of each block in each layer, and the first that differs."""
    kept = []
    for r, following in zip(records, [*records[1:], None], strict=True):
        last = following is None or _place(following) != _place(r)
        if last or not r.finite or (first is not None and r.name == first.name):
            kept.append(r)
    return kept


def _window(rows: list[Any], first: Any) -> list[Any]:
    """Rows around the first that differs, or the beginning and the end."""
    at = next((i for i, r in enumerate(rows) if first is not None and r.name == first.name), None)
    if at is not None:
        return rows[max(0, at - BEFORE) : at + AFTER + 1]
    return rows[: SHOWN // 2] + rows[-SHOWN // 2 :]


def _value(value: float) -> str:
    return f"{value:.4g}"


def _verdict(records: Sequence[Any], first: Any, reference: Path | None) -> Text:
    if first is not None:
        what = (
            f"differs by {_value(first.difference)} (its rms: {_value(first.rms)})" if first.finite else "is not finite"
        )
        where = f", {first.where}" if first.where else ""
        return Text(screen.clean(f"first: {first.name} {what}{where}"), style="bold red")
    if reference is None:
        return Text(f"all {len(records):,} nodes are finite", style="green")
    compared = [r.difference for r in records if r.difference is not None]
    if not compared:
        return Text(screen.clean(f"{reference} has none of these nodes: nothing was compared"), style="bold yellow")
    most = _value(max(compared))
    text = f"{len(compared):,} of {len(records):,} nodes agree with {reference}; largest difference {most}"
    return Text(screen.clean(text), style="green")
