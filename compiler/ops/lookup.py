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


@function
def lookup(b: Builder, table: Value, ids: Value, axis: str = "vocab") -> Value:
    """Rows of a table by id."""
    return b.one(Lookup(axis), table, ids)
