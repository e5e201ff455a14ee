"""The collectives that a compiled program runs: kind, mesh axes, bytes, how often, and for which node of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from compiler.check.groups import Groups, Move, groups, mesh_axes, move, pairs
from compiler.check.hlo import Computation, HloError, Instruction, Module, Shape, parse
from compiler.check.loops import Trips, Visit, walk

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
    "collective-broadcast",
)  # fmt: skip
# What TPU sends between slices by the hosts' network, where each slice runs a program of its own.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_TRANSFERS = {"ONE_TO_ONE": "collective-permute"} | {kind.upper().replace("-", "_"): kind for kind in KINDS}
SPLIT = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "collective-broadcast")


@dataclass(frozen=True)
class Collective:
    """One operand of one collective. Bytes are of one device and one execution; ``count`` is how often it runs."""

    kind: str
    axes: tuple[str, ...] | None  # of the mesh; None when the groups are no product of axes, or no mesh was given
    group: int  # devices in one group; for a permute, those along its axes
    dtype: str
    operand_bytes: int
    result_bytes: int
    count: int
    path: str  # jax's op_name, where the scopes of our nodes are
    name: str  # of the HLO instruction
    asynchronous: bool = False
    by: int | None = None  # of a permute along one axis: how many places, modulo the axis
    combined: int = 1  # operands that the instruction has
    trips: tuple[int, ...] = ()  # of the loops around it, outermost first; 1 where it is unknown
    exact: bool = True  # false below a loop whose trip count is unknown: counted once
    branch: bool = False  # in one of several branches: may not run at all

    @property
    def bytes(self) -> int:
        """The whole tensor of the group's point of view: a gather's result, what all others take in."""
        return self.result_bytes if self.kind == "all-gather" else self.operand_bytes

    @property
    def sent(self) -> int:
        """Bytes that one device sends in one execution, in a ring."""
        return sent(self.kind, self.bytes, self.group)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"bytes": self.bytes, "sent": self.sent}


def sent(kind: str, size: int, group: int) -> int:
    """Bytes a device sends for a tensor of ``size`` bytes (see ``Collective.bytes``) in a group, by the ring formula.
    For a ragged exchange it is the most: how much stays at home is known at run time."""
    if kind == "collective-permute":
        return size
    if group <= 1:
        return 0
    if kind == "collective-broadcast":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) // group


@dataclass(frozen=True)
class Found:
    """What a program has: its collectives, split by operand, and its loops."""

    collectives: tuple[Collective, ...]
    loops: tuple[Trips, ...]

    @property
    def instructions(self) -> int:
        """Collective operations in the program text, combined ones as one."""
        return len({c.name for c in self.collectives})

    @property
    def asynchronous(self) -> int:
        """How many of those run beside other work."""
        return len({c.name for c in self.collectives if c.asynchronous})

    @property
    def unknown(self) -> tuple[Trips, ...]:
        """Loops whose trip count the text does not give."""
        return tuple(loop for loop in self.loops if loop.trips is None)

    def to_json(self) -> dict[str, Any]:
        return {
            "collectives": [c.to_json() for c in self.collectives],
            "loops": [asdict(loop) for loop in self.loops],
            "instructions": self.instructions,
            "asynchronous": self.asynchronous,
        }


def collectives(
    program: Module | str, mesh: Mapping[str, int] | None = None, order: Sequence[int] | None = None
) -> Found:
    """Every collective of a program. ``mesh``: axis -> size, major first; ``order``: the device at each place of it,
    when that is not the place itself."""
    module = parse(program) if isinstance(program, str) else program
    reader = _Reader(module, mesh, order)
    loops: list[Trips] = []
    chains: set[tuple[str, str, str]] = set()
    found: list[Collective] = []
    for visit in walk(module, loops):
        if visit.instruction.opcode == "send" and _TRANSFER.search(visit.instruction.rest):
            found.append(reader.transfer(visit))
            continue
        kind = visit.instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        chain = _chain(visit.instruction)
        # A fusion that runs beside a gather repeats it: in the start, in each step (which may lie in a loop after the
        # start) and in the end of its chain.
        if chain and any((place, chain, kind) in chains for place in (visit.place, *visit.outer)):
            continue
        chains.add((visit.place, chain, kind))
        found += reader.read(visit, kind, bool(chain))
    return Found(tuple(found), tuple(loops))


def _chain(i: Instruction) -> str:
    """The mark that the copies of one asynchronous collective share; their channel is 1 like everyone's."""
    if "chain_id=" not in i.rest:
        return ""
    for part in i.attributes.get("frontend_attributes", "").strip("{}").split(","):
        key, _, value = part.partition("=")
        if key.strip() == "chain_id":
            return value.strip().strip('"')
    return ""


class _Reader:
    def __init__(self, module: Module, mesh: Mapping[str, int] | None, order: Sequence[int] | None) -> None:
        self.module = module
        self.mesh = mesh
        self.order = order
        self.seen: dict[str, tuple[tuple[str, ...] | None, int]] = {}
        self.between: tuple[str, ...] | None = None  # axes whose neighbours are in different slices
        self.slices = 1
        if mesh is not None and math.prod(mesh.values()) > module.devices:
            self._slice(mesh)

    def _slice(self, mesh: Mapping[str, int]) -> None:
        """The program is that of one slice: its numbers are places in the mesh without the axes between slices, which
        are the first ones. Where an axis lies half in a slice, no axes are named."""
        self.slices, rest = divmod(math.prod(mesh.values()), self.module.devices)
        names = list(mesh)
        count = next((n for n in range(len(names)) if math.prod(mesh[a] for a in names[:n]) == self.slices), None)
        self.mesh = self.order = None
        if not rest and count is not None:
            self.mesh = {a: mesh[a] for a in names[count:]}
            self.between = tuple(a for a in names[:count] if mesh[a] > 1)

    def transfer(self, visit: Visit) -> Collective:
        """A collective between slices: a send and, in the same computation, the receive that meets it."""
        i = visit.instruction
        kind = _TRANSFERS.get(_TRANSFER.findall(i.rest)[0], "collective-permute")
        taken = visit.computation.operand_shapes(i)[0]
        made = _met(visit.computation, i)
        return Collective(
            kind, self.between, self.slices, taken.dtype, taken.bytes, (made or taken).bytes, visit.times, i.op_name,
            i.name, True, trips=visit.trips, exact=visit.exact, branch=bool(visit.branches),
        )  # fmt: skip

    def read(self, visit: Visit, kind: str, chained: bool) -> list[Collective]:
        i = visit.instruction
        operands = visit.computation.operand_shapes(i)
        results = _results(i, kind)
        axes, size, by = self._where(i, kind)
        if kind == "all-reduce" and _scatters(visit):
            kind = "reduce-scatter"  # TPU writes one as a sum with a slice of it in a fusion of that name
            results = (visit.caller.shape,) if visit.caller else results
        parts = self._joined(visit, kind, operands) or _parts(kind, operands, results)
        first = Collective(
            kind, axes, size, "", 0, 0, visit.times, self._path(i), i.name, _runs_beside(visit, chained), by,
            len(parts), visit.trips, visit.exact, bool(visit.branches),
        )  # fmt: skip
        return [replace(first, dtype=a.dtype, operand_bytes=taken, result_bytes=made) for a, taken, made in parts]

    def _joined(self, visit: Visit, kind: str, operands: Sequence[Shape]) -> list[tuple[Shape, int, int]]:
        """GPU puts what it sums together end to end in one vector; its parts, or nothing where it did not."""
        if kind != "all-reduce" or len(operands) != 1 or len(operands[0].dims) != 1:
            return []
        computation, source = visit.computation, visit.computation.get(visit.instruction.operands[0])
        if source is not None and source.opcode == "fusion":
            computation = self.module[source.called("calls")[0]]
            source = computation.root
        if source is None or source.opcode != "concatenate":
            return []
        return [(part, part.bytes, part.bytes) for part in computation.operand_shapes(source)]

    def _where(self, i: Instruction, kind: str) -> tuple[tuple[str, ...] | None, int, int | None]:
        """Mesh axes, group size, and by how many places a permute moves."""
        if kind == "collective-permute":
            found = pairs(i.attributes.get("source_target_pairs", ""))
            if self.mesh is None:
                return None, len(found), None
            moved = move(found, self.mesh, self.order)
            return moved.axes, _along(moved, self.mesh), moved.by
        text = i.attributes.get("replica_groups", "{}")
        if text not in self.seen:
            self.seen[text] = self._axes(groups(text, self.module.devices))
        return *self.seen[text], None

    def _axes(self, found: Groups) -> tuple[tuple[str, ...] | None, int]:
        axes = None if self.mesh is None else mesh_axes(found, self.mesh, self.order)
        return axes, max(len(group) for group in found)

    def _path(self, i: Instruction) -> str:
        """A sum that the compiler combined or rewrote has lost its name; its combiner still has one."""
        names = i.called("to_apply") if not i.op_name else ()
        inside = self.module[names[0]].parameters.values() if names else ()
        return i.op_name or next((p.op_name for p in inside if p.op_name), "")


def _met(computation: Computation, send: Instruction) -> Shape | None:
    place = _RENDEZVOUS.findall(send.rest)
    same = (i for i in computation if i.opcode == "recv" and _RENDEZVOUS.findall(i.rest) == place)
    return next((next(i.shape.leaves()) for i in same), None)


def _along(moved: Move, mesh: Mapping[str, int]) -> int:
    size = 1
    for axis in moved.axes:
        size *= mesh[axis]
    return size


def _scatters(visit: Visit) -> bool:
    around = (visit.computation.name, visit.caller.name if visit.caller else "")
    return any(name.startswith("all-reduce-scatter") for name in around)


def _runs_beside(visit: Visit, chained: bool) -> bool:
    """A start that GPU marks as synchronous waits for its end at once."""
    if not visit.instruction.opcode.endswith("-start"):
        return chained or visit.asynchronous
    config = visit.instruction.backend_config.get("collective_backend_config")
    return not (isinstance(config, dict) and config.get("is_sync"))


def _results(i: Instruction, kind: str) -> tuple[Shape, ...]:
    """The results' shapes; a start's tuple holds its operands first and what it waits on last."""
    shape = i.shape
    if i.opcode.endswith("-start") and kind != "all-reduce" and shape.parts is not None:
        if len(shape.parts) < 2:
            raise HloError(f"%{i.name} has no result in {i.shape_text[:80]}")
        shape = shape.parts[1]
    return tuple(shape.leaves())


def _parts(kind: str, operands: Sequence[Shape], results: Sequence[Shape]) -> list[tuple[Shape, int, int]]:
    """(operand, bytes taken in, bytes made) of each tensor of a combined collective."""
    if kind == "ragged-all-to-all":  # data, where it goes, and four lists of places and sizes
        operands = operands[:1]
    if kind in SPLIT and len(operands) >= len(results) > 0:  # a permute in place has more operands than results
        return [(a, a.bytes, b.bytes) for a, b in zip(operands, results, strict=False)]
    if not operands:
        raise HloError(f"a {kind} without operands")
    return [(operands[0], sum(a.bytes for a in operands), sum(b.bytes for b in results))]


def bytes_sent(found: Iterable[Collective]) -> dict[tuple[str, tuple[str, ...] | None], int]:
    """Bytes that a device sends in one run of the program, by kind and mesh axes."""
    total: dict[tuple[str, tuple[str, ...] | None], int] = {}
    for c in found:
        total[c.kind, c.axes] = total.get((c.kind, c.axes), 0) + c.sent * c.count
    return total
