"""FLOPs of matrix products, path by path: the graph's against the compiled program's, and why they differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from blockgraph.meshes import Device
from compiler.check import Flops
from compiler.check.paths import under
from compiler.ops.experts import ExpertDot, ExpertOuter, tile_rows, tiled_rows
from compiler.ops.leaves import Leaf
from compiler.parallel.build import Built

SAME = 1e-3  # FLOPs that differ by no more are told as equal
UNNAMED = "(no name left)"
MOST_RENAMED, MOST_TRIED = 4, 12  # paths that are tried as one, among how many
RENAMED = "XLA made one product of several, or left one without its name: the sum is the same"
ROOM = {
    "tpu": "an expert's device has room for all rows that can arrive: the text counts the room, the kernel stops at "
    "the last row",
    "": "experts run in tiles of rows: the last tile of each is not full, and how many rows other devices send the "
    "text does not say",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A path whose products differ: FLOPs of one device and call. ``cause`` is empty where it is not known."""

    path: str
    expected: float
    found: float
    cause: str = ""

    @property
    def more(self) -> float:
        return self.found - self.expected

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def differences(built: Built, ours: dict[str, float], made: Flops, platform: str) -> list[Difference]:
    """The paths that differ, the most first; what has no path of ours goes by a name of its own."""
    paths = sorted(ours, key=len, reverse=True)
    theirs: dict[str, float] = {}
    for product in made.products:
        path = next((p for p in paths if under(product.path, p.replace(".", "/"))), UNNAMED)
        theirs[path] = theirs.get(path, 0.0) + product.flops * product.count
    found = (Difference(p, ours.get(p, 0.0), theirs.get(p, 0.0)) for p in dict.fromkeys((*ours, *theirs)))
    rows = sorted((d for d in found if not _near(d.expected, d.found)), key=lambda d: -abs(d.more))
    room = _room(built, platform)
    held = {d.path for d in rows if d.path in room and _near(room[d.path], d.found)}
    rows = [replace(d, cause=_in_room(platform)) if d.path in held else d for d in rows]
    renamed = _renamed([d for d in rows if not d.cause])
    return [replace(d, cause=RENAMED) if d in renamed else d for d in rows]


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * max(a, b)


def _renamed(rows: Sequence[Difference]) -> list[Difference]:
    """Paths whose differences cancel."""
    for count in (len(rows), *range(2, MOST_RENAMED + 1)):
        for some in itertools.combinations(rows[:MOST_TRIED] if count < len(rows) else rows, count):
            if len(some) > 1 and abs(sum(d.more for d in some)) <= SAME * max(abs(d.more) for d in some):
                return [*some, *_renamed([d for d in rows if d not in some])]
    return []


def _in_room(platform: str) -> str:
    return ROOM.get(platform, ROOM[""])


def _room(built: Built, platform: str) -> dict[str, float]:
    """FLOPs of paths with ragged products if every row that there is room for is multiplied; elsewhere than on TPU
    in whole tiles."""
    found: dict[str, float] = {}
    ragged: set[str] = set()
    device = Device(built)
    for node, times in built.graph.walk():
        op: Any = node.op
        if isinstance(op, Leaf):
            continue
        ins, outs = [device.local(v) for v in node.operands], [device.local(v) for v in node.results]
        flops = float(op.cost(ins, outs).matrix.evaluate(built.sizes)) * float(times)
        if isinstance(op, (ExpertDot, ExpertOuter)) and getattr(op, "implementation", "ragged") == "ragged":
            weights = outs[0] if isinstance(op, ExpertOuter) else ins[1]
            here = float(weights.size("experts").constant)
            flops *= float(op.experts.constant) / here
            if platform != "tpu":
                rows, count = int(ins[0].sizes[0].evaluate(built.sizes)), int(here)
                # tiles that run while rows are left: the text has one
                once = here < float(op.experts.constant)
                flops *= (tile_rows(rows, count) if once else tiled_rows(rows, count)) / rows
            ragged.add(node.path)
        found[node.path] = found.get(node.path, 0.0) + flops
    return {path: flops for path, flops in found.items() if path in ragged}
