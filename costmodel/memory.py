"""A rough estimate of the bytes that a call's intermediate values need at once: liveness without fusion.

Every result takes its own bytes from the node that makes it to the last node that reads it. Views and values
of parameters and states take none (states are updated in place), plain attention holds its float32 scores
while it runs, an element-wise op writes over an operand that nothing reads later, and a repeat needs what one of its
trips needs. A compiler fuses element-wise ops (less) and
keeps copies (more); this is an opinion, not a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.graph.ir import Graph, Node, Value
from compiler.ops.attention import SCORE_FLOPS
from compiler.ops.control import Repeat
from compiler.ops.leaves import Leaf
from costmodel.origins import VIEWS, WRITES, Origin


@dataclass(frozen=True)
class Live:
    """Bytes that are held at once: a value and the node that made it, or (``value`` None) what a node needs only
    while it runs."""

    node: Node
    value: Value | None
    bytes: float


def activation_bytes(graph: Graph, env: Mapping[str, float], found: Mapping[int, Origin]) -> float:
    """Peak of live intermediate bytes over the graph's nodes in order."""
    return max((now for _, now in _steps(graph, env, found)), default=0.0)


def at_peak(graph: Graph, env: Mapping[str, float], found: Mapping[int, Origin]) -> list[Live]:
    """What is held at the peak. Of a repeat that runs then: what one of its trips holds, at that one's peak."""
    peak = activation_bytes(graph, env, found)
    held = next((dict(live) for live, now in _steps(graph, env, found) if now == peak), {})
    made: list[Live] = []
    for entry in held.values():
        inside = entry.value is None and isinstance(entry.node.op, Repeat)
        made += at_peak(entry.node.op.body, env, found) if inside else [entry]  # type: ignore[attr-defined]
    return made


def _steps(
    graph: Graph, env: Mapping[str, float], found: Mapping[int, Origin]
) -> Iterator[tuple[dict[int, Live], float]]:
    """Node by node: what is live while it runs, by the id of a value (-1: the node's own need), and the sum."""
    roots, last = _lifetimes(graph)
    ends: dict[int, list[int]] = {}
    for root, index in last.items():
        ends.setdefault(index, []).append(root)
    live: dict[int, Live] = {}
    now = 0.0
    for index, node in enumerate(graph.nodes):
        if node.op.name == "map":  # element by element: it may write over an operand that nothing reads later
            size = float(node.result.type.bytes.evaluate(env))
            over = next((r for r in ends.get(index, ()) if r in live and live[r].bytes >= size), None)
            now -= live.pop(over).bytes if over is not None else 0.0
        for v in node.results:
            if roots.get(v.id, v.id) == v.id and v.id not in found and not isinstance(node.op, Leaf):
                live[v.id] = Live(node, v, float(v.type.bytes.evaluate(env)))
                now += live[v.id].bytes
        own = _transient(node, env, found)
        yield {**live, -1: Live(node, None, own)} if own else live, now + own
        for root in ends.get(index, ()):
            now -= live.pop(root).bytes if root in live else 0.0


def _lifetimes(graph: Graph) -> tuple[dict[int, int], dict[int, int]]:
    """For each value the value whose bytes it shares, and for each of those the last node that reads it."""
    roots: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for v in node.operands:
            last[roots.get(v.id, v.id)] = index
        for v in node.results:
            shares = node.op.name in WRITES or (node.op.name in VIEWS and node.op.name != "cast")
            roots[v.id] = roots.get(node.operands[0].id, node.operands[0].id) if shares else v.id
            last.setdefault(roots[v.id], index)
    for _, v in graph.outputs:
        last[roots.get(v.id, v.id)] = len(graph.nodes)
    return roots, last


def _transient(node: Node, env: Mapping[str, float], found: Mapping[int, Origin]) -> float:
    """Bytes that a node needs only while it runs."""
    if isinstance(node.op, Repeat):
        return activation_bytes(node.op.body, env, found)
    if getattr(node.op, "implementation", None) in ("plain", "diagonal"):
        cost = node.op.cost([v.type for v in node.operands], [v.type for v in node.results])
        return float(cost.vector.evaluate(env)) / SCORE_FLOPS * 4
    return 0.0
