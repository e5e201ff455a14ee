"""Prune: nodes that no output needs are dropped, regions included."""

from __future__ import annotations

from compiler.graph.ir import Graph
from compiler.ops.control import Repeat


def prune(graph: Graph) -> Graph:
    """The graph with live nodes only. A repeat keeps its operands; inside it dead nodes go."""
    live = {v.id for _, v in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if isinstance(node.op, Repeat) or any(v.id in live for v in node.results) or node.op.name == "argument":
            if not isinstance(node.op, Repeat) or any(v.id in live for v in node.results):
                kept.append(_inside(node))
                live.update(v.id for v in node.operands)
    names = {n: v for n, v in graph.names.items() if any(v.id == r.id for k in kept for r in k.results)}
    return Graph(tuple(reversed(kept)), graph.outputs, names)


def _inside(node):  # type: ignore[no-untyped-def]
    import dataclasses

    if not isinstance(node.op, Repeat):
        return node
    return dataclasses.replace(node, op=dataclasses.replace(node.op, body=prune(node.op.body)))
