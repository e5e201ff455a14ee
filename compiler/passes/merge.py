"""Merge: what two ops of one body both compute is computed once.

XLA merges equal products, so a count of the graph that took them twice would be above what runs. Plain attention and
its way back both multiply queries by keys; where both stand in one body on the same operands (a layer that is computed
again on the way back), the second is marked as sharing the scores. Blocked attention has them in loops of its own.
So has linear attention of several chunks; of a single one all that the forward op multiplies is shared. Nor does XLA
compute what nobody asks for: fixed decays (RetNet's) have no cotangent.
"""

from __future__ import annotations

import dataclasses

from compiler.graph.ir import Graph, Node
from compiler.ops.attention import Attend, AttendGradient
from compiler.ops.control import Repeat
from compiler.ops.linear_attend import LinearAttend, LinearAttendGradient


def merge(graph: Graph) -> Graph:
    """The graph with every ``attend_gradient`` and ``linear_attend_gradient`` marked as it is."""
    work = {_scores(n) for n in graph.nodes if isinstance(n.op, Attend)} - {None}
    work |= {_operands(n) for n in graph.nodes if isinstance(n.op, LinearAttend)}
    read = {v.id for n in graph.nodes for v in n.operands} | {v.id for _, v in graph.outputs}
    return graph.with_nodes([_marked(n, work, read) for n in graph.nodes])


def _marked(node: Node, work: set[object], read: set[int]) -> Node:
    if isinstance(node.op, Repeat):
        return dataclasses.replace(node, op=dataclasses.replace(node.op, body=merge(node.op.body)))
    if isinstance(node.op, AttendGradient):
        return dataclasses.replace(node, op=dataclasses.replace(node.op, shared=_scores(node) in work))
    if isinstance(node.op, LinearAttendGradient):
        made = [n for n in node.op.given if n != "valid"]
        fixed = any(n == "log_decay" and v.id not in read for n, v in zip(made, node.results, strict=True))
        op = dataclasses.replace(node.op, shared=_operands(node) in work, fixed=fixed)
        return dataclasses.replace(node, op=op)
    return node


def _operands(node: Node) -> object:
    """What linear attention and its way back have in common."""
    op = node.op
    assert isinstance(op, (LinearAttend, LinearAttendGradient))
    return (op.given, op.over, op.axis, op.ends, *(v.id for v in node.operands[: len(op.given)]))


def _scores(node: Node) -> object:
    """What two nodes have in common that multiply the same queries by the same keys; None where tiles are."""
    q, k, op = *node.operands[:2], node.op
    assert isinstance(op, (Attend, AttendGradient))
    if op.implementation == "blocked":
        return None
    return q.id, k.id, op.queries, op.keys, op.heads, op.kv_heads, op.dim
