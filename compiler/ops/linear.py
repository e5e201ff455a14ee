"""Matrix products: one op, by axis names. Accumulates in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import product
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Dot(Op):
    """Sum over ``contract`` of a times b; axes that both have and that are not contracted are batch axes.
    Result axes: a's that remain, in order, then b's new ones."""

    name: ClassVar[str] = "dot"
    contract: tuple[str, ...] = ()
    dtype: str = "float32"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        a, b = ins
        for axis in self.contract:
            if a.size(axis) != b.size(axis):
                raise TypeProblem(
                    "axis-mismatch", f"{axis} is {a.size(axis)} in the input and {b.size(axis)} in the weight"
                )
        for axis in set(a.axes) & set(b.axes):
            if a.size(axis) != b.size(axis):
                raise TypeProblem("axis-mismatch", f"{axis} is {a.size(axis)} on one side, {b.size(axis)} on the other")
        kept = [p for p in a.pairs if p[0] not in self.contract]
        new = [p for p in b.pairs if p[0] not in a.axes]
        return (TensorType.make(kept + new, self.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        sizes = dict(ins[0].pairs) | dict(ins[1].pairs)
        return moved(ins, outs, matrix=product(sizes.values()) * 2)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return len(partial) == 1

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        x, y = ins
        (g,) = grads
        if g is None:
            return None, None

        def one(mine: Value, other: Value) -> Value:
            gone = tuple(a for a in other.axes if a not in mine.axes)
            # a float32 cotangent of bfloat16 factors is narrowed: the product runs at their width
            narrow = b.cast(g, other.type.dtype)
            return b.arrange(b.dot(narrow, other, gone, mine.type.dtype), mine.axes)

        return one(x, y), one(y, x)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.SUM if axis in self.contract else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis in self.contract else Along.POINTWISE


@function
def dot(b: Builder, x: Value, y: Value, contract: Sequence[str] = (), dtype: str | None = None) -> Value:
    """Product by axis names, summed over ``contract``; dtype of the result: x's."""
    return b.one(Dot(tuple(contract), dtype or x.type.dtype), x, y)
