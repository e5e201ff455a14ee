"""Dropout: what is left out at random in a training step is an input of that step, so that it is divided, accumulated
and computed again as the tokens are; in every other phase nothing is left out, and nothing asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.ops.attention import Attend
from compiler.ops.dropout import Kept
from compiler.ops.leaves import Input

INPUT = "kept:"  # in front of the axis and the share of what is left out: the name of that input


def label(op: Kept) -> str:
    return f"{INPUT}{op.axis}:{op.rate:g}"


def rates(graph: Graph) -> Mapping[str, float]:
    """The share that is left out, by the name of the input that a training step has for it."""
    return {label(n.op): n.op.rate for n, _ in graph.walk() if isinstance(n.op, Kept) and n.op.rate}


def dropped(graph: Graph, training: bool) -> Graph:
    """The graph of a training step, or of what is none; itself where nothing is ever left out."""
    if not rates(graph):
        return graph
    return (_Drawn() if training else _Whole(graph)).run(graph)


class _Drawn(Replay):
    """Which positions count becomes an input, one for all that leave out as large a share of an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Value] = {}

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        op = node.op
        if not isinstance(op, Kept) or not op.rate:
            return None
        b: Builder = self.b
        while b.parent is not None:
            b = b.parent
        name = label(op)
        if name not in self.inputs:
            self.inputs[name] = b.append(Input(name), (), (node.result.type,))[0]
        return (self.b.use(self.inputs[name]),)


class _Whole(Replay):
    """All positions count: attention that asks does not."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.kept = {n.result.id for n, _ in graph.walk() if isinstance(n.op, Kept)}

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        op = node.op
        if not isinstance(op, Attend) or not op.segments:
            return None
        given = op.given(node.operands[3:])
        if given["key_segments"].id not in self.kept:
            return None
        rest = [v for name, v in op.given(ins[3:]).items() if not name.endswith("_segments")]
        return self.b.apply(dataclasses.replace(op, segments=False), *ins[:3], *rest)
