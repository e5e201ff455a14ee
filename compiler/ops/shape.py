"""Ops that only move or add up: arrange, rename, split and merge axes, concat, slice, take, expand, reduce, pad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size, SizeLike, product
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@op
@dataclass(frozen=True)
class Arrange(Op):
    """Transposes to the order ``axes``."""

    name: ClassVar[str] = "arrange"
    axes: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        if sorted(self.axes) != sorted(ins[0].axes):
            raise TypeProblem("axis-mismatch", f"cannot arrange [{' '.join(ins[0].axes)}] as [{' '.join(self.axes)}]")
        return (TensorType.make([(a, ins[0].size(a)) for a in self.axes], ins[0].dtype),)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.arrange(grads[0], ins[0].axes),)


@op
@dataclass(frozen=True)
class Rename(Op):
    """Gives axes other names; moves nothing."""

    name: ClassVar[str] = "rename"
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        for axis in self.old:
            ins[0].size(axis)
        return (ins[0].rename(dict(zip(self.old, self.new, strict=True))),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(Rename(self.new, self.old), grads[0]),)

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis in self.old else Along.POINTWISE

    def follows(self) -> Mapping[str, str]:
        return dict(zip(self.old, self.new, strict=True))


@op
@dataclass(frozen=True)
class Split(Op):
    """One axis becomes several, the first slowest: rnn=2560 -> blocks=10 width=256."""

    name: ClassVar[str] = "split"
    axis: str = ""
    names: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        size = ins[0].size(self.axis)
        if product(self.sizes) != size and (size.is_constant or len(self.sizes) < 2):
            parts = " x ".join(str(s) for s in self.sizes)
            raise TypeProblem("indivisible", f"{self.axis} = {size} does not split into {parts}")
        pairs: list[tuple[str, SizeLike]] = []
        for a, s in ins[0].pairs:
            pairs += zip(self.names, self.sizes, strict=True) if a == self.axis else [(a, s)]
        return (TensorType.make(pairs, ins[0].dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        size = ins[0].type.size(self.axis)
        back = Merge(self.names, self.axis, None if product(self.sizes) == size else size)
        return (None if grads[0] is None else b.one(back, grads[0]),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        inner = axis in self.names[1:] and axis != self.axis
        return Role.WHOLE if inner else Role.PARALLEL

    def follows(self) -> Mapping[str, str]:
        return {self.axis: self.names[0]}  # the slowest part: shards stay whole numbers of it


@op
@dataclass(frozen=True)
class Merge(Op):
    """Neighbouring axes become one, the first slowest."""

    name: ClassVar[str] = "merge"
    names: tuple[str, ...] = ()
    axis: str = ""
    size: Size | None = None  # of the whole, where it is not the plain product

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        axes = ins[0].axes
        for name in self.names:
            ins[0].size(name)
        at = axes.index(self.names[0])
        if axes[at : at + len(self.names)] != self.names:
            raise TypeProblem("axis-mismatch", f"axes to merge must be neighbours: [{' '.join(axes)}]", axes)
        merged = (self.axis, self.size or product(ins[0].size(n) for n in self.names))
        pairs = [p for p in ins[0].pairs if p[0] not in self.names]
        return (TensorType.make([*pairs[:at], merged, *pairs[at:]], ins[0].dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        sizes = tuple(ins[0].type.size(n) for n in self.names)
        return (None if grads[0] is None else b.one(Split(self.axis, self.names, sizes), grads[0]),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in self.names[1:] else Role.PARALLEL

    def follows(self) -> Mapping[str, str]:
        return {self.names[0]: self.axis}

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis in self.names else Along.POINTWISE


@op
@dataclass(frozen=True)
class Reduce(Op):
    """sum, mean or max over axes, accumulated in float32; keeps the dtype."""

    name: ClassVar[str] = "reduce"
    kind: str = "sum"
    over: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        for axis in self.over:
            ins[0].size(axis)
        return (ins[0].drop(*self.over),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return self.kind != "max"

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        (x,), (y,), (g,) = ins, outs, grads
        if g is None:
            return (None,)
        if self.kind == "max":  # shared evenly between equal maxima
            hit = b.cast(b.equal(x, y), x.type.dtype)
            return (b.arrange(b.mul(b.div(hit, b.reduce(hit, "sum", self.over)), g), x.axes),)
        spread = b.expand(g, [(a, x.type.size(a)) for a in self.over])
        if self.kind == "mean":
            spread = b.div(spread, b.constant(product(x.type.size(a) for a in self.over), x.type.dtype))
        return (b.arrange(spread, x.axes),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.SUM if axis in self.over else Role.PARALLEL

    def partial(self) -> str:
        return self.kind

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis in self.over else Along.POINTWISE


@op
@dataclass(frozen=True)
class Expand(Op):
    """Repeats a value along new axes, put in front."""

    name: ClassVar[str] = "expand"
    names: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([*zip(self.names, self.sizes, strict=True), *ins[0].pairs], ins[0].dtype),)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.reduce(grads[0], "sum", self.names),)


@op
@dataclass(frozen=True)
class Concat(Op):
    """Values one after the other along an axis."""

    name: ClassVar[str] = "concat"
    axis: str = ""

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        first = ins[0]
        total = first.size(self.axis)
        for t in ins[1:]:
            if t.axes != first.axes or t.drop(self.axis) != first.drop(self.axis):
                raise TypeProblem("axis-mismatch", f"cannot join {first} and {t} along {self.axis}")
            total = total + t.size(self.axis)
        return (first.resize(self.axis, total),)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return len(partial) == len(ins)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return tuple(None for _ in ins)
        parts, start = [], Size.of(0)
        for x in ins:
            size = x.type.size(self.axis)
            parts.append(b.one(Slice(self.axis, start, size), grads[0]))
            start = start + size
        return tuple(parts)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@op
@dataclass(frozen=True)
class Slice(Op):
    """``size`` entries of an axis from ``start`` on."""

    name: ClassVar[str] = "slice"
    axis: str = ""
    start: Size = Size.of(0)
    size: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        whole = ins[0].size(self.axis)
        end = self.start + self.size
        if whole.is_constant and end.is_constant and end.constant > whole.constant:
            raise TypeProblem("out-of-range", f"takes {self.axis} up to {end} of {whole}")
        return (ins[0].resize(self.axis, self.size),)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return (None,)
        whole = ins[0].type.size(self.axis)
        return (b.one(Pad(self.axis, self.start, whole - self.start - self.size), grads[0]),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@op
@dataclass(frozen=True)
class Pad(Op):
    """Zeros before and after along an axis."""

    name: ClassVar[str] = "pad"
    axis: str = ""
    before: Size = Size.of(0)
    after: Size = Size.of(0)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0].resize(self.axis, self.before + ins[0].size(self.axis) + self.after),)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return (None,)
        return (b.one(Slice(self.axis, self.before, ins[0].type.size(self.axis)), grads[0]),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@function
def arrange(b: Builder, x: Value, axes: Sequence[str]) -> Value:
    """Transposes to the order given."""
    return x if tuple(axes) == x.axes else b.one(Arrange(tuple(axes)), x)


@function
def rename(b: Builder, x: Value, **names: str) -> Value:
    """rename(x, old=new, …)."""
    return b.one(Rename(tuple(names), tuple(names.values())), x)


@function
def split(b: Builder, x: Value, axis: str, **parts: SizeLike) -> Value:
    """split(x, axis=embed, heads=4, head_dim=16): one axis becomes several, the first slowest."""
    return b.one(Split(axis, tuple(parts), tuple(Size.of(s) for s in parts.values())), x)


@function
def merge(b: Builder, x: Value, names: Sequence[str], axis: str) -> Value:
    """merge(x, names=[height, width], axis=patches): axes become one, the first slowest, where the first stands."""
    for name in names:
        x.type.size(name)
    first = x.axes.index(names[0])
    rest = [[a for a in part if a not in names] for part in (x.axes[:first], x.axes[first:])]
    return b.one(Merge(tuple(names), axis), b.arrange(x, [*rest[0], *names, *rest[1]]))


@function
def reduce(b: Builder, x: Value, kind: str, over: Sequence[str]) -> Value:
    return b.one(Reduce(kind, tuple(over)), x)


def _axes(x: Value, axis: str | Sequence[str]) -> tuple[str, ...]:
    return (axis or x.axes[-1],) if isinstance(axis, str) else tuple(axis)


@function(name="sum")
def sum_(b: Builder, x: Value, axis: str | Sequence[str] = "") -> Value:
    """Sum along an axis or a list of them (default: the last)."""
    return b.one(Reduce("sum", _axes(x, axis)), x)


@function
def mean(b: Builder, x: Value, axis: str | Sequence[str] = "") -> Value:
    """Mean along an axis or a list of them (default: the last)."""
    return b.one(Reduce("mean", _axes(x, axis)), x)


@function
def expand(b: Builder, x: Value, pairs: Sequence[tuple[str, SizeLike]]) -> Value:
    names, sizes = tuple(n for n, _ in pairs), tuple(Size.of(s) for _, s in pairs)
    return b.one(Expand(names, sizes), x) if names else x


@function
def repeated(b: Builder, x: Value, like: Value, axis: Sequence[str]) -> Value:
    """repeated(rows, like=input, axis=[batch, image]): x repeated along axes of another value, put in front."""
    return b.expand(x, [(a, like.type.size(a)) for a in axis])


@function
def concat(b: Builder, *xs: Value, axis: str) -> Value:
    """Joins values along ``axis``."""
    return b.one(Concat(axis), *xs)


@function
def slice_(b: Builder, x: Value, axis: str, start: SizeLike, size: SizeLike) -> Value:
    return b.one(Slice(axis, Size.of(start), Size.of(size)), x)


@function
def take(b: Builder, x: Value, **index: int) -> Value:
    """take(x, axis=i): entry i of an axis, which goes away."""
    ((axis, i),) = index.items()
    return b.reduce(b.one(Slice(axis, Size.of(int(i)), Size.of(1)), x), "sum", (axis,))


def zeros(b: Builder, t: TensorType) -> Value:
    """A value of zeros."""
    return b.expand(b.constant(0.0, t.dtype), t.pairs)
