"""The loss: entries picked by number along an axis, and the cross-entropy as a short op program over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@op
@dataclass(frozen=True)
class Pick(Op):
    """x [.., axis, ..] at each position's own id [..]: the axis goes away. Ids outside the axis give 0. With
    ``shard`` (a mesh axis over which the axis is split) each shard answers for its own entries, 0 elsewhere."""

    name: ClassVar[str] = "pick"
    axis: str = "vocab"
    shard: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, ids = ins
        x.size(self.axis)
        if not ids.dtype.startswith("int"):
            raise TypeProblem("dtype-mismatch", f"ids must be integers, found {ids.dtype}")
        if dict(ids.pairs) != dict(x.drop(self.axis).pairs):
            raise TypeProblem("axis-mismatch", f"ids {ids} do not say one entry of {self.axis} for each of {x}")
        return (x.drop(self.axis),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=outs[0].bytes + ins[1].bytes, written=outs[0].bytes)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        x, ids = ins
        laid = b.one(Place(self.axis, x.type.size(self.axis), self.shard), grads[0], ids)
        return b.arrange(laid, x.axes), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.LOOKUP if axis == self.axis else Role.PARALLEL


@op
@dataclass(frozen=True)
class Place(Op):
    """Pick's way back: g [..] laid out over a new last ``axis`` of ``size``, at each position's own id, else 0."""

    name: ClassVar[str] = "place"
    axis: str = "vocab"
    size: Size = Size.of(1)
    shard: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([*ins[0].pairs, (self.axis, self.size)], ins[0].dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=outs[0].elements)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        return b.one(Pick(self.axis, self.shard), grads[0], ins[1]), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.LOOKUP if axis == self.axis else Role.PARALLEL


def cross_entropy(b: Builder, logits: Value, targets: Value, axis: str = "vocab") -> Value:
    """-log softmax(logits)[target] at each position, float32. Every step keeps its form when ``axis`` is sharded."""
    logits = b.cast(logits, "float32")
    top = b.stop_gradient(b.reduce(logits, "max", (axis,)))
    shifted = b.sub(logits, top)
    total = b.log(b.reduce(b.exp(shifted), "sum", (axis,)))
    return b.sub(total, b.one(Pick(axis), shifted, targets))


def masked_mean(b: Builder, x: Value, mask: Value) -> Value:
    """The mean of x where the mask (0 or 1, float32) holds; 0 where it holds nowhere."""
    total = b.reduce(b.mul(x, mask), "sum", x.axes)
    count = b.reduce(b.arrange(mask, x.axes), "sum", x.axes)
    return b.div(total, b.max(count, 1.0))
