"""Pack: parameters that are held in few bits become their values and scales, and are unpacked where they are read.

A product reads its own layer's weight packed, inside the loop over layers; a lookup unpacks the rows that it takes.
What else reads a weight gets it unpacked. A training step has its parameters as they are and is not packed.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.ops.control import Repeat
from compiler.ops.leaves import Parameter
from compiler.ops.linear import Dot
from compiler.ops.lookup import Lookup
from compiler.ops.packed import SCALE, DotPacked, Packed, Unpack


def pack(graph: Graph) -> Graph:
    """The graph with packed parameters as they are held."""
    found = any(n.op.packed is not None for n in graph.leaves(Parameter))  # type: ignore[attr-defined]
    return _Pack().run(graph) if found else graph


def held(model: Model) -> dict[str, TensorType]:
    """What a model's parameters are held as when it runs: types by label."""
    found: dict[str, TensorType] = {}
    for label, (op, t) in model.parameters.items():
        if op.packed is None:
            found[label] = t
        else:
            found[label], found[label + SCALE] = op.packed.held(t)
    return found


class _Pack(Replay):
    """``pairs``: of a value of the old graph that is packed, its values and scales; ``scales``: by the new values."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[int, tuple[Value, Value, Packed, str]] = {}
        self.scales: dict[int, tuple[Value, Packed, str]] = {}
        self.unpacked: dict[tuple[Builder, int], Value] = {}

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        op = node.op
        if isinstance(op, Parameter) and op.packed is not None:
            values, scales = op.packed.held(node.result.type)
            made = self.b.append(op, (), (values,))[0]
            other = Parameter(op.path + SCALE, op.label + SCALE, op.inputs, "ones", False, op.stack, op.used)
            self._pair(node.result, made, self.b.append(other, (), (scales,))[0], op.packed, node.result.type.dtype)
            return [made]
        return None

    def _pair(self, old: Value, values: Value, scales: Value, how: Packed, dtype: str) -> None:
        self.pairs[old.id] = values, scales, how, dtype
        self.scales[values.id] = scales, how, dtype

    def operand(self, value: Value, node: Node) -> Value:
        if value.id not in self.pairs:
            return super().operand(value, node)
        values, scales, how, dtype = self.pairs[value.id]
        if isinstance(node.op, Repeat):
            return values
        key = self.b, value.id
        if key not in self.unpacked:
            self.unpacked[key] = self.b.one(Unpack(how.axis, dtype), values, scales)
        return self.unpacked[key]

    def node(self, node: Node) -> None:
        made = self._read(node)
        if made is None:
            super().node(node)
        else:
            self.map[node.result.id] = made

    def _read(self, node: Node) -> Value | None:
        """A product or a lookup of a packed weight, as one that reads it packed; None for other nodes."""
        op, b = node.op, self.b
        at = {Dot: 1, Lookup: 0}.get(type(op))
        if at is None or node.operands[at].id not in self.pairs or node.operands[1 - at].id in self.pairs:
            return None
        values, scales, how, dtype = self.pairs[node.operands[at].id]
        other = self.map[node.operands[1 - at].id]
        saved, (b.path, b.position) = (b.path, b.position), (node.path, node.position)
        try:
            if isinstance(op, Dot):
                return b.one(DotPacked(op.contract, op.dtype, how.axis), other, values, scales)
            assert isinstance(op, Lookup)
            if op.axis == how.axis:
                return None
            rows = b.cast(b.one(op, values, other), dtype)  # in floats: of a divided table they are sums over shards
            return b.one(Unpack(how.axis, dtype), rows, b.one(op, scales, other))
        finally:
            b.path, b.position = saved

    def captured_argument(self, old: int, value: Value) -> Value:
        if value.id in self.scales:
            scales, how, dtype = self.scales[value.id]
            self.pairs[old] = value, scales, how, dtype
        return value

    def stacked_argument(self, region: Region, old: int, value: Value) -> Value:
        made = region.stacked(value)
        if value.id in self.scales:
            scales, how, dtype = self.scales[value.id]
            own = region.stacked(scales)
            self.pairs[old] = made, own, how, dtype
            self.scales[made.id] = own, how, dtype
        return made


__all__ = ["held", "pack"]
