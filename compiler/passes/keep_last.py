"""Keep last: a prefill needs the logits of each row's last valid position only; it is taken as early as possible."""

from __future__ import annotations

from compiler.graph.axes import RECENT, STREAM
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.ops.contract import Along
from compiler.ops.latest import LatestCount
from compiler.ops.leaves import Input
from compiler.ops.state import LastValid


def keep_last(graph: Graph) -> Graph:
    """The streaming graph whose outputs hold one position a row."""
    return KeepLast(graph).run(graph)


class KeepLast(Replay):
    """``cuts``: values from which one position is taken, with its axis; ``tail``: values computed from those alone."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.cuts: dict[int, str] = {}
        self.valid: dict[str, Value] = {}  # by axis
        self.tail: set[int] = set()
        self.last: dict[int, Value] = {}
        producers = graph.producers()
        for name, value in graph.outputs:
            axis = next((a for a in (STREAM, RECENT) if a in value.axes), None)
            if _is_output(name) and axis is not None:
                self._walk_back(value, axis, producers)

    def _walk_back(self, value: Value, axis: str, producers: dict[int, Node]) -> None:
        """Up through the ops that treat each position alone and have one operand along the axis."""
        while True:
            node = producers[value.id]
            streams = {v.id: v for v in node.operands if axis in v.axes}
            if len(streams) != 1 or node.op.region is not None:
                break
            if node.op.along(axis, [v.type for v in node.operands]) is not Along.POINTWISE:
                break
            self.tail.add(value.id)
            (value,) = streams.values()
        self.cuts[value.id] = axis

    def operand(self, value: Value, node: Node) -> Value:
        in_tail = any(v.id in self.tail for v in node.results)
        return self.last[value.id] if in_tail and value.id in self.last else super().operand(value, node)

    def node(self, node: Node) -> None:
        super().node(node)
        if isinstance(node.op, Input) and node.op.label == "valid":
            self.valid |= dict.fromkeys((STREAM, RECENT), self.map[node.result.id])
        if isinstance(node.op, LatestCount):
            self.valid[RECENT] = self.map[node.results[1].id]
        for v in node.results:
            if v.id in self.cuts:
                axis = self.cuts[v.id]
                self.last[v.id] = self.b.one(LastValid(axis), self.map[v.id], self.valid[axis])

    def output(self, name: str, value: Value) -> Value:
        return self.last[value.id] if _is_output(name) and value.id in self.last else self.map[value.id]


def _is_output(name: str) -> bool:
    return not name.startswith(("state:", "pending:"))
