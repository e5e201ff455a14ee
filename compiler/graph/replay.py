"""The base of passes that rewrite: nodes are replayed into a new graph, regions included, one hook to override."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.ops.control import Repeat
from compiler.ops.leaves import Argument, Leaf


class Replay:
    """Override ``rewrite`` to change nodes; return None to keep a node as it is (types are inferred anew)."""

    def __init__(self, builder: Builder | None = None) -> None:
        self.b = builder or Builder()
        self.map: dict[int, Value] = {}

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        return None

    def captured_argument(self, old: int, value: Value) -> Value:
        """What stands in a region for an argument (by its old id) that captures ``value``."""
        return value

    def stacked_argument(self, region: Region, old: int, value: Value) -> Value:
        """The same for an argument that is a trip's slice of ``value``."""
        return region.stacked(value)

    def region_opened(self, region: Region) -> None:
        """Called with the new region before its nodes are replayed."""

    def region_closing(self, region: Region) -> list[tuple[str, Value]]:
        """Further values of the region to stack."""
        return []

    def region_outputs(self, region: Region, op: Repeat, outs: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
        """The region's outputs (carried, stacked, states) as they leave it."""
        return outs

    def region_closed(self, region: Region, extra: list[Value], states: list[Value]) -> None:
        """Called after a region is closed with the further stacks and the new states' stacks."""

    def run(self, graph: Graph) -> Graph:
        for node in graph.nodes:
            self.node(node)
        for name, value in graph.names.items():
            if value.id in self.map:
                self.b.names[name] = self.map[value.id]
        return self.b.finish([(n, self.output(n, v)) for n, v in self.outputs(graph)])

    def outputs(self, graph: Graph) -> list[tuple[str, Value]]:
        """Which values of the old graph are the new one's outputs."""
        return list(graph.outputs)

    def operand(self, value: Value, node: Node) -> Value:
        """The new value that stands for an operand of ``node``."""
        return self.map[value.id]

    def output(self, name: str, value: Value) -> Value:
        """The new value of an output."""
        return self.map[value.id]

    def node(self, node: Node) -> None:
        saved = self.b.path, self.b.position
        self.b.path, self.b.position = node.path, node.position
        ins = [self.operand(v, node) for v in node.operands]
        results = self.rewrite(node, ins)
        if results is None:
            results = self.keep(node, ins)
        self.map.update((old.id, new) for old, new in zip(node.results, results, strict=False))
        self.b.path, self.b.position = saved

    def keep(self, node: Node, ins: Sequence[Value]) -> Sequence[Value]:
        if isinstance(node.op, Leaf):
            return self.b.append(node.op, (), tuple(v.type for v in node.results))
        if isinstance(node.op, Repeat):
            return self.repeat(node.op, ins)
        return self.b.apply(node.op, *ins)

    def repeat(self, op: Repeat, ins: Sequence[Value]) -> list[Value]:
        """Replays a region; state groups of the old one are kept."""
        outer, region = self.b, Region(self.b, op.trips, op.axis, op.reverse, op.parallel, op.shards)
        self.b = region
        carried, captured, stacked, states = op.parts(list(zip(op.arguments, ins, strict=True)))
        for old, value in carried:
            self.map[old] = region.carry(value)
        for old, value in captured:
            self.map[old] = self.captured_argument(old, value)  # captured anew on first use
        for old, value in stacked:
            self.map[old] = self.stacked_argument(region, old, value)
        for old, value in states:
            self.map[old] = region.state(value)
        self.region_opened(region)
        known = set(op.arguments)
        for node in op.body.nodes:
            if not (isinstance(node.op, Argument) and node.result.id in known):
                self.node(node)
        for name, value in op.body.names.items():
            if value.id in self.map:
                region.names[name] = self.map[value.id]
        outs = self.region_outputs(region, op, [(n, self.map[v.id]) for n, v in op.body.outputs])
        ys = outs[op.carried : len(outs) - op.states]
        for (old, _), (_, new) in zip(states, outs[len(outs) - op.states :], strict=True):
            region.set_state(self.map[old], new)
        extra = self.region_closing(region)
        self.b = outer
        results, stacks, new_states = region.close([v for _, v in outs[: op.carried]], [*ys, *extra])
        self.region_closed(region, stacks[len(ys) :], new_states[op.states :])
        return [*results, *stacks[: len(ys)], *new_states[: op.states]]
