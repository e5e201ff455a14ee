"""Writing state: what a call leaves for the next one. ``valid`` [batch] says how many positions of each row count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import ONE, Size
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


SUBLANES = 8  # rows of a TPU's tile


@dataclass(frozen=True)
class CacheLayout:
    """How a target wants a cache to lie. ``heads_first``: [batch, kv_heads, slots, head_dim] rather than
    [batch, slots, kv_heads, head_dim]. ``lanes``: columns of the tiles to which the compiler pads [kv_heads, head_dim];
    0 where it pads nothing. Where heads do not fill such tiles the cache is packed: [batch, slot_rows, lanes], a row
    being all heads of one slot, or of as few slots as fill whole tiles side by side. ``shards``: devices among which
    the heads are divided, each of which packs its own: [batch, kv_heads=shards, slot_rows, lanes]."""

    heads_first: bool = True
    lanes: int = 0
    shards: int = 1

    def types(self, new: Sequence[TensorType], axis: str, heads: str, slots: Size) -> list[TensorType]:
        """The caches of entries [batch, …, axis, heads, width] that are kept together."""
        each = [t.size(heads) // self.shards for t in new]  # heads of a device
        together = self._together([n * t.sizes[-1] for n, t in zip(each, new, strict=True)])
        packed = self.lanes > 0 and not all(self._full(n, t.sizes[-1]) for n, t in zip(each, new, strict=True))
        made = []
        for t, own in zip(new, each, strict=True):
            batch = [(a, t.size(a)) for a in t.axes[:-1] if a not in (axis, heads)]
            pairs: list[tuple[str, Size]] = [("slots", slots), (heads, t.size(heads))]
            inner = [*(reversed(pairs) if self.heads_first else pairs), (t.axes[-1], t.sizes[-1])]
            if packed:
                # whole tiles of rows too, or XLA for TPU lays it out in another order, and copies it
                rows = (slots + (together * SUBLANES - 1)) // (together * SUBLANES) * SUBLANES
                inner = [("slot_rows", rows), ("lanes", own * t.sizes[-1] * together)]
                inner = [(heads, Size.of(self.shards)), *inner] if self.shards > 1 else inner
            made.append(TensorType.make([*batch, *inner], t.dtype))
        return made

    def _together(self, widths: Sequence[Size]) -> int:
        """Slots of a row: a power of two where ``lanes`` is one, so that one number serves all."""
        return max(self.lanes // math.gcd(int(w.constant), self.lanes) for w in widths) if self.lanes else 1

    def _full(self, rows: Size, columns: Size) -> bool:
        whole = rows.constant in (1, 2, 4) or rows.constant % SUBLANES == 0
        return bool(whole and columns.constant % self.lanes == 0)


HEADS_FIRST = CacheLayout()


def slots_together(cache: TensorType, new: TensorType, axis: str) -> int:
    """Slots of one row of a packed cache of entries ``new`` [batch, …, axis, …]; 1 where it is not packed."""
    if "lanes" not in cache.axes:
        return 1
    return int(cache.size("lanes").constant) // _width(cache, new, axis)


def _width(cache: TensorType, new: TensorType, axis: str) -> int:
    """Lanes that one entry takes of a packed cache: its heads side by side, those of one shard."""
    side = [a for a in new.axes if a != axis and (a not in cache.axes or new.size(a) != cache.size(a))]
    shards = math.prod(int(cache.size(a).constant) for a in side if a in cache.axes)
    return math.prod(int(new.size(a).constant) for a in side) // shards


def slots_of(cache: TensorType, new: TensorType, axis: str) -> Size:
    """Slots of a cache, packed or not."""
    if "lanes" not in cache.axes:
        return cache.size("slots")
    return cache.size("slot_rows") * slots_together(cache, new, axis)


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
        whole = (self.axis, "slots", "slot_rows", "lanes", "taps")
        if "lanes" in ins[0].axes and axis not in ins[0].axes:
            return Role.WHOLE  # heads that lie side by side are not an axis of the cache
        return Role.WHOLE if axis in whole else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@op
@dataclass(frozen=True)
class Append(_Write):
    """Cache [batch, …, slots, …], or packed [batch, slot_rows, lanes] (of divided heads [batch, kv_heads, slot_rows,
    lanes]), with the row's ``valid`` new entries at slots
    (start + t) % slots; of more new entries than slots only the last ones stay. Operands: cache, new [batch, seq, …],
    start, valid."""

    name: ClassVar[str] = "append"
    shard: tuple[str, ...] = ()  # mesh axes that split the slots: each shard writes what falls into its own

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.LOOKUP if axis == "slots" else super().role(axis, ins, outs)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        cache, new = ins[:2]
        if "lanes" in cache.axes:
            inner = [a for a in cache.axes if a not in new.axes]
            if inner != ["slot_rows", "lanes"] or cache.size("lanes").constant % _width(cache, new, self.axis):
                raise TypeProblem("axis-mismatch", f"entries {new} do not fill the rows of cache {cache}")
        elif sorted(cache.drop("slots").pairs, key=str) != sorted(new.drop(self.axis).pairs, key=str):
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
class Replace(_Write):
    """The new state in place of the old one: of an op that has heeded ``valid`` itself. Operands: old, new, start,
    valid."""

    name: ClassVar[str] = "replace"


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


WRITES: dict[str, type[_Write]] = {
    "append": Append, "keep_last": KeepLast, "keep_tail": KeepTail, "replace": Replace,
}  # fmt: skip


def written(b: Builder, how: str | Op, axis: str, state: Value, new: Sequence[Value], where: Sequence[Value]) -> Value:
    """The state after a write: by one of WRITES from one new value, or by an op that goes on from the state, whose
    operands are the new values, the state and ``valid``. ``where``: start and valid."""
    if isinstance(how, str):
        return b.one(WRITES[how](axis), state, *new, *where)
    return b.one(Replace(axis), state, b.one(how, *new, state, where[1]), *where)


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
