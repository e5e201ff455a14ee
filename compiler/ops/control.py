"""The repeat: a region that runs once a layer, lowered to a scan so that nothing grows with depth. A parallel one has
trips that know nothing of each other (stages of a pipeline): they may run at the same time on shards of a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Graph, Value
from compiler.graph.sizes import ONE, Size, SizeLike
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@op
@dataclass(frozen=True)
class Repeat(Op):
    """Runs ``body`` ``trips`` times. Operands: carried values, captured values, stacks (one slice a trip), state
    stacks (one slice a trip, written back). Results: carried values, stacked outputs, state stacks.
    ``arguments`` are the ids of the body's arguments in operand order."""

    name: ClassVar[str] = "repeat"
    body: Graph = Graph((), ())
    trips: int = 1
    carried: int = 1
    captured: int = 0
    stacked: int = 0
    states: int = 0
    arguments: tuple[int, ...] = ()
    axis: str = "layers"
    reverse: bool = False  # from the last slice of every stack to the first
    parallel: bool = False  # nothing is carried, no state: stacks may be sharded along ``axis``
    shards: int = 1  # over how many shards a parallel one's trips are divided

    @property
    def region(self) -> Graph:
        return self.body

    @property
    def times(self) -> SizeLike:
        """Trips of one device."""
        return self.trips // self.shards

    def parts(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Operands (or arguments) by group: carried, captured, stacked, states."""
        a, b = self.carried, self.carried + self.captured
        c = b + self.stacked
        return list(operands[:a]), list(operands[a:b]), list(operands[b:c]), list(operands[c:])

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        outs = [v.type for _, v in self.body.outputs]
        carried, _, stacked, states = self.parts(ins)
        for i, t in enumerate(carried):
            if t != outs[i]:
                raise TypeProblem("axis-mismatch", f"a repeated layer turns {t} into {outs[i]}")
        for t in (*stacked, *states):
            if t.axes[0] != self.axis or t.sizes[0] != self.trips:
                raise TypeProblem("axis-mismatch", f"a stack {t} does not have {self.axis}={self.trips} in front")
        ys = outs[self.carried : len(outs) - self.states]
        stacks = [TensorType.make([(self.axis, Size.of(self.trips)), *t.pairs], t.dtype) for t in ys]
        return (*carried, *stacks, *states)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        """The body's cost is counted by walking it; the repeat itself adds nothing."""
        return Cost()

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        from compiler.passes.differentiate import repeat_gradient

        return repeat_gradient(self, b, ins, outs, grads)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        raise AssertionError("a region is asked node by node")


def unstack(t: TensorType) -> TensorType:
    """The type of one slice of a stack."""
    return TensorType(t.axes[1:], t.sizes[1:], t.dtype)


def stack(t: TensorType, trips: SizeLike, axis: str = "layers") -> TensorType:
    return TensorType((axis, *t.axes), (ONE * trips, *t.sizes), t.dtype)
