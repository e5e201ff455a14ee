"""Sums: which values are terms of one sum. Partial terms are added first and completed once, so that a term which is
partial over a mesh axis costs nothing where another one is."""

from __future__ import annotations

from collections import Counter

from compiler.graph.ir import Graph, Node
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Cast, Map
from compiler.ops.shape import Arrange, Rename


def sums(graph: Graph) -> dict[int, int]:
    """Value id -> the id of the sum of which it is a term; sums of one term are left out."""
    found: dict[int, int] = {}
    _collect(graph, found)
    return found


def uses(graph: Graph) -> Counter[int]:
    """How often each value is read, regions included."""
    found = Counter(v.id for node in graph.nodes for v in node.operands) + Counter(v.id for _, v in graph.outputs)
    for node in graph.nodes:
        if node.op.region is not None:
            found += uses(node.op.region)
    return found


def _collect(graph: Graph, found: dict[int, int]) -> None:
    readers = Counter(v.id for node in graph.nodes for v in node.operands) + Counter(v.id for _, v in graph.outputs)
    for node in reversed(graph.nodes):
        if isinstance(node.op, Repeat):
            _collect(node.op.body, found)
            continue
        if not _passes(node):
            continue
        (result,) = node.results
        root = found.get(result.id)
        if isinstance(node.op, Map) and len(node.operands) == 2:
            root = result.id if root is None else root
        if root is not None:
            found.update((v.id, root) for v in node.operands if readers[v.id] == 1)


def _passes(node: Node) -> bool:
    """Whether the op adds terms up, or only changes their form."""
    if isinstance(node.op, Map):
        return node.op.linear(frozenset(range(len(node.operands))), [v.type for v in node.operands])
    if not isinstance(node.op, (Cast, Arrange, Rename)):
        return False
    return node.op.linear(frozenset({0}), [node.operands[0].type])
