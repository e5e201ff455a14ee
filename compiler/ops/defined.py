"""Ops that a program over other ops defines. They stand in graphs without a phase only, as what keeps a state of its
own shape: a phase begins by writing the program out, or by ``Op.stream``. Everything else follows from the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.graph.ir import Graph, Value
from compiler.graph.types import TensorType
from compiler.ops.contract import Cost, Op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@dataclass(frozen=True)
class Defined(Op):
    """``program`` says what it computes."""

    def program(self, b: Builder, *ins: Value) -> tuple[Value, ...]:
        raise NotImplementedError(self.name)

    def written_out(self, ins: Sequence[TensorType]) -> Graph:
        """The program as a graph: inputs "0", "1", …, outputs by number. Raises TypeProblem."""
        from compiler.errors import SpecError
        from compiler.graph.builder import Builder
        from compiler.graph.types import TypeProblem
        from compiler.ops.leaves import Input

        b = Builder()
        values = [b.append(Input(str(i)), (), (t,))[0] for i, t in enumerate(ins)]
        try:
            return b.finish([(str(i), v) for i, v in enumerate(self.program(b, *values))])
        except SpecError as e:
            (problem,) = e.problems
            raise TypeProblem(problem.code, problem.message, problem.allowed, problem.suggestion) from None

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return tuple(v.type for _, v in self.written_out(ins).outputs)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        total = Cost()
        for node in self.written_out(ins).nodes:
            total = total + node.op.cost([v.type for v in node.operands], [v.type for v in node.results])
        return total

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        from compiler.passes.differentiate import Backward, is_float, recompute, spread

        start = len(b.nodes)
        made = self.program(b, *ins)
        nodes = b.nodes[start:]
        active = {b.use(v).id for v in ins if is_float(v)}
        spread(nodes, active)
        back = Backward(b, active, recompute)
        for value, g in zip(made, grads, strict=True):
            if g is not None:
                back.add(value, g)
        back.walk(nodes)
        return tuple(back.grads.get(b.use(v).id) for v in ins)
