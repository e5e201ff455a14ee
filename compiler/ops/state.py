"""Writing state: what a call leaves for the next one. ``valid`` [batch] says how many positions of each row count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import ONE
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@dataclass(frozen=True)
class _Write(Op):
    differentiable: ClassVar[bool] = False
    axis: str = "seq"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0],)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        """In place: reads the new entries, writes as many."""
        return Cost(read=ins[1].bytes, written=ins[1].bytes)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in (self.axis, "slots", "taps") else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@op
@dataclass(frozen=True)
class Append(_Write):
    """Cache [batch, …, slots, …] with the row's ``valid`` new entries at slots (start + t) % slots; of more new
    entries than slots only the last ones stay. Operands: cache, new [batch, seq, …], start, valid."""

    name: ClassVar[str] = "append"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        cache, new = ins[:2]
        if sorted(cache.drop("slots").pairs, key=str) != sorted(new.drop(self.axis).pairs, key=str):
            raise TypeProblem("axis-mismatch", f"cache {cache} and entries {new} differ")
        return (cache,)


@op
@dataclass(frozen=True)
class KeepLast(_Write):
    """State [batch, …] becomes entry valid - 1 of ``all`` [batch, seq, …], or stays where valid is 0.
    Operands: old, all, start, valid."""

    name: ClassVar[str] = "keep_last"

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=ins[0].bytes, written=ins[0].bytes)


@op
@dataclass(frozen=True)
class KeepTail(_Write):
    """Tail [batch, taps, …] becomes the last ``taps`` entries of tail followed by the row's valid new entries.
    Operands: tail, new [batch, seq, …], start, valid."""

    name: ClassVar[str] = "keep_tail"

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=ins[0].bytes * 2, written=ins[0].bytes)


@op
@dataclass(frozen=True)
class After(Op):
    """Its first operand, once the second is known: a write that waits for the reads of what it overwrites, so that
    the compiler needs no copy to keep both."""

    name: ClassVar[str] = "after"
    differentiable: ClassVar[bool] = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0],)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return grads[0], None


WRITES: dict[str, type[_Write]] = {"append": Append, "keep_last": KeepLast, "keep_tail": KeepTail}


@op
@dataclass(frozen=True)
class LastValid(Op):
    """Entry valid - 1 of each row along ``axis``, kept as a length of 1: [batch, seq=1, …]."""

    name: ClassVar[str] = "last_valid"
    differentiable: ClassVar[bool] = False
    axis: str = "seq"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0].resize(self.axis, ONE),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=outs[0].bytes, written=outs[0].bytes)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@function
def last_valid(b: Builder, x: Value, valid: Value, axis: str = "seq") -> Value:
    return b.one(LastValid(axis), x, valid)
