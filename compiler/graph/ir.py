"""The op graph: small typed records. A region (the body of a repeat) is a graph inside a node's op."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compiler.errors import Position
from compiler.graph.types import TensorType

if TYPE_CHECKING:
    from compiler.ops.contract import Op


@dataclass(frozen=True)
class Value:
    """One result of one node, by its number; numbers are unique in a graph and in the regions inside it."""

    id: int
    type: TensorType

    @property
    def axes(self) -> tuple[str, ...]:
        return self.type.axes

    def __str__(self) -> str:
        return f"%{self.id}"


@dataclass(frozen=True)
class Node:
    op: Op
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    path: str = ""  # the spec's names down to this node: "layer.attention"
    position: Position | None = None

    @property
    def result(self) -> Value:
        return self.results[0]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, named outputs, and values that people gave a name (for trace and pictures)."""

    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, Value], ...]
    names: Mapping[str, Value] = field(default_factory=dict)

    def output(self, name: str) -> Value:
        return dict(self.outputs)[name]

    def producers(self) -> dict[int, Node]:
        return {v.id: node for node in self.nodes for v in node.results}

    def leaves(self, kind: type) -> list[Node]:
        """Nodes of a leaf op (parameters, inputs, state), in order."""
        return [n for n in self.nodes if isinstance(n.op, kind)]

    def walk(self, times: Any = 1) -> Iterator[tuple[Node, Any]]:
        """Every node with how often it runs, regions included (the repeat node itself is not yielded)."""
        for node in self.nodes:
            body = node.op.region
            if body is None:
                yield node, times
            else:
                yield from body.walk(times * node.op.times)

    def with_nodes(self, nodes: list[Node] | tuple[Node, ...]) -> Graph:
        return replace(self, nodes=tuple(nodes))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, indent: str = "") -> Iterator[str]:
        """The printable form (``--print-after``): one node a line, regions indented."""
        for node in self.nodes:
            results = ", ".join(f"{v}: {v.type}" for v in node.results)
            operands = ", ".join(str(v) for v in node.operands)
            path = f"  # {node.path}" if node.path else ""
            yield f"{indent}{results} = {node.op.text()}({operands}){path}"
            if node.op.region is not None:
                yield from node.op.region.lines(indent + "    ")
        yield indent + "return " + ", ".join(f"{name}={v}" for name, v in self.outputs)
