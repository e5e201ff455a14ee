"""Sinusoidal positions (arXiv:1706.03762, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size, SizeLike
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Sinusoid(Op):
    """Sines and cosines of integer positions times theta ** (-2 i / size) along a new last ``axis``, float32.
    ``pairs``: "interleaved" has the sines at 2i and the cosines at 2i + 1 (the paper), "half" all sines, then all
    cosines. Exact at any position below 2**31."""

    name: ClassVar[str] = "sinusoid"
    axis: str = "embed"
    size: Size = Size.of(2)
    theta: float = 10_000.0
    pairs: str = "half"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        (positions,) = ins
        if not positions.dtype.startswith("int"):
            raise TypeProblem("dtype-mismatch", f"positions must be integers, found {positions.dtype}")
        if self.size.constant % 2:
            raise TypeProblem("indivisible", f"sines and cosines come in pairs, found {self.axis} = {self.size}")
        return (TensorType.make([*positions.pairs, (self.axis, self.size)], "float32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, transcendental=outs[0].elements)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return (None,)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL


@function
def sinusoid(
    b: Builder,
    positions: Value,
    axis: str = "embed",
    size: SizeLike = 2,
    *,
    theta: float = 10_000.0,
    pairs: str = "half",
) -> Value:
    """Sines and cosines of positions along a new last axis; float32."""
    return b.one(Sinusoid(axis, Size.of(size), float(theta), pairs), positions)
