"""Lengthen: distances within a sequence that comes in pieces are as many as the cache holds, not as one call has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.graph.sizes import CAPACITY
from compiler.ops.leaves import Distances


class _Lengthen(Replay):
    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        if not isinstance(node.op, Distances):
            return None
        longer = node.op.size.substitute({"seq": CAPACITY})
        return self.b.apply(dataclasses.replace(node.op, size=longer))


def lengthen(graph: Graph) -> Graph:
    """The graph itself where it has no distances."""
    if not any(isinstance(node.op, Distances) for node, _ in graph.walk()):
        return graph
    return _Lengthen().run(graph)
