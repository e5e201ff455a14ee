"""The text of a spec from a type's template and a config's values.

`$name`, `$(name)` and `$(expression)` are holes. Lines of their own: `%if a and not b`, `%elif`, `%else`, `%end`;
`%use part`, with the part's lines as far indented; `%spec mamba blocks` is what a shipped spec has under that key;
`%repeat kinds`, down to `%end` a node for each word of the list, becomes the repeats. Comments behind consecutive lines
are lined up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any

from blockgraph.importing.values import Values
from compiler.language.load import shipped

WIDTH = 110
LONGEST_CYCLE = 16
_HOLE = re.compile(r"\$(?:(?P<name>[a-z_][a-z0-9_]*)|\((?P<sum>[^()]*(?:\([^()]*\)[^()]*)*)\))", re.IGNORECASE)
MAX_NESTED = 8


class Missing(Exception):
    """A hole whose field has no value."""


def fill(text: str, values: Values, parts: Mapping[str, str]) -> str:
    """The text with everything filled in. Raises Missing, ExprError."""
    lines = [line.rstrip() for line in _chosen(text.splitlines(), values, parts)]
    return "\n".join(_lined_up(lines)) + "\n"


def _lined_up(lines: Sequence[str]) -> Iterator[str]:
    for (commented, _), run in groupby(lines, lambda line: ("  # " in line, len(line) - len(line.lstrip()))):
        if not commented:
            yield from run
            continue
        pairs = [line.split("  # ", 1) for line in run]
        width = max(len(code.rstrip()) for code, _ in pairs)
        yield from (f"{code.rstrip():{width}}  # {comment}" for code, comment in pairs)


def _chosen(lines: Sequence[str], values: Values, parts: Mapping[str, str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        word, _, rest = line.strip().partition(" ")
        indent = line[: len(line) - len(line.lstrip())]
        if word == "%if":
            end = _end(lines, at)
            yield from _chosen(_branch(lines[at:end], values), values, parts)
            at = end
        elif word == "%repeat":
            end = _end(lines, at)
            nodes = dict(_node(line) for line in lines[at + 1 : end])
            nodes = {w: _filled(n, values) for w, n in nodes.items()}
            yield from _repeats([nodes[w] for w in values[rest]], indent)
            at = end
        elif word == "%use":
            yield from (indent + inner for inner in _chosen(parts[rest].splitlines(), values, parts))
        elif word == "%spec":
            yield from _section(*rest.split())
        elif line.strip() or not line:
            yield _filled(line, values)
        at += 1


def _section(spec: str, key: str) -> Iterator[str]:
    """The lines of a shipped spec from a key of its top level down to the next."""
    lines = shipped()[spec].read_text("utf-8").splitlines()
    start = lines.index(f"{key}:")
    yield lines[start]
    yield from takewhile(lambda line: line[:1] in (" ", ""), lines[start + 1 :])


def _end(lines: Sequence[str], at: int) -> int:
    depth = 0
    for i in range(at, len(lines)):
        word = lines[i].split(maxsplit=1)[0] if lines[i].strip() else ""
        depth += (word in ("%if", "%repeat")) - (word == "%end")
        if not depth:
            return i
    raise AssertionError(f"no %end for {lines[at]}")


def _branch(lines: Sequence[str], values: Values) -> list[str]:
    """The lines of the first branch whose condition holds; the first line is its %if."""
    taken, depth, found = False, 0, list[str]()
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if not depth or (depth == 1 and word in ("%elif", "%else")):
            if taken:
                break
            taken = word == "%else" or values.holds(rest)
            depth = 1
            continue
        depth += (word in ("%if", "%repeat")) - (word == "%end")
        if taken:
            found.append(line)
    return found


def _node(line: str) -> tuple[str, str]:
    words, _, node = line.strip().partition(": ")
    return words, node.strip()


def _filled(line: str, values: Values) -> str:
    for _ in range(MAX_NESTED):  # a value may be a text with holes of its own
        if "$" not in line:
            return line
        line = _HOLE.sub(lambda m: _hole(m, values), line)
    raise AssertionError(f"holes in holes: {line}")


def _hole(found: re.Match[str], values: Values) -> str:
    name = found["name"] or found["sum"]
    if not name.isidentifier():
        return written(values.number(name))
    value = values[name]
    if value is None:
        raise Missing(name)
    return written(value)


def written(value: Any) -> str:
    """A value as a spec has it: 14_336, 1e-5, 0.5, true."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e12:
            return written(int(value))
        return re.sub(r"e([-+])0*", lambda m: "e-" if m[1] == "-" else "e", repr(value))
    return f"{value:_}" if abs(value) >= 10_000 else str(value)


def _repeats(nodes: Sequence[str], indent: str) -> Iterator[str]:
    """One repeat whose cycle fits all layers; else one for each run of equal ones."""
    count = len(nodes)
    period = next(p for p in range(1, count + 1) if all(nodes[i] == nodes[i % p] for i in range(count)))
    runs = [(node, len(list(group))) for node, group in groupby(nodes)]
    if period <= LONGEST_CYCLE and not (period == count > 2 and len(runs) <= 2):
        yield from _repeat("layers", nodes[:period], indent)
    else:
        for node, times in runs:
            yield from _repeat(str(times), [node], indent)


def _repeat(times: str, cycle: Sequence[str], indent: str) -> Iterator[str]:
    line = f"{indent}- repeat: {{times: {times}, cycle: [{', '.join(cycle)}]}}"
    if len(line) <= WIDTH:
        yield line
        return
    yield f"{indent}- repeat:"
    yield f"{indent}    times: {times}"
    yield f"{indent}    cycle:"
    yield from (f"{indent}      - {node}" for node in cycle)
