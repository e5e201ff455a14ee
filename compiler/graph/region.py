"""Building the body of a repeat: carried values, slices of stacks, state that is written back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.types import TensorType


class Region(Builder):
    """A child builder whose graph becomes a Repeat in the parent when closed."""

    def __init__(
        self,
        parent: Builder,
        trips: int,
        axis: str = "layers",
        reverse: bool = False,
        parallel: bool = False,
        shards: int = 1,
    ) -> None:
        super().__init__(parent)
        self.trips, self.axis, self.reverse, self.parallel, self.shards = trips, axis, reverse, parallel, shards
        self.carries: list[tuple[Value, Value]] = []  # (operand in the parent, argument here)
        self.stacks: list[tuple[Value, Value]] = []
        self.states: list[tuple[Value, Value]] = []
        self._new_states: dict[int, Value] = {}

    def _argument(self, t: TensorType) -> Value:
        from compiler.ops.leaves import Argument

        return self.append(Argument(), (), (t,))[0]

    def carry(self, value: Value) -> Value:
        """The value as it enters each trip; ``close`` takes what it becomes."""
        argument = self._argument(value.type)
        self.carries.append((value, argument))
        return argument

    def stacked(self, stack: Value) -> Value:
        """This trip's slice of a stack [layers, …] of the parent."""
        for known, argument in self.stacks:
            if known.id == stack.id:
                return argument
        argument = self._argument(TensorType(stack.type.axes[1:], stack.type.sizes[1:], stack.type.dtype))
        self.stacks.append((stack, argument))
        return argument

    def state(self, stack: Value) -> Value:
        """This trip's slice of a state stack; ``set_state`` says what it becomes."""
        argument = self._argument(TensorType(stack.type.axes[1:], stack.type.sizes[1:], stack.type.dtype))
        self.states.append((stack, argument))
        return argument

    def save(self) -> tuple[Any, ...]:
        return (*super().save(), list(self.carries), list(self.stacks), list(self.states), dict(self._new_states))

    def restore(self, saved: tuple[Any, ...]) -> None:
        super().restore(saved[:-4])
        carries, stacks, states, new = saved[-4:]
        self.carries, self.stacks, self.states, self._new_states = list(carries), list(stacks), list(states), dict(new)

    def set_state(self, argument: Value, new: Value) -> None:
        self._new_states[argument.id] = new

    def close(
        self, carried: Sequence[Value], outputs: Sequence[tuple[str, Value]] = ()
    ) -> tuple[list[Value], list[Value], list[Value]]:
        """Ends the region. Returns, in the parent: carried results, stacks of ``outputs``, new state stacks."""
        from compiler.ops.control import Repeat

        assert self.parent is not None
        named = [(f"carry{i}", self.use(v)) for i, v in enumerate(carried)]
        named += [(n, self.use(v)) for n, v in outputs]
        named += [(f"state{i}", self.use(self._new_states.get(a.id, a))) for i, (_, a) in enumerate(self.states)]
        # capturing may go on while outputs are named, so the groups are read only now
        captures = [(v, self.captured[v.id]) for v in self.capture_order]
        groups = [self.carries, captures, self.stacks, self.states]
        op = Repeat(
            Graph(tuple(self.nodes), tuple(named), dict(self.names)),
            self.trips,
            carried=len(groups[0]),
            captured=len(groups[1]),
            stacked=len(groups[2]),
            states=len(groups[3]),
            arguments=tuple(a.id for g in groups for _, a in g),
            axis=self.axis,
            reverse=self.reverse,
            parallel=self.parallel,
            shards=self.shards,
        )
        results = list(self.parent.apply(op, *(v for g in groups for v, _ in g)))
        n, m = len(self.carries), len(results) - len(self.states)
        return results[:n], results[n:m], results[m:]
