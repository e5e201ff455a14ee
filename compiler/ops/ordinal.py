"""Which of a kind a position is: how many positions before it in the row hold the same token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op
from compiler.ops.seats import ToSeats

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Ordinal(Op):
    """Results, int32 as the ids [batch, seq]: at each position that holds ``token``, how many of the row did before it,
    ``other`` elsewhere; and how many did up to the position. Operands: ids, and how many the row had before this call
    [batch]."""

    name: ClassVar[str] = "ordinal"
    differentiable: ClassVar[bool] = False
    token: int = 0
    other: int = -1
    axis: str = "seq"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        ids = ins[0]
        ids.size(self.axis)
        if not ids.dtype.startswith("int"):
            raise TypeProblem("dtype-mismatch", f"ids must be integers, found {ids.dtype}")
        return ids, ids

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements * 4)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.STATEFUL if axis == self.axis else Along.POINTWISE

    def stream(self, s: Any, ins: Sequence[Value]) -> tuple[Value, ...]:
        before = s.state("count", "recurrent", ins[0].type.drop(self.axis))
        made = s.b.apply(self, ins[0], before)
        s.write("count", before, made[1], "keep_last")
        return made


@function
def fill(b: Builder, x: Value, features: Value, ids: Value, token: int) -> Value:
    """x [batch, seq, width], and where ids [batch, seq] hold ``token`` the features [batch, places, width] in their
    place, one after the other: the n-th such position of a row has the n-th feature, 0 where there is none."""
    if len(features.axes) != 3 or features.axes[0] != "batch" or features.axes[-1] != x.axes[-1]:
        found = f"fill takes features [batch places {x.axes[-1]}], found [{' '.join(features.axes)}]"
        raise TypeProblem("axis-mismatch", found, suggestion="merge the axes of the places into one")
    axis, along = features.axes[1], x.axes[1]
    number = b.apply(Ordinal(int(token), -1, along), ids)[0]
    there = b.greater(number, b.constant(-1, "int32"))
    own = b.one(ToSeats(axis, (along,)), b.cast(features, x.type.dtype), b.max(number, b.constant(0, "int32")))
    return b.arrange(b.select(there, own, x), x.axes)
