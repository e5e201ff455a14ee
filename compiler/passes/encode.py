"""Encode: the part of a graph that does not depend on the streaming input, computed once a request."""

from __future__ import annotations

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.ops.control import Repeat
from compiler.ops.leaves import Argument
from compiler.passes.dependence import Dependence


class Encode(Replay):
    """Keeps what depends on the other inputs alone, and hands out what the streaming part uses of it."""

    def __init__(self, flows: Dependence) -> None:
        super().__init__()
        self.flows = flows

    def run(self, graph: Graph) -> Graph:
        outputs: list[tuple[str, Value]] = []
        for node in graph.nodes:
            if self.flows.is_static(node) or self.flows.is_free(node):
                self.node(node)
            elif isinstance(node.op, Repeat):
                outputs += self.partial(node)
        outputs += [
            (f"state:{self.flows.label(v)}", self.map[v.id]) for v in self.flows.boundary if not self.flows.inside(v)
        ]
        return self.b.finish(outputs)

    def partial(self, node: Node) -> list[tuple[str, Value]]:
        """The static part of a streaming repeat, its used values stacked over the layers."""
        op = node.op
        assert isinstance(op, Repeat)
        if not self._used_in(op.body):
            return []
        outer, region = self.b, Region(self.b, op.trips, op.axis)
        self.b = region
        _, captured, stacked, _ = op.parts(list(zip(op.arguments, node.operands, strict=True)))
        for old, v in captured:
            if v.id in self.map:
                self.map[old] = self.map[v.id]
        for old, v in stacked:
            if v.id in self.map:
                self.map[old] = region.stacked(self.map[v.id])
        outputs: list[tuple[str, Value]] = []
        for inner in op.body.nodes:
            if self.flows.is_static(inner) or self.flows.is_free(inner):
                if not isinstance(inner.op, Argument) and all(v.id in self.map for v in inner.operands):
                    self.node(inner)
            elif isinstance(inner.op, Repeat):
                outputs += self.partial(inner)
        self.b = outer
        used = [v for v in self.flows.boundary if self.flows.region_of(v) is op.body]
        outputs += [(f"state:{self.flows.label(v)}", self.map[v.id]) for v in used]
        _, stacks, _ = region.close([], outputs)
        return [(name, s) for (name, _), s in zip(outputs, stacks, strict=True)]

    def _used_in(self, body: Graph) -> bool:
        """Whether a body, or a repeat in it, has static values that the streaming part uses."""
        if any(self.flows.region_of(v) is body for v in self.flows.boundary):
            return True
        return any(n.op.region is not None and self._used_in(n.op.region) for n in body.nodes)
