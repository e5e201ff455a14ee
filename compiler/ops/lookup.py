"""Rows of a table by integer ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.graph.types import DTYPE_BITS, TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, function, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Lookup(Op):
    """table[ids]: the table's ``axis`` is replaced by the ids' axes. Ids outside the table give row 0. With
    ``shard`` (a mesh axis over which the rows are split) each shard gives its own rows and zeros elsewhere."""

    name: ClassVar[str] = "lookup"
    axis: str = "vocab"
    shard: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        table, ids = ins
        table.size(self.axis)
        if not ids.dtype.startswith("int"):
            raise TypeProblem("dtype-mismatch", f"ids must be integers, found {ids.dtype}")
        return (TensorType.make(ids.pairs + table.drop(self.axis).pairs, table.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=outs[0].bytes + ins[1].bytes, written=outs[0].bytes)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        if grads[0] is None:
            return None, None
        table, ids = ins
        g = b.one(ScatterAdd(self.axis, table.type.size(self.axis), self.shard), ids, b.cast(grads[0], "float32"))
        return b.cast(b.arrange(g, table.axes), table.type.dtype), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.LOOKUP if axis == self.axis else Role.PARALLEL


@op
@dataclass(frozen=True)
class ScatterAdd(Op):
    """The lookup's way back: rows of g added up by id, in a new ``axis`` of ``size``."""

    name: ClassVar[str] = "scatter_add"
    axis: str = "vocab"
    size: Size = Size.of(1)
    shard: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        ids, g = ins
        return (TensorType.make([(self.axis, self.size), *g.drop(*ids.axes).pairs], g.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        rows = ins[1].elements
        width = DTYPE_BITS[ins[1].dtype] // 8
        return Cost(vector=rows, read=ins[0].bytes + rows * (2 * width), written=outs[0].bytes)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {1}

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        if grads[0] is None:
            return None, None
        return None, b.arrange(b.one(Lookup(self.axis, self.shard), grads[0], ins[0]), ins[1].axes)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis in ins[0].axes:
            return Role.SUM
        return Role.LOOKUP if axis == self.axis else Role.PARALLEL


@op
@dataclass(frozen=True)
class Put(Op):
    """table with the entry ``id`` (a number) of ``axis`` replaced by a value. Updated in place where the table is
    carried by a loop."""

    name: ClassVar[str] = "put"
    axis: str = "held"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        table, value, index = ins
        if table.drop(self.axis) != value:
            raise TypeProblem("axis-mismatch", f"an entry of {table} along {self.axis} is no {value}")
        if index.axes or not index.dtype.startswith("int"):
            raise TypeProblem("dtype-mismatch", f"one number says which entry, found {index}")
        return (table,)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=ins[1].bytes + ins[2].bytes, written=ins[1].bytes)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0, 1}

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        (g,) = grads
        if g is None:
            return None, None, None
        nothing = b.expand(b.constant(0.0, ins[1].type.dtype), ins[1].type.pairs)
        return b.one(self, g, nothing, ins[2]), b.one(Lookup(self.axis), g, ins[2]), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL


@function
def lookup(b: Builder, table: Value, ids: Value, axis: str = "vocab") -> Value:
    """Rows of a table by id."""
    return b.one(Lookup(axis), table, ids)
