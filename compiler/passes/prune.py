"""Prune: nodes that no output needs are dropped, regions included."""

from __future__ import annotations

import dataclasses

from compiler.graph.ir import Graph, Node
from compiler.ops.control import Repeat
from compiler.ops.leaves import Argument


def prune(graph: Graph) -> Graph:
    """The graph with live nodes only. A repeat loses the stacked outputs that nobody reads, what it carries for nothing
    but itself, and the captured values and stacks that its body does not read; the states it writes stay."""
    live = {v.id for _, v in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not any(v.id in live for v in node.results) and not isinstance(node.op, Argument):
            continue
        if isinstance(node.op, Repeat):
            node = _repeat(node, node.op, live)
        kept.append(node)
        live.update(v.id for v in node.operands)
    made = {v.id for node in kept for v in node.results}
    names = {name: v for name, v in graph.names.items() if v.id in made}
    return Graph(tuple(reversed(kept)), graph.outputs, names)


def _repeat(node: Node, op: Repeat, live: set[int]) -> Node:
    first, last = op.carried, len(op.body.outputs) - op.states
    keep = [i for i, v in enumerate(node.results) if i >= last or v.id in live]
    while True:  # what is carried stays if something that stays reads it
        body = prune(dataclasses.replace(op.body, outputs=tuple(op.body.outputs[i] for i in keep)))
        read = {v.id for n in body.nodes for v in n.operands} | {v.id for _, v in body.outputs}
        fresh = [i for i in range(first) if i not in keep and op.arguments[i] in read]
        if not fresh:
            break
        keep = sorted([*keep, *fresh])
    carried, captured, stacked, states = op.parts(list(zip(op.arguments, node.operands, strict=True)))
    carried = [pair for i, pair in enumerate(carried) if i in keep]
    captured, stacked = ([(a, v) for a, v in group if a in read] for group in (captured, stacked))
    pairs = [*carried, *captured, *stacked, *states]
    arguments = tuple(a for a, _ in pairs)
    nodes = tuple(n for n in body.nodes if not isinstance(n.op, Argument) or n.result.id in arguments)
    names = {name: v for name, v in body.names.items() if any(v.id == r.id for n in nodes for r in n.results)}
    slimmer = dataclasses.replace(
        op,
        body=Graph(nodes, body.outputs, names),
        carried=len(carried),
        captured=len(captured),
        stacked=len(stacked),
        arguments=arguments,
    )
    return dataclasses.replace(
        node,
        op=slimmer,
        operands=tuple(v for _, v in pairs),
        results=tuple(node.results[i] for i in keep),
    )
