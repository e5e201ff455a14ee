"""What the compiler made of a partitioned graph: its collectives and its FLOPs against those that were asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockgraph.meshes import Device, Move, moves
from blockgraph.products import SAME, Difference, differences
from compiler.check import Comparison, Expected, Flops, Match, collectives, compare, explained, flops
from compiler.check.hlo import parse as parse_hlo
from compiler.errors import BlockgraphError, Problem
from compiler.parallel.build import Built
from compiler.targets.result import Result


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

    status: str
    how: str
    kind: str
    axes: str
    expected_runs: int
    expected_bytes: int  # of all runs
    found_runs: int
    found_bytes: int
    note: str


def rows(comparison: Comparison) -> list[Row]:
    """The matches by status, normalisation, kind and axes; what is changed, missing or extra by path too."""
    sums: dict[tuple[str, str, str, str, str], list[int]] = {}
    for m in comparison.matches:
        key, numbers = _key(m), _numbers(m)
        sums[key] = [a + b for a, b in zip(sums.get(key, [0, 0, 0, 0]), numbers, strict=True)]
    order = ("equal", "normalised", "changed", "missing", "extra")
    made = [Row(*key[:4], n[0], n[1], n[2], n[3], key[4]) for key, n in sums.items()]
    return sorted(made, key=lambda row: (order.index(row.status), row.kind, row.axes))


def _key(m: Match) -> tuple[str, str, str, str, str]:
    first: Any = m.expected[0] if m.expected else m.found[0]
    axes = "no mesh axes" if first.axes is None else "+".join(first.axes)
    note = ""
    if m.status not in ("equal", "normalised"):
        note = ": ".join(filter(None, (_short(first.path), m.note)))
    return m.status, ", ".join(m.how), first.kind, axes, note


def _short(path: str) -> str:
    return path if len(path) < 90 else f"…{path[-88:]}"


def _numbers(m: Match) -> tuple[int, int, int, int]:
    """Runs and bytes of both sides. One that was merged is not counted again."""
    asked, found = sum(e.bytes for e in m.expected), zip(m.found, m.taken, strict=True)
    return m.count * len(m.expected), asked * m.count, sum(m.taken), sum(c.bytes * n for c, n in found)


def causes(comparison: Comparison) -> list[str]:
    """Why matches are not as asked, each once, where that is known."""
    return list(dict.fromkeys(m.cause for m in comparison.matches if m.cause))
