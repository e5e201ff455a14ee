"""What the compiler made of a partitioned graph: its collectives and its FLOPs against those that were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from blockgraph.meshes import Device, Move, moves
from blockgraph.products import SAME, Difference, differences
from compiler.check import Comparison, Expected, Flops, Match, collectives, compare, explained, flops
from compiler.check.compare import STATUSES, Status
from compiler.check.hlo import parse as parse_hlo
from compiler.errors import BlockgraphError, Problem
from compiler.parallel.build import Built
from compiler.targets.result import Result

Key = tuple[str, str, str, str, str, str]  # status, how, kind, axes, note, cause
NOTES = {
    "missing": "nothing in the program answers to it: left out, or so changed that it is not known again",
    "extra": "nobody asked for it: the compiler's own",
}


@dataclass(frozen=True)
class Checked:
    """``comparison`` of collectives; matrix FLOPs of one device and call, ours and the program's."""

    comparison: Comparison
    instructions: int  # collective operations of the program's text
    asynchronous: int  # of those, beside other work
    unknown_loops: int  # whose trips the text does not give
    ours: float
    program: Flops
    by_path: tuple[Difference, ...]  # paths whose products differ

    @property
    def ratio(self) -> float | None:
        return self.program.total / self.ours if self.ours else None

    @property
    def same_flops(self) -> bool:
        return abs(self.program.total - self.ours) <= SAME * max(self.ours, 1)

    @property
    def as_asked(self) -> bool:
        return self.comparison.as_asked

    def as_json(self) -> dict[str, Any]:
        return {
            **self.comparison.to_json(),
            "instructions": self.instructions,
            "asynchronous": self.asynchronous,
            "unknown_loops": self.unknown_loops,
            "flops": {
                "expected": self.ours, "found": self.program.total, "ratio": self.ratio, "equal": self.same_flops,
                "opaque": dict(self.program.opaque), "exact": self.program.exact,
                "differ": [d.as_json() for d in self.by_path],
            },
        }  # fmt: skip


def expected(found: Iterable[Move]) -> list[Expected]:
    """What the graph asks for, in the checker's words: scopes are joined by a slash there."""
    return [
        Expected(m.kind, m.axes, m.dtype, m.bytes, m.times, _scopes(m.path), m.group, m.value, m.shape, m.along)
        for m in found
    ]


def _scopes(path: str) -> str:
    return path.replace(".", "/")


def check(built: Built, result: Result, platform: str) -> Checked:
    """Reads the optimised HLO of an accepted compile. Raises where there is none."""
    path = result.files.get("optimised_hlo")
    if path is None:
        message = f"the compiler for {result.target} gave no text of its program, so it cannot be checked"
        raise BlockgraphError(Problem("no-program-text", message))
    return check_text(built, Path(path).read_text(encoding="utf-8"), platform)


def check_text(built: Built, text: str, platform: str) -> Checked:
    """The same for a text. Devices of HLO are numbered by their place in the mesh."""
    module = parse_hlo(text)
    mesh = {m: n for m, n in built.meshed.layout.mesh.items() if n > 1} if built.meshed is not None else None
    found = collectives(module, mesh)
    made = flops(module)
    ours = Device(built).flops()
    compared = explained(compare(expected(moves(built, platform)), found.collectives), platform)
    return Checked(
        compared, found.instructions, found.asynchronous, len(found.unknown), sum(ours.values()), made,
        tuple(differences(built, ours, made, platform)),
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Matches that are told as one."""

    status: Status
    how: str
    kind: str
    axes: str
    expected_runs: int
    expected_bytes: int  # of all runs
    found_runs: int
    found_bytes: int
    note: str  # of what is not as asked: what differs
    cause: str  # why, where that is known
    paths: tuple[str, ...]  # where


def rows(comparison: Comparison) -> list[Row]:
    """The matches by status, normalisation, kind and axes; what is changed, missing or extra by note and cause too."""
    sums: dict[Key, list[int]] = {}
    places: dict[Key, list[str]] = {}
    for m in comparison.matches:
        first: Any = m.expected[0] if m.expected else m.found[0]
        key, numbers = _key(m, first), _numbers(m)
        sums[key] = [a + b for a, b in zip(sums.get(key, [0, 0, 0, 0]), numbers, strict=True)]
        places.setdefault(key, []).append(_short(first.path))
    made = []
    for (status, how, kind, axes, note, cause), n in sums.items():
        paths = tuple(dict.fromkeys(filter(None, places[status, how, kind, axes, note, cause])))
        made.append(Row(cast(Status, status), how, kind, axes, n[0], n[1], n[2], n[3], note, cause, paths))
    return sorted(made, key=lambda row: (STATUSES.index(row.status), row.kind, row.axes))


def _key(m: Match, first: Any) -> Key:
    axes = "no mesh axes" if first.axes is None else "+".join(first.axes)
    note = "" if m.status in ("equal", "normalised") else m.note or NOTES.get(m.status, "")
    return m.status, ", ".join(m.how), first.kind, axes, note, m.cause


def _short(path: str) -> str:
    return path if len(path) < 90 else f"…{path[-88:]}"


def _numbers(m: Match) -> tuple[int, int, int, int]:
    """Runs and bytes of both sides. One that was merged is not counted again."""
    asked, found = sum(e.bytes for e in m.expected), zip(m.found, m.taken, strict=True)
    return m.count * len(m.expected), asked * m.count, sum(m.taken), sum(c.bytes * n for c, n in found)


def verdict(comparison: Comparison) -> str:
    """What the comparison comes to, in one line."""
    runs = comparison.runs
    asked, found = sum(t.expected for t in comparison.totals), sum(t.found for t in comparison.totals)
    if not comparison.matches:
        return "no collectives: the graph asks for none, and the program has none"
    if comparison.as_asked:
        return f"as asked: all {sum(runs.values()):,} collectives are in the program" + _forms(runs["normalised"])
    others = ", ".join(f"{runs[s]:,} {s}" for s in ("changed", "missing", "extra") if runs[s])
    total = sum(n for s, n in runs.items() if s != "extra")
    kept = f"{runs['equal'] + runs['normalised']:,} of {total:,} collectives are as asked; {others}"
    times = f"{found / asked:.4g}" if asked else "1"
    ratio = f" ({times} times)" if times != "1" else ""
    return f"not as asked: {kept}. A device sends {found:,} bytes where {asked:,} were asked for{ratio}"


def _forms(normalised: int) -> str:
    return f", {normalised:,} of them in another form that does the same" if normalised else ""
