"""Write out: ops that a program defines become their programs, where a phase begins: no later pass meets one."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.ops.defined import Defined


class _WriteOut(Replay):
    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        return node.op.program(self.b, *ins) if isinstance(node.op, Defined) else None


def write_out(graph: Graph) -> Graph:
    """The graph without defined ops."""
    found = any(isinstance(node.op, Defined) for node, _ in graph.walk())
    return _WriteOut().run(graph) if found else graph
