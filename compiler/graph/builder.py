"""Builds graphs: ``builder.dot(x, w)`` for every registered function, regions for repeats, names and places."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from compiler.errors import Position, Problem, SpecError
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import FUNCTIONS, Op


class Builder:
    """Appends nodes to one graph. A child builder makes a region; values of the parent that the region uses
    become captured operands of the repeat."""

    def __init__(self, parent: Builder | None = None, first_id: int = 0) -> None:
        import compiler.ops.families  # noqa: F401  (fills FUNCTIONS)

        self.parent = parent
        self.nodes: list[Node] = []
        self.names: dict[str, Value] = {}
        self.known: set[int] = set()
        self.captured: dict[int, Value] = {}  # parent's value id -> region argument
        self.capture_order: list[Value] = []
        self.losses: dict[str, Value] = {}  # terms of the training loss by name, each a number a row [batch]
        self._ids: Iterator[int] = parent._ids if parent else itertools.count(first_id)
        self.unrolled: str | None = None  # why a repeat was written out, if one was
        self.path: str = parent.path if parent else ""
        self.position: Position | None = parent.position if parent else None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            fn = FUNCTIONS[name]
        except KeyError:
            raise AttributeError(name) from None
        return lambda *args, **kwargs: fn(self, *args, **kwargs)

    # -- nodes
    def apply(self, op: Op, *operands: Value) -> tuple[Value, ...]:
        """Adds a node. Raises SpecError with the current place when the operands do not fit."""
        ins = tuple(self.use(v) for v in operands)
        try:
            types = op.infer(*(v.type for v in ins))
        except TypeProblem as e:
            where = f"{self.path}: " if self.path else ""
            problem = Problem(e.code, f"{where}{op.name}: {e}", self.position, e.allowed, e.suggestion)
            raise SpecError(problem) from None
        return self.append(op, ins, types)

    def append(self, op: Op, ins: Sequence[Value], types: Sequence[TensorType]) -> tuple[Value, ...]:
        results = tuple(Value(next(self._ids), t) for t in types)
        self.nodes.append(Node(op, tuple(ins), results, self.path, self.position))
        self.known.update(v.id for v in results)
        return results

    def one(self, op: Op, *operands: Value) -> Value:
        return self.apply(op, *operands)[0]

    def use(self, value: Value) -> Value:
        """The value as seen in this graph: captured from the parent where it is the parent's."""
        if value.id in self.known:
            return value
        if value.id in self.captured:
            return self.captured[value.id]
        if self.parent is None:
            raise AssertionError(f"{value} belongs to another graph")
        self.parent.use(value)
        from compiler.ops.leaves import Argument

        (argument,) = self.append(Argument(), (), (value.type,))
        self.captured[value.id] = argument
        self.capture_order.append(value)
        return argument

    # -- trials
    def save(self) -> tuple[Any, ...]:
        """What has been built so far, to come back to with ``restore``."""
        books = self.names, self.known, self.captured, self.capture_order, self.losses
        return len(self.nodes), *(b.copy() for b in books)

    def restore(self, saved: tuple[Any, ...]) -> None:
        del self.nodes[saved[0] :]
        self.names, self.known, self.captured, self.capture_order, self.losses = (b.copy() for b in saved[1:])

    # -- places
    @contextmanager
    def at(self, name: str = "", position: Position | None = None) -> Iterator[None]:
        saved = self.path, self.position
        self.path = f"{self.path}.{name}" if self.path and name else (self.path or name)
        self.position = position or self.position
        try:
            yield
        finally:
            self.path, self.position = saved

    def finish(self, outputs: Sequence[tuple[str, Value]]) -> Graph:
        return Graph(tuple(self.nodes), tuple((n, self.use(v)) for n, v in outputs), dict(self.names))
