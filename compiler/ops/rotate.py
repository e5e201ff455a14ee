"""Rotary position embedding (RoFormer, arXiv:2104.09864, equation 34)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, function, moved, op
from compiler.ops.frequencies import NONE, Scaling

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Rotate(Op):
    """Turns pairs of channels by position times theta ** (-2 i / n) over the first ``channels`` of ``axis``;
    ``pairs``: "half" pairs channel i with i + n/2, "interleaved" 2i with 2i + 1. ``scaling``: other frequencies, and
    a magnitude (compiler/ops/frequencies.py). Exact at any position below 2**31: the fraction of a turn is computed in
    64-bit fixed point."""

    name: ClassVar[str] = "rotate"
    axis: str = "head_dim"
    theta: float = 10_000.0
    channels: int = 0
    pairs: str = "half"
    inverse: bool = False
    scaling: Scaling = NONE

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, positions = ins
        size = x.size(self.axis).constant
        if self.channels % 2 or not 0 < self.channels <= size:
            raise TypeProblem(
                "indivisible",
                f"rotates {self.channels} channels of {self.axis} = {size}: needs an even number",
            )
        for axis in positions.axes:
            x.size(axis)
        return (x,)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        x, positions = ins
        share = x.drop(self.axis).elements * self.channels
        return moved(ins, outs, vector=share * 3, transcendental=positions.elements * self.channels)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        if grads[0] is None:
            return None, None
        return b.one(dataclasses.replace(self, inverse=not self.inverse), grads[0], ins[1]), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL


@function
def rotate(
    b: Builder,
    x: Value,
    positions: Value | None = None,
    *,
    axis: str = "head_dim",
    theta: float = 10_000.0,
    fraction: float = 1.0,
    pairs: str = "half",
    scaling: Scaling | None = None,
) -> Value:
    """Rotary embedding on the first ``fraction`` of ``axis``; positions default to those along seq."""
    if positions is None:
        positions = b.positions(x, "seq")
    channels = _channels(fraction, axis, int(x.type.size(axis).constant))
    return b.one(Rotate(axis, float(theta), channels, pairs, scaling=scaling or NONE), x, positions)


def _channels(fraction: float, axis: str, size: int) -> int:
    """How many channels a fraction of an axis is: an even number, as they turn in pairs."""
    share = fraction * size
    near = min(max(2 * round(share / 2), 2), size - size % 2)
    if abs(share - near) < 1e-6 * size:
        return near
    message = f"rotary turns pairs of channels, and fraction {fraction:.6g} of {axis} = {size} is {share:.6g} channels"
    text = f"{near / size:.6g}" if f"{near / size:.6g}" == str(near / size) else f"{near} / {size}"
    mend = f"fraction {text}, which is {near} channels" if near else f"an even {axis}"
    raise TypeProblem("indivisible", message, suggestion=mend)
