"""Collectives as nodes. A value's type is the whole (logical) tensor; the partition pass keeps the placements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.types import TensorType
from compiler.ops.contract import Cost, Op, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@dataclass(frozen=True)
class _Collective(Op):
    """``mesh_axis`` names the group; one collective a node."""

    mesh_axis: str = ""

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return ins


@op
@dataclass(frozen=True)
class AllReduce(_Collective):
    """Partial results of the shards become the sum (mean, max) on each. Every shard then holds the same value, so
    the way back is the cotangent itself."""

    name: ClassVar[str] = "all_reduce"
    kind: str = "sum"

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if self.kind != "sum" and grads[0] is not None:
            raise NotImplementedError("differentiate before partition: the way back of a maximum is not here")
        return (grads[0],)


@op
@dataclass(frozen=True)
class OwnShard(_Collective):
    """Each shard keeps its own part of a replicated value along ``axis``; moves nothing."""

    name: ClassVar[str] = "own_shard"
    axis: str = ""

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(AllGather(self.mesh_axis, self.axis), grads[0]),)


@op
@dataclass(frozen=True)
class AllGather(_Collective):
    """Shards along ``axis`` become the whole on each."""

    name: ClassVar[str] = "all_gather"
    axis: str = ""

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(ReduceScatter(self.mesh_axis, self.axis), grads[0]),)


@op
@dataclass(frozen=True)
class ReduceScatter(_Collective):
    """Partial sums become shards of the sum along ``axis``."""

    name: ClassVar[str] = "reduce_scatter"
    axis: str = ""

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(AllGather(self.mesh_axis, self.axis), grads[0]),)


@op
@dataclass(frozen=True)
class AllToAll(_Collective):
    """Shards along ``gathered`` become shards along ``scattered``."""

    name: ClassVar[str] = "all_to_all"
    scattered: str = ""
    gathered: str = ""

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        back = AllToAll(self.mesh_axis, self.gathered, self.scattered)
        return (None if grads[0] is None else b.one(back, grads[0]),)


@op
@dataclass(frozen=True)
class Permute(_Collective):
    """Each shard's value goes to the shard ``by`` places further round the ring."""

    name: ClassVar[str] = "permute"
    by: int = 1

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(Permute(self.mesh_axis, -self.by), grads[0]),)
