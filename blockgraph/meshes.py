"""What a call is on a mesh: where everything lies, what moves and why, what one device computes and holds.

All of it is read from the graph that is compiled (``compiler.parallel.build``); nothing here imports jax.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.errors import BlockgraphError, Problem, nearest
from compiler.graph.ir import Graph, Node, Value
from compiler.language.model import Model
from compiler.ops.collective import Collective, Once, OwnShard
from compiler.ops.control import Repeat
from compiler.ops.leaves import Input, Leaf, Parameter, State
from compiler.parallel import build as building
from compiler.parallel import strategy as strategies
from compiler.parallel.build import Built
from compiler.parallel.layout import Links
from compiler.parallel.mesh import parse as parse_mesh
from compiler.parallel.request import SCHEDULES, Parallel, Request, Topology, Training, Wires
from compiler.passes.call import TRAIN
from compiler.passes.classes import state_class
from compiler.passes.placement import Partial, numbers
from compiler.targets.types import DEFAULT_PRECISION, Target, parse_target
from costmodel.machines import Machine, machine
from costmodel.memory import activation_bytes
from costmodel.origins import AS_WRITTEN, origins

KINDS = {
    "all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all", "permute": "collective-permute", "gather_counts": "all-gather",
    "exchange": "ragged-all-to-all",
}  # fmt: skip
MEMORY = {
    "parameters": "parameters", "optimiser": "optimiser state", "state": "caches and recurrent state",
    "inputs": "inputs", "working": "working memory (estimate)",
}  # fmt: skip
WORKING = ("lookup", "recur", "linear_attend", "dispatch", "collect")  # told whether or not they multiply matrices
USUAL = ("data", "fsdp", "tensor", "expert", "context")  # strategies to name for a mesh axis, in this order


def machine_of(target: Target) -> Machine | None:
    """The machine file of a target's chip; None for the CPU."""
    return None if target.platform == "cpu" else machine(target.chip)


def wires_of(target: Target) -> Wires | None:
    """The part of it that a layout needs."""
    m = machine_of(target)
    if m is None:
        return None
    net = Topology(m.topology.kind, tuple(m.topology.pod_shape))
    return Wires(m.name, m.links, m.link_bytes_per_s, net, m.dcn_bytes_per_s)


def devices_only(count: int) -> Target:
    """So many devices of no machine in particular: their links have no rate."""
    return Target("cpu", "cpu", str(count), 1, count, DEFAULT_PRECISION["cpu"])


def place(target: str | None, chips: int | None, mesh: str | None, slices: int | None = None) -> Target:
    """The target of a name; else so many devices; else as many as a mesh has. Raises where none says."""
    if target is not None and chips is not None:
        message = f"--chips {chips} and --target {target} both say what the machine is"
        raise BlockgraphError(Problem("conflicting-options", message, None, (), "only one of them"))
    if target is not None:
        return parse_target(target)
    if chips is None:
        found = parse_mesh(mesh, slices or 1) if mesh else None
        if found is None or -1 in found.sizes.values():
            message = "how many devices there are is not said"
            suggestion = "--target tpu:v5p:4x4x4, --chips 64, or a mesh with all its numbers"
            raise BlockgraphError(Problem("missing-option", message, None, (), suggestion))
        chips = found.devices
    return devices_only(chips)


def parallel_of(
    strategy: str | None,
    mesh: str | None = None,
    shard: Iterable[str] = (),
    replicate: Iterable[str] = (),
    slices: int | None = None,
    target: Target | None = None,
    schedule: str | None = None,
    microbatches: int | None = None,
    rounds: int | None = None,
) -> Parallel | None:
    """What was asked of a mesh; None where nothing was. ``slices``: those of the target unless given. Raises where a
    mesh or a rule has no strategy."""
    given = {"--mesh": mesh, "--shard": tuple(shard), "--replicate": tuple(replicate), "--slices": slices,
             "--schedule": schedule, "--microbatches": microbatches, "--rounds": rounds}  # fmt: skip
    if strategy is None:
        first = next((name for name, value in given.items() if value), None)
        if first is None:
            return None
        message = f"{first} needs a strategy, which says what is divided over the mesh"
        problem = Problem("missing-option", message, None, strategies.strategies(), _usual(mesh))
        raise BlockgraphError(problem)
    own = slices if slices is not None else target.slices if target is not None and "dcn_" not in (mesh or "") else 1
    schedule, rounds = _schedule(schedule, rounds)
    return Parallel(strategy, mesh or "", tuple(shard), tuple(replicate), own, schedule, microbatches, rounds)


def _schedule(schedule: str | None, rounds: int | None) -> tuple[str, int]:
    """A pipeline's schedule and its rounds: several rounds are a circular one, and that has two unless said."""
    if schedule is not None and schedule not in SCHEDULES:
        message = f"no schedule of a pipeline is called {schedule}"
        raise BlockgraphError(Problem("unknown-name", message, None, SCHEDULES, nearest(schedule, SCHEDULES)))
    if rounds is not None and (rounds > 1) != (schedule in ("circular", None)):
        message = f"--schedule {schedule} with --rounds {rounds}: a circular pipeline has several rounds, others one"
        raise BlockgraphError(Problem("conflicting-options", message))
    chosen = schedule or ("circular" if (rounds or 1) > 1 else "gpipe")
    return chosen, rounds or (2 if chosen == "circular" else 1)


def _usual(mesh: str | None) -> str:
    """A strategy that speaks of the axes of a mesh."""
    names = [part.partition("=")[0].strip() for part in (mesh or "").split(",")]
    known = {s: strategies.load(s).mesh for s in USUAL}
    found = [next((s for s, axes in known.items() if name in axes), None) for name in names]
    return f"--parallel {'+'.join(dict.fromkeys(f for f in found if f)) or 'fsdp'}"


def build(model: Model, asked: Request, target: Target, print_after: Any = None) -> Built:
    """The graph that the worker will compile. Raises with every problem of strategy, mesh and sizes."""
    return building.build(model, asked, target, wires_of(target), print_after)


# -- one device
@dataclass(frozen=True)
class Device:
    """A built call as one device sees it."""

    built: Built

    def local(self, value: Value) -> Any:
        """The type of a value's shard, in numbers."""
        placed = self.built.meshed
        return placed.made.local(value) if placed is not None else numbers(value.type, self.built.sizes)

    def graph(self, graph: Graph | None = None) -> Graph:
        """The graph with the types of shards."""
        whole = self.built.graph if graph is None else graph
        return Graph(
            tuple(self._node(n) for n in whole.nodes), tuple((name, self._value(v)) for name, v in whole.outputs)
        )

    def _value(self, value: Value) -> Value:
        return Value(value.id, self.local(value))

    def _node(self, node: Node) -> Node:
        op: Any = node.op
        if isinstance(op, Repeat):
            op = dataclasses.replace(op, body=self.graph(op.body))
        operands, results = (tuple(self._value(v) for v in vs) for vs in (node.operands, node.results))
        return dataclasses.replace(node, op=op, operands=operands, results=results)

    def memory(self) -> dict[str, float]:
        """Bytes by kind. All but the working memory are exact; that is the peak of live values, unfused."""
        found = dict.fromkeys(MEMORY, 0.0)
        graph = self.graph()
        for node in graph.nodes:
            op, size = node.op, float(node.result.type.bytes.constant) if node.results else 0.0
            if isinstance(op, Parameter):
                found["parameters"] += size
            elif isinstance(op, State):
                found["optimiser" if state_class(op) == "optimiser" else "state"] += size
            elif isinstance(op, Input):
                found["inputs"] += size
        found["working"] = activation_bytes(graph, self.built.sizes, origins(graph, AS_WRITTEN))
        return found

    def flops(self) -> dict[str, float]:
        """FLOPs of matrix products in one call, by path."""
        found: dict[str, float] = {}
        for node, times in self.built.graph.walk():
            if isinstance(node.op, Leaf):
                continue
            cost = node.op.cost([self.local(v) for v in node.operands], [self.local(v) for v in node.results])
            matrix = float(cost.matrix.evaluate(self.built.sizes)) * float(times)
            if matrix:
                found[node.path] = found.get(node.path, 0.0) + matrix
        return found


# -- what moves
@dataclass(frozen=True)
class Move:
    """A collective. ``bytes`` of one device and run: of a gather the result, else the operand; ``sent`` by a ring.
    ``shape`` of the operand on one device, and at which of its places the axis is that is gathered or scattered."""

    kind: str
    axes: tuple[str, ...]
    group: int
    dtype: str
    bytes: int
    sent: float
    times: int
    path: str
    why: str
    value: str
    shape: tuple[int, ...] = ()
    along: int | None = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"axes": list(self.axes), "shape": list(self.shape)}


def moves(built: Built, platform: str = "tpu") -> list[Move]:
    """Every collective that moves something, in the order of the graph."""
    if built.meshed is None:
        return []
    made, device, found = built.meshed.made, Device(built), []
    for node, times in built.graph.walk():
        op: Any = node.op
        if not isinstance(op, Collective) or isinstance(op, (OwnShard, Once)) or op.shards < 2:
            continue
        ins, outs = [device.local(v) for v in node.operands], [device.local(v) for v in node.results]
        kind, size = KINDS[op.name], float((outs if KINDS[op.name] == "all-gather" else ins)[0].bytes.constant)
        if op.name == "exchange" and platform == "cpu":  # which sends all the room there is
            kind, size = "all-to-all", size * (1 if getattr(op, "back", False) else op.shards)
        sent = float(op.cost(ins, outs).sent.evaluate(built.sizes))
        why = made.why.get(node.result.id, "") or f"{op.text().split('<')[0]} between shards"
        shape, axis = tuple(int(n.constant) for n in ins[0].sizes), getattr(op, "axis", None)
        found.append(
            Move(kind, op.mesh_axes, op.shards, ins[0].dtype, int(size), sent, int(times), node.path, why,
                 str(node.operands[0]), shape, ins[0].axes.index(axis) if axis in ins[0].axes else None)
        )  # fmt: skip
    return found


def totals(found: Iterable[Move]) -> list[dict[str, Any]]:
    """Bytes that a device sends in one call and how many collectives run, by kind and mesh axes."""
    sums: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for m in found:
        row = sums.setdefault((m.kind, m.axes), [0, 0.0, 0.0])
        row[0], row[1], row[2] = row[0] + m.times, row[1] + m.bytes * m.times, row[2] + m.sent * m.times
    return [
        {"kind": kind, "axes": list(axes), "runs": int(n), "bytes": total, "sent": sent}
        for (kind, axes), (n, total, sent) in sorted(sums.items())
    ]


# -- what lies where
def placed_text(built: Built, value: Value) -> str:
    """``[batch/fsdp seq heads/model head_dim]``, and what is partial."""
    assert built.meshed is not None
    made = built.meshed.made
    over, place = made.of(value), made.placements.get(value.id, {})
    axes = " ".join(f"{a}/{'/'.join(over[a])}" if a in over else a for a in value.axes)
    partial = "".join(f" {p} over {m}" for m, p in place.items() if isinstance(p, Partial))
    return f"[{axes}]{partial}"


def parameters(built: Built) -> list[dict[str, Any]]:
    """Each parameter: its axes with the mesh axes that divide them, bytes of the whole and of one device."""
    assert built.meshed is not None
    rows = []
    for node in built.graph.leaves(Parameter):
        t, local = numbers(node.result.type, built.sizes), built.meshed.made.local(node.result)
        rows.append({
            "label": getattr(node.op, "label", ""), "axes": list(t.axes), "shape": [int(s.constant) for s in t.sizes],
            "dtype": t.dtype, "over": {a: list(m) for a, m in built.meshed.made.of(node.result).items()},
            "placement": placed_text(built, node.result), "bytes": float(t.bytes.constant),
            "bytes_per_device": float(local.bytes.constant),
        })  # fmt: skip
    return rows


def work(built: Built) -> dict[str, list[str]]:
    """For each path what its products, lookups and recurrences make, with placements; the same said once."""
    found: dict[str, dict[str, int]] = {}
    device = Device(built)
    for node, times in built.graph.walk():
        if isinstance(node.op, (Leaf, Collective)):
            continue
        cost = node.op.cost([device.local(v) for v in node.operands], [device.local(v) for v in node.results])
        if float(cost.matrix.evaluate(built.sizes)) or node.op.name in WORKING:
            text = f"{node.op.name} {placed_text(built, node.result)}"
            row = found.setdefault(node.path, {})
            row[text] = row.get(text, 0) + int(times)
    return {path: [f"{text} x {n:,}" for text, n in row.items()] for path, row in found.items()}


# -- together
@dataclass(frozen=True)
class Figures:
    """What one device of a call holds, computes and sends."""

    request: Request
    target: Target
    built: Built
    layers: Mapping[str, int]  # blocks of the top level that hold parameters -> how many layers have one

    @property
    def device(self) -> Device:
        return Device(self.built)

    @property
    def links(self) -> list[str]:
        return [str(links) for links in self.built.meshed.layout.links.values()] if self.built.meshed else []

    @property
    def notes(self) -> list[str]:
        if self.built.meshed is None:
            return []
        return [*map(str, self.built.meshed.plan.notes), *self.built.meshed.layout.network.notes]

    @property
    def mesh(self) -> dict[str, int]:
        return dict(self.built.meshed.layout.mesh) if self.built.meshed else {}

    def per_layer(self) -> dict[str, float]:
        """FLOPs of one layer of each kind, on one device."""
        sums: dict[str, float] = {}
        for path, flops in self.device.flops().items():
            head = path.partition(".")[0]
            sums[head] = sums.get(head, 0.0) + flops
        return {head: flops / self.layers.get(head, 1) for head, flops in sums.items()}

    def as_json(self) -> dict[str, Any]:
        found = moves(self.built, self.target.platform)
        meshed = self.built.meshed
        links = meshed.layout.links if meshed else {}
        return {
            "strategy": meshed.plan.strategy if meshed else None,
            "mesh": self.mesh,
            "devices": self.target.devices if meshed else 1,
            "links": {name: _links(found) for name, found in links.items()},
            "notes": self.notes,
            "memory_per_device": self.device.memory(),
            "flops_per_device": sum(self.device.flops().values()),
            "flops_per_layer": self.per_layer(),
            "collectives": totals(found),
            "sent_by_axis": building.traffic(meshed.made) if meshed else {},
        }


def _links(found: Links) -> dict[str, Any]:
    rate = None if math.isinf(found.bytes_per_s) else found.bytes_per_s
    return {"text": str(found), "over": list(found.kinds), "bytes_per_s": rate}


def figures(model: Model, request: Request, target: Target, built: Built | None = None) -> Figures:
    """The figures of a call; builds it where it is not built yet."""
    layers: dict[str, set[tuple[Any, ...]]] = {}
    for op, _ in model.parameters.values():
        held = layers.setdefault(op.path.partition(".")[0], set())
        held.update(_numbers(op))
    count = {head: len(held) for head, held in layers.items() if held}
    return Figures(request, target, built or build(model, request, target), count)


def _numbers(op: Parameter) -> Iterator[tuple[Any, ...]]:
    """The layers that hold a stacked parameter."""
    found: list[tuple[Any, ...]] = [()] if op.stack else []
    for s in op.stack:
        found = [(*before, n) for before in found for n in range(s.start, s.start + s.step * s.count, s.step)]
    yield from found


def explain(model: Model, request: Request, target: Target) -> dict[str, Any]:
    """Where everything lies on the mesh and what moves, block by block. Raises where no mesh is asked for."""
    if request.parallel is None:
        message = "explain tells of a mesh, and needs a strategy"
        raise BlockgraphError(Problem("missing-option", message, None, strategies.strategies(), "--parallel fsdp"))
    made = figures(model, request, target)
    blocks: dict[str, dict[str, Any]] = {path: {"work": lines, "moves": []} for path, lines in work(made.built).items()}
    rows: dict[tuple[Any, ...], Move] = {}
    for m in moves(made.built, target.platform):
        key = (m.path, m.kind, m.axes, m.dtype, m.bytes, m.why)
        rows[key] = dataclasses.replace(m, times=m.times + (rows[key].times if key in rows else 0))
    for m in rows.values():
        blocks.setdefault(m.path, {"work": [], "moves": []})["moves"].append(m.as_json())
    return {
        "model": model.name, "phase": request.phase, "batch": request.batch, "length": request.length,
        "target": None if target.platform == "cpu" else target.text, **made.as_json(),
        "blocks": [{"path": path, **block} for path, block in blocks.items()], "parameters": parameters(made.built),
    }  # fmt: skip


def check_training(phase: str, given: Mapping[str, Any]) -> Training:
    """The options of a training step that were given; ``remat_limit`` in GiB. Raises for another phase, and for values
    that are none."""
    asked = {name: value for name, value in given.items() if value is not None}
    if asked and phase != TRAIN:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        message = f"{names}: of a training step, and this is {phase}"
        raise BlockgraphError(Problem("conflicting-options", message, None, (), "--phase train"))
    if asked.get("moments") not in (None, "float32", "bfloat16"):
        message = f"moments are not kept in {asked['moments']}"
        raise BlockgraphError(Problem("unknown-name", message, None, ("float32", "bfloat16")))
    if asked.get("remat") == "auto" and "remat_limit" not in asked:
        message = "--remat auto keeps what fits under a limit, and none is given"
        raise BlockgraphError(Problem("missing-option", message, None, (), "--remat-limit 4 (GiB a device)"))
    if "remat_limit" in asked and asked.get("remat") != "auto":
        message = "--remat-limit belongs to --remat auto"
        raise BlockgraphError(Problem("conflicting-options", message, None, (), "--remat auto"))
    if "remat_limit" in asked:
        asked["remat_limit"] *= 2**30
    if "clip" in asked:
        asked["clip"] = asked["clip"] or None
    return Training(**asked)
