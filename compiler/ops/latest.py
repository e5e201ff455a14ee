"""The last positions of a sequence, along an axis of their own: what a model computes for these alone.

Where a sequence comes in pieces, those positions do as well. A *full pass* (a prefill) makes all of them anew, from the
last ``keep`` positions at hand; a call of few tokens (a decode) adds its own positions to those before, until there are
``count``. Perceiver AR decodes so (arXiv:2202.07765, appendix E.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.axes import RECENT, STREAM
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op
from compiler.ops.shape import Pad, Rename

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@op
@dataclass(frozen=True)
class Latest(Op):
    """x [batch, seq, …] -> [batch, recent=count, …], its last ``count`` positions. ``keep``: how many of them a full
    pass over a cache makes."""

    name: ClassVar[str] = "latest"
    count: Size = Size.of(1)
    keep: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0].resize(STREAM, self.count).rename({STREAM: RECENT}),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(outs, outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return (None,)
        before = ins[0].type.size(STREAM) - self.count
        return (b.one(Pad(STREAM, before, Size.of(0)), b.one(Rename((RECENT,), (STREAM,)), grads[0])),)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in (STREAM, RECENT) else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.STATEFUL if axis == STREAM else Along.POINTWISE

    def stream(self, s: Any, ins: Sequence[Value]) -> tuple[Value, ...]:
        x = ins[0]
        tail = s.state("tail", "tail", x.type.resize(STREAM, self.keep).rename({STREAM: "taps"}))
        if s.full:
            made = s.b.one(LatestHeld(self.keep), x, tail, s.start, s.valid)
        else:
            made = s.b.one(Rename((STREAM,), (RECENT,)), x)
        s.write("tail", tail, x, "keep_tail", made)
        return (made,)


@op
@dataclass(frozen=True)
class LatestHeld(Op):
    """The last ``keep`` positions of what was there before and this call's, [batch, recent=keep, …], the first one
    first; of a row with fewer all of them, and what follows is of no account. Operands: x [batch, seq, …], the tail
    before it [batch, taps, …], start, valid [batch]."""

    name: ClassVar[str] = "latest_held"
    differentiable: ClassVar[bool] = False
    keep: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0].resize(STREAM, self.keep).rename({STREAM: RECENT}),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(outs, outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in (STREAM, RECENT, "taps") else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == STREAM else Along.POINTWISE


@op
@dataclass(frozen=True)
class LatestCount(Op):
    """Of each row [batch], after a full pass: the position of the first that was made, and how many were; none for a
    row without new positions. Operands: start, valid."""

    name: ClassVar[str] = "latest_count"
    differentiable: ClassVar[bool] = False
    keep: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return ins[0], ins[0]

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements * 5)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)


def latest_of(graph: Any) -> Latest | None:
    """The op that says which positions of a model are the last ones; all of a model say the same."""
    return next((node.op for node, _ in graph.walk() if isinstance(node.op, Latest)), None)


@function
def latest(b: Builder, x: Value, count: int, keep: int | None = None) -> Value:
    """The last ``count`` positions of x [batch, seq, …], along an axis ``recent``. ``keep``: how many of them are made
    anew when a cache of them is full; ``count`` unless said."""
    made: Value = b.one(Latest(Size.of(count), Size.of(count if keep is None else keep)), x)
    return made
