"""Convolutions along a sharded axis: each shard gets from its neighbours what its windows reach beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.shape import Merge, Pad
from compiler.ops.shards import SHARDS, edge, parts, to_next

if TYPE_CHECKING:
    from compiler.ops.conv import Conv, ConvInput, ConvKernel


@dataclass(frozen=True)
class _Halo:
    """How far the windows of an op reach beyond a shard of ``own`` entries."""

    b: Any
    op: Any
    axis: str
    shards: int
    own: int
    before: int
    after: int

    @property
    def inside(self) -> Any:
        """The op on shards that hold what they need."""
        return replace(self.op, windows=tuple(w.inside() if w.axis == self.axis else w for w in self.op.windows))

    def with_edges(self, x: Value) -> Value:
        """[.., shards, axis, ..] with the neighbours' edges; zeros, as padding is, at both ends."""
        inner = parts(self.b, x, self.axis, self.shards)
        pieces = [inner]
        if self.before:
            pieces.insert(0, to_next(self.b, edge(self.b, inner, self.axis, self.before, last=True), 1, self.shards))
        if self.after:
            pieces.append(to_next(self.b, edge(self.b, inner, self.axis, self.after, last=False), -1, self.shards))
        return self.b.concat(*pieces, axis=self.axis) if len(pieces) > 1 else inner

    def without_edges(self, x: Value) -> Value:
        """The way back: what lies on the edges goes to the neighbours, and is added there."""
        b, axis, rest = self.b, self.axis, self.own
        total = b.slice(x, axis, self.before, rest)
        if self.before:
            first = to_next(b, b.slice(x, axis, 0, self.before), -1, self.shards)
            total = b.add(total, b.one(Pad(axis, Size.of(rest - self.before), Size.of(0)), first))
        if self.after:
            last = to_next(b, b.slice(x, axis, self.before + rest, self.after), 1, self.shards)
            total = b.add(total, b.one(Pad(axis, Size.of(0), Size.of(rest - self.after)), last))
        return total


def _halo(b: Any, op: Any, axis: str, size: int, shards: int) -> _Halo | None:
    """None where a shard would need more than its neighbours' edges, or get another share of the places."""
    window = next(w for w in op.windows if w.axis == axis)
    before, after = (int(p.constant) for p in window.pads(size))
    own = size // shards
    fits = own % window.stride == 0 and max(before, after) <= own
    if not fits or before + after != max(window.reach - window.stride, 0):
        return None
    return _Halo(b, op, axis, shards, own, before, after)


def _joined(b: Any, x: Value, axis: str, like: TensorType) -> Value:
    return b.one(Merge((SHARDS, axis), axis, like.size(axis)), x)


def conv(b: Any, op: Conv, axis: str, ins: Sequence[Value], shards: int) -> Value:
    """The result; gathered first where neighbours do not suffice."""
    x, kernel = ins
    halo = _halo(b, op, axis, b.size(x.type, axis), shards)
    if halo is None:
        return b.one(op, b.whole(x, axis), kernel)
    return _joined(b, b.one(halo.inside, halo.with_edges(x), kernel), axis, op.infer(x.type, kernel.type)[0])


def conv_input(b: Any, op: ConvInput, axis: str, ins: Sequence[Value], shards: int) -> Value:
    """The cotangent of the input."""
    g, kernel = ins
    (like,) = op.infer(g.type, kernel.type)
    halo = _halo(b, op, axis, b.size(like, axis), shards)
    if halo is None:
        return b.one(op, b.whole(g, axis), kernel)
    wide = Size.of(halo.own + halo.before + halo.after)
    sizes = tuple(wide if a == axis else n for a, n in zip(op.over, op.sizes, strict=True))
    made = b.one(replace(halo.inside, sizes=sizes), parts(b, g, axis, shards), kernel)
    return _joined(b, halo.without_edges(made), axis, like)


def conv_kernel(b: Any, op: ConvKernel, axis: str, ins: Sequence[Value], shards: int) -> Value:
    """The cotangent of the kernel: a sum over the shards."""
    x, g = ins
    halo = _halo(b, op, axis, b.size(x.type, axis), shards)
    if halo is None:
        return b.one(op, b.whole(x, axis), b.whole(g, axis))
    return b.one(halo.inside, halo.with_edges(x), parts(b, g, axis, shards))
