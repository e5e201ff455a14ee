"""Rows: (token, expert) pairs sorted by expert, in an order of each shard's own, and how they reach their experts.

Where tokens and experts are split over one mesh axis, rows travel: each shard sorts its own tokens, all tell each
other how many rows each expert gets, and the rows go to the shards of their experts, where they lie sorted by expert
and, for one expert, by where they came from. However tokens choose, all arrive: a shard has room for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.collective import Exchange, GatherCounts, OwnShard
from compiler.ops.contract import Cost, Op, Role, moved, op
from compiler.ops.shards import SHARDS

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@dataclass(frozen=True)
class Rows(Op):
    """What ops between tokens and rows share. ``experts``: of the whole; ``shard``: the mesh axes over which they
    are split where every shard has all tokens."""

    experts: Size = Size.of(1)
    shard: tuple[str, ...] = ()

    def exchanges(self) -> tuple[tuple[str, ...], ...]:
        return ("experts", "batch"), ("experts", "seq")

    def _beside(self, axis: str, chosen: TensorType) -> Role:
        """The role of an axis that is not ``experts``: tokens are sorted where they lie."""
        if axis in ("batch", "seq"):
            return Role.PARALLEL if axis in chosen.axes else Role.WHOLE
        return Role.WHOLE if axis in chosen.axes else Role.PARALLEL


@op
@dataclass(frozen=True)
class ToRows(Rows):
    """x [batch, seq, …] by row, in the order of ``dispatch``: [rows, …]; of x [batch, seq, active, …] each entry is
    one row. Operands: x, chosen, order."""

    name: ClassVar[str] = "to_rows"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, chosen = ins[:2]
        rest = [p for p in x.pairs if p[0] not in chosen.axes]
        return (TensorType.make([("rows", chosen.elements), *rest], x.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(outs, outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None, None
        back = b.one(FromRows(self.experts), grads[0], *ins[1:])
        if "active" not in ins[0].axes:
            back = b.reduce(back, "sum", ("active",))
        return b.arrange(back, ins[0].axes), None, None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.OWN if axis == "experts" else self._beside(axis, ins[1])

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return balanced(outs[0], shards)

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        rows = b.one(self, *ins)
        return (to_experts(b, rows, counts(b, ins[1], self.experts, shards), shards),)


@op
@dataclass(frozen=True)
class FromRows(Rows):
    """Rows [rows, …] as entries of their tokens, [batch, seq, active, …]. Operands: y, chosen, order."""

    name: ClassVar[str] = "from_rows"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        y, chosen = ins[:2]
        return (TensorType.make([*chosen.pairs, *y.drop("rows").pairs], y.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(outs, outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None, None
        back = b.one(ToRows(self.experts), grads[0], *ins[1:])
        return b.arrange(back, ins[0].axes), None, None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.LOOKUP if axis == "experts" else self._beside(axis, ins[1])

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return balanced(ins[0], shards)

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        y, chosen, order = ins
        return (b.one(self, from_experts(b, y, chosen, self.experts, shards), chosen, order),)


@op
@dataclass(frozen=True)
class Tally(Op):
    """How many rows each expert gets of the tokens here: [groups]."""

    name: ClassVar[str] = "tally"
    differentiable: ClassVar[bool] = False
    experts: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([("groups", self.experts)], "int32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None,)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.PARALLEL if axis in ("batch", "seq") and axis in ins[0].axes else Role.WHOLE


# -- programs over the shards; ``b`` is the partition pass's builder (compiler/passes/across.py)
def counts(b: Any, chosen: Value, experts: Size, shards: int) -> Value:
    """How many rows each shard has for each expert, on every shard: [shards, groups]."""
    return b.moved(GatherCounts((b.mesh_axis,), shards), (b.one(Tally(experts), chosen),), None)


def own_groups(b: Any, table: Value, shards: int) -> Value:
    """How many rows each of a shard's own experts has, from all shards."""
    groups = b.reduce(table, "sum", (SHARDS,))
    return b.moved(OwnShard((b.mesh_axis,), shards, "groups"), (groups,), "experts")


def to_experts(b: Any, rows: Value, table: Value, shards: int) -> Value:
    """Rows from the shards of their tokens to those of their experts."""
    return b.moved(Exchange((b.mesh_axis,), shards), (rows, table), "experts")


def from_experts(b: Any, rows: Value, chosen: Value, experts: Size, shards: int) -> Value:
    """The way back."""
    back = Exchange((b.mesh_axis,), shards, back=True)
    return b.moved(back, (rows, counts(b, chosen, experts, shards)), b.lies(chosen))


def balanced(arrived: TensorType, shards: int) -> Size:
    """Bytes that one shard sends when tokens go to all experts alike; ``arrived``: the type of what it has room for."""
    return arrived.bytes * ((shards - 1) / shards**2)
