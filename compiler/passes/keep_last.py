"""Keep last: a prefill needs the logits of each row's last valid position only; it is taken as early as possible."""

from __future__ import annotations

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.ops.contract import Along
from compiler.ops.leaves import Input
from compiler.ops.state import LastValid
from compiler.passes.streaming import STREAM


def keep_last(graph: Graph) -> Graph:
    """The streaming graph whose outputs hold one position a row."""
    return KeepLast(graph).run(graph)


class KeepLast(Replay):
    """``cuts``: values from which one position is taken; ``tail``: values computed from those alone."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.cuts: set[int] = set()
        self.tail: set[int] = set()
        self.last: dict[int, Value] = {}
        producers = graph.producers()
        for name, value in graph.outputs:
            if _is_output(name) and STREAM in value.axes:
                self._walk_back(value, producers)

    def _walk_back(self, value: Value, producers: dict[int, Node]) -> None:
        """Up through the ops that treat each position alone and have one operand along the stream."""
        while True:
            node = producers[value.id]
            streams = {v.id: v for v in node.operands if STREAM in v.axes}
            if len(streams) != 1 or node.op.region is not None:
                break
            if node.op.along(STREAM, [v.type for v in node.operands]) is not Along.POINTWISE:
                break
            self.tail.add(value.id)
            (value,) = streams.values()
        self.cuts.add(value.id)

    def operand(self, value: Value, node: Node) -> Value:
        in_tail = any(v.id in self.tail for v in node.results)
        return self.last[value.id] if in_tail and value.id in self.last else super().operand(value, node)

    def node(self, node: Node) -> None:
        super().node(node)
        if isinstance(node.op, Input) and node.op.label == "valid":
            self.valid = self.map[node.result.id]
        for v in node.results:
            if v.id in self.cuts:
                self.last[v.id] = self.b.one(LastValid(STREAM), self.map[v.id], self.valid)

    def output(self, name: str, value: Value) -> Value:
        return self.last[value.id] if _is_output(name) and value.id in self.last else self.map[value.id]


def _is_output(name: str) -> bool:
    return not name.startswith(("state:", "pending:"))
