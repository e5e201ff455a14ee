"""Where a value's bytes come from: a parameter, a state, or neither. Views, casts and slices keep it.

A matrix product whose weight is cast on the way reads the weight as it is stored, so a price needs the leaf
behind an operand, also through the arguments of a repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.types import TensorType
from compiler.ops.control import Repeat
from compiler.ops.leaves import Parameter, State

VIEWS = frozenset({"cast", "rename", "split", "merge", "arrange", "stop_gradient", "unpack"})
WRITES = frozenset({"append", "keep_last", "keep_tail"})  # in place: the result is the state


@dataclass(frozen=True)
class Origin:
    """The leaf behind a value, and the dtype that it is stored in."""

    kind: str  # "parameter" | "state"
    label: str
    dtype: str


@dataclass(frozen=True)
class Stored:
    """Dtypes that replace the graph's own for what is stored; None leaves the graph's."""

    weights: str | None = None
    cache: str | None = None

    def of(self, node: Node) -> str:
        """The dtype that a leaf is stored in: weights of two axes or more, and caches of keys and values."""
        t, op = node.result.type, node.op
        if isinstance(op, Parameter) and self.weights and _matrix(op, t):
            return self.weights
        if isinstance(op, State) and self.cache and op.kind in ("cache", "ring"):
            return self.cache
        return t.dtype


AS_WRITTEN = Stored()


def _matrix(op: Parameter, t: TensorType) -> bool:
    return len(t.axes) - len(op.stack) > 1 and t.dtype.startswith(("float", "bfloat"))


def origins(graph: Graph, stored: Stored) -> dict[int, Origin]:
    """Origins by value id, for the graph and the regions inside it."""
    found: dict[int, Origin] = {}
    _walk(graph, stored, found)
    return found


def _walk(graph: Graph, stored: Stored, found: dict[int, Origin]) -> None:
    for node in graph.nodes:
        op = node.op
        if isinstance(op, (Parameter, State)):
            kind = "parameter" if isinstance(op, Parameter) else "state"
            found[node.result.id] = Origin(kind, op.label, stored.of(node))
        elif isinstance(op, Repeat):
            _into(op, node, found)
            _walk(op.body, stored, found)
            outs = dict(zip((v.id for v in node.results), (v for _, v in op.body.outputs), strict=True))
            for result in node.results[len(node.results) - op.states :] if op.states else ():
                if outs[result.id].id in found:
                    found[result.id] = found[outs[result.id].id]
        elif (op.name in VIEWS or op.name in WRITES) and node.operands[0].id in found:
            found[node.result.id] = found[node.operands[0].id]


def _into(op: Repeat, node: Node, found: dict[int, Origin]) -> None:
    """Origins of a region's arguments; a carried value is another one on each trip, so it has none."""
    for i, (argument, operand) in enumerate(zip(op.arguments, node.operands, strict=True)):
        if i >= op.carried and operand.id in found:
            found[argument] = found[operand.id]


def stored_type(value: Value, found: Mapping[int, Origin]) -> TensorType:
    """The type that a value is read in: of its leaf's dtype where it has one."""
    origin = found.get(value.id)
    return value.type.with_dtype(origin.dtype) if origin else value.type
