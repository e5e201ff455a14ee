"""Which values depend on the streaming input, which only on other inputs (static), which on neither (free)."""

from __future__ import annotations

from dataclasses import dataclass, field

from compiler.graph.ir import Graph, Node, Value
from compiler.ops.control import Repeat
from compiler.ops.leaves import Input

FREE, STATIC, STREAMING = 0, 1, 2


@dataclass
class Dependence:
    level: dict[int, int] = field(default_factory=dict)
    regions: dict[int, Graph] = field(default_factory=dict)  # value -> the region it is computed in
    labels: dict[int, str] = field(default_factory=dict)
    boundary: list[Value] = field(default_factory=list)  # static values that a streaming node uses

    def of(self, node: Node) -> int:
        return max((self.level[v.id] for v in node.results), default=FREE)

    def is_static(self, node: Node) -> bool:
        return bool(node.results) and self.of(node) == STATIC

    def is_free(self, node: Node) -> bool:
        return self.of(node) == FREE

    def inside(self, v: Value) -> bool:
        return v.id in self.regions

    def region_of(self, v: Value) -> Graph | None:
        return self.regions.get(v.id)

    def label(self, v: Value) -> str:
        return self.labels[v.id]


def dependence(graph: Graph, stream: str) -> Dependence:
    """Analyses a phase-free graph; ``stream`` is the streaming input's name (with its lengths)."""
    found = Dependence()
    _walk(graph, stream, found, None)
    _boundary(graph, found)
    return found


def _walk(graph: Graph, stream: str, found: Dependence, region: Graph | None) -> None:
    level = found.level
    for node in graph.nodes:
        if region is not None:
            for v in node.results:
                found.regions[v.id] = region
        if isinstance(node.op, Input):
            streaming = node.op.label in (stream, "seq_lengths")
            level[node.result.id] = STREAMING if streaming else STATIC
        elif isinstance(node.op, Repeat):
            _repeat(node, node.op, stream, found)
        elif not node.operands:
            # positions along the stream belong to it; arguments were set by the repeat
            own = STATIC if node.op.once else FREE
            for v in node.results:
                level.setdefault(v.id, STREAMING if "seq" in v.axes else own)
        else:
            inherited = max(level[v.id] for v in node.operands)
            for v in node.results:
                level[v.id] = max(inherited, STREAMING if "seq" in v.axes else FREE)


def _repeat(node: Node, op: Repeat, stream: str, found: Dependence) -> None:
    level = found.level
    for argument, operand in zip(op.arguments, node.operands, strict=True):
        level[argument] = level[operand.id]
    outs = [v for _, v in op.body.outputs]
    while True:  # what is carried is at least what a trip makes of it
        _walk(op.body, stream, found, op.body)
        changed = False
        for argument, out in zip(op.arguments[: op.carried], outs, strict=False):
            if level[out.id] > level[argument]:
                level[argument], changed = level[out.id], True
        if not changed:
            break
    for result, out in zip(node.results, outs, strict=True):
        level[result.id] = level[out.id]


def _boundary(graph: Graph, found: Dependence) -> None:
    seen: set[int] = set()
    counts: dict[str, int] = {}

    def visit(g: Graph) -> None:
        producers = g.producers()
        for node in g.nodes:
            if found.of(node) != STREAMING:
                continue
            for v in node.operands:
                argument = v.id in producers and producers[v.id].op.name == "argument"
                if found.level[v.id] == STATIC and v.id not in seen and not argument:
                    seen.add(v.id)
                    base = (producers[v.id].path if v.id in producers else node.path) + ":context"
                    counts[base] = counts.get(base, 0) + 1
                    found.labels[v.id] = base if counts[base] == 1 else f"{base}{counts[base]}"
                    found.boundary.append(v)
            if node.op.region is not None:
                visit(node.op.region)
        for _, v in g.outputs:
            if found.level[v.id] == STATIC and v.id not in seen and g is graph:
                seen.add(v.id)
                found.labels[v.id] = f"{producers[v.id].path}:context"

    visit(graph)
