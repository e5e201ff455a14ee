"""Collectives as nodes. A value's type is the whole (logical) tensor; the partition pass keeps the placements.

Their cost is counted on the types of one shard, as that of every other op is once the graph is partitioned: ``sent``
is what one device sends by a ring algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import ZERO, Size
from compiler.graph.types import TensorType
from compiler.ops.contract import Cost, Op, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@dataclass(frozen=True)
class Collective(Op):
    """``mesh_axes`` name the group, the first outermost; ``shards`` is how many devices it has."""

    mesh_axes: tuple[str, ...] = ()
    shards: int = 1

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return ins

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        """Bytes that one device sends, from the types of one shard."""
        raise NotImplementedError(self.name)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        sent = self.sent(ins, outs) if self.shards > 1 else ZERO
        return Cost(read=ins[0].bytes, written=outs[0].bytes, sent=sent)

    def _share(self) -> float:
        """Of the whole, what the other devices hold."""
        return (self.shards - 1) / self.shards


@op
@dataclass(frozen=True)
class AllReduce(Collective):
    """Partial results of the shards become the sum (mean, max) on each. Every shard then holds the same value, so
    the way back is the cotangent itself."""

    name: ClassVar[str] = "all_reduce"
    kind: str = "sum"

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return ins[0].bytes * (2 * self._share())

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if self.kind != "sum" and grads[0] is not None:
            raise NotImplementedError("differentiate before partition: the way back of a maximum is not here")
        return (grads[0],)


@op
@dataclass(frozen=True)
class OwnShard(Collective):
    """Each shard keeps its own part of a replicated value along ``axis``; moves nothing."""

    name: ClassVar[str] = "own_shard"
    axis: str = ""

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        back = AllGather(self.mesh_axes, self.shards, self.axis)
        return (None if grads[0] is None else b.one(back, grads[0]),)


@op
@dataclass(frozen=True)
class Once(Collective):
    """A replicated value as parts of a sum: the first shard's is the value, the others' are zeros; moves nothing. So
    that it can be added to partial sums before they are completed."""

    name: ClassVar[str] = "once"

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost(read=ins[0].bytes, written=outs[0].bytes)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (grads[0],)


@op
@dataclass(frozen=True)
class AllGather(Collective):
    """Shards along ``axis`` become the whole on each."""

    name: ClassVar[str] = "all_gather"
    axis: str = ""

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return outs[0].bytes * self._share()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        back = ReduceScatter(self.mesh_axes, self.shards, self.axis)
        return (None if grads[0] is None else b.one(back, grads[0]),)


@op
@dataclass(frozen=True)
class ReduceScatter(Collective):
    """Partial sums become shards of the sum along ``axis``."""

    name: ClassVar[str] = "reduce_scatter"
    axis: str = ""

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return ins[0].bytes * self._share()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        back = AllGather(self.mesh_axes, self.shards, self.axis)
        return (None if grads[0] is None else b.one(back, grads[0]),)


@op
@dataclass(frozen=True)
class AllToAll(Collective):
    """Shards along ``gathered`` become shards along ``scattered``."""

    name: ClassVar[str] = "all_to_all"
    scattered: str = ""
    gathered: str = ""

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return ins[0].bytes * self._share()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        back = AllToAll(self.mesh_axes, self.shards, self.gathered, self.scattered)
        return (None if grads[0] is None else b.one(back, grads[0]),)


@op
@dataclass(frozen=True)
class Permute(Collective):
    """Each shard's value goes to the shard ``by`` places further along the group: round it, or, where not ``wrap``,
    off its end, and zeros come in at the other. With ``to`` shard i's goes to shard to[i] instead."""

    name: ClassVar[str] = "permute"
    by: int = 1
    wrap: bool = True
    to: tuple[int, ...] = ()

    def pairs(self) -> list[tuple[int, int]]:
        """(from, to) of every shard that sends."""
        if self.to:
            return list(enumerate(self.to))
        every = [(i, i + self.by) for i in range(self.shards)]
        return [(i, j % self.shards) for i, j in every if self.wrap or 0 <= j < self.shards]

    def back(self) -> Permute:
        """The way back."""
        if self.to:
            return Permute(self.mesh_axes, self.shards, to=tuple(self.to.index(i) for i in range(self.shards)))
        return Permute(self.mesh_axes, self.shards, -self.by, self.wrap)

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return ins[0].bytes

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(self.back(), grads[0]),)


@op
@dataclass(frozen=True)
class GatherCounts(Collective):
    """How many rows each shard has for each expert, [groups], on every shard: [shards, groups]."""

    name: ClassVar[str] = "gather_counts"
    differentiable: ClassVar[bool] = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([("shards", self.shards), *ins[0].pairs], ins[0].dtype),)

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return outs[0].bytes * self._share()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None,)


@op
@dataclass(frozen=True)
class Exchange(Collective):
    """Rows from the shards of their tokens to the shards of their experts, or ``back``: a ragged all-to-all, where
    XLA has one (TPU, GPU). Operands: rows, and the table [shards, groups] of how many each shard has for each expert.

    Where rows arrive there is room for those of all shards, and what is not filled is zero. ``sent`` is what a shard
    sends when tokens go to all experts alike. At worst, every row of a shard leaves it; and every row of all shards
    comes back from one. XLA for CPU has no ragged all-to-all, and sends all the room (an all-to-all)."""

    name: ClassVar[str] = "exchange"
    back: bool = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0],)

    def sent(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return (outs if self.back else ins)[0].bytes * self._share()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        back = Exchange(self.mesh_axes, self.shards, not self.back)
        return (None if grads[0] is None else b.one(back, grads[0], ins[1])), None
