"""Which positions count: all, save in a training step, where some are left out at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.types import TensorType
from compiler.ops.contract import Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Kept(Op):
    """x [batch, …, axis, …] -> [batch, axis], int32: 1 for each position that counts, which is every one but in a
    training step, where a share of them is 0 at random, anew at each step (compiler/passes/dropout.py)."""

    name: ClassVar[str] = "kept"
    differentiable: ClassVar[bool] = False
    axis: str = "seq"
    rate: float = 0.0  # the share that is left out

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        pairs = [("batch", ins[0].size("batch")), (self.axis, ins[0].size(self.axis))]
        return (TensorType.make(pairs, "int32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved((), outs)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return (None,)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.PARALLEL if axis in ("batch", self.axis) else Role.WHOLE


@function
def kept(b: Builder, x: Value, axis: str, rate: float = 0.0) -> Value:
    """1 for each position of x along ``axis`` that counts, 0 for a share ``rate`` of them in a training step: [batch,
    axis], int32."""
    made: Value = b.one(Kept(axis, float(rate)), x)
    return made
