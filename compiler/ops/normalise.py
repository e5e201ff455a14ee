"""Normalisations and softmax, computed and returned in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Norm(Op):
    """``rms``: x / sqrt(mean(x^2) + eps); ``layer``: the same after taking the mean away; ``l2``:
    x / sqrt(sum(x^2) + eps). No scale, no bias: those are maps. Result float32."""

    name: ClassVar[str] = "norm"
    kind: str = "rms"
    axis: str = "embed"
    eps: float = 1e-6

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        ins[0].size(self.axis)
        return (ins[0].with_dtype("float32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        n = outs[0].elements
        return moved(
            ins,
            outs,
            vector=n * (6 if self.kind == "layer" else 3),
            transcendental=outs[0].drop(self.axis).elements,
        )

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        (x,), (y,), (g,) = ins, outs, grads
        if g is None:
            return (None,)
        xf = b.cast(x, "float32")
        if self.kind == "layer":
            xf = b.sub(xf, b.reduce(xf, "mean", (self.axis,)))
            g = b.sub(g, b.reduce(g, "mean", (self.axis,)))
        over = "sum" if self.kind == "l2" else "mean"
        r = b.rsqrt(b.add(b.reduce(b.mul(xf, xf), over, (self.axis,)), self.eps))
        along = b.reduce(b.mul(g, y), over, (self.axis,))
        return (b.cast(b.mul(b.sub(g, b.mul(y, along)), r), x.type.dtype),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@op
@dataclass(frozen=True)
class Softmax(Op):
    """exp(x) / sum(exp(x)) along an axis, in float32."""

    name: ClassVar[str] = "softmax"
    axis: str = "experts"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        ins[0].size(self.axis)
        return (ins[0].with_dtype("float32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        n: Size = outs[0].elements
        return moved(ins, outs, vector=n * 4, transcendental=n)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        (y,), (g,) = outs, grads
        if g is None:
            return (None,)
        along = b.reduce(b.mul(g, y), "sum", (self.axis,))
        return (b.cast(b.mul(y, b.sub(g, along)), ins[0].type.dtype),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@function
def norm(b: Builder, x: Value, kind: str, axis: str = "", eps: float = 1e-6) -> Value:
    """Normalises along ``axis`` (default: the last); float32."""
    return b.one(Norm(kind, axis or x.axes[-1], eps), x)


@function
def rms_norm(b: Builder, x: Value, axis: str | Sequence[str] = "", eps: float = 1e-6) -> Value:
    """x / sqrt(mean(x^2) + eps) along an axis or a list of them (default: the last); keeps x's dtype."""
    return b.cast(_normed(b, x, "rms", axis, eps), x.type.dtype)


@function
def layer_norm(b: Builder, x: Value, axis: str | Sequence[str] = "", eps: float = 1e-5) -> Value:
    """(x - mean) / sqrt(variance + eps) along an axis or a list of them (default: the last); keeps x's dtype. Along
    the channels of a group or head alone it is a group norm."""
    return b.cast(_normed(b, x, "layer", axis, eps), x.type.dtype)


@function
def l2_norm(b: Builder, x: Value, axis: str | Sequence[str] = "", eps: float = 1e-6) -> Value:
    """x / sqrt(sum(x^2) + eps) along an axis or a list of them (default: the last); keeps x's dtype."""
    return b.cast(_normed(b, x, "l2", axis, eps), x.type.dtype)


def _normed(b: Builder, x: Value, kind: str, axis: str | Sequence[str], eps: float) -> Value:
    """Several axes: by sums over them, each of which may be sharded."""
    axes = (axis or x.axes[-1],) if isinstance(axis, str) else tuple(axis)
    if len(axes) == 1:
        return b.norm(x, kind, axes[0], eps)
    y = b.cast(x, "float32")
    if kind == "layer":
        y = b.sub(y, b.reduce(y, "mean", axes))
    size = b.reduce(b.mul(y, y), "sum" if kind == "l2" else "mean", axes)
    return b.mul(y, b.rsqrt(b.add(size, eps)))


@function
def softmax(b: Builder, x: Value, axis: str = "") -> Value:
    """Softmax along ``axis`` (default: the last); float32."""
    return b.one(Softmax(axis or x.axes[-1]), x)
