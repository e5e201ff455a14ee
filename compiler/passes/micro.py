"""What the schedules of a pipeline share: micro-batches of a batch, and a graph on one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.graph.builder import Builder
from compiler.graph.ir import Node, Value
from compiler.graph.replay import Replay
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.control import Repeat
from compiler.ops.leaves import Constant, Leaf
from compiler.ops.shape import Split

MICRO = "micro"
STAGES, TICKS = "stages", "ticks"


def micro_batches(b: Builder, v: Value, count: int) -> Value:
    """[.., batch, ..] as [micro, .., batch, ..]. Rows go to micro-batches in turns, so a sharded batch stays where it
    is."""
    parts = b.one(Split("batch", ("batch", MICRO), (v.type.size("batch") // count, Size.of(count))), v)
    return b.arrange(parts, (MICRO, *v.axes))


def micro_rows(t: TensorType, count: int) -> TensorType:
    """The type of one micro-batch."""
    return t.resize("batch", t.size("batch") // count)


def staged(t: TensorType, stages: int) -> TensorType:
    """The type of one such value a stage."""
    return TensorType.make([(STAGES, stages), *t.pairs], t.dtype)


def numbers(b: Builder, values: Sequence[Any], axis: str, dtype: str) -> Value:
    """Constants along an axis."""
    return b.append(Constant(tuple(values)), (), (TensorType.make([(axis, len(values))], dtype),))[0]


class Resized(Replay):
    """Replays with other sizes in place of symbols."""

    def __init__(self, env: Mapping[str, Size], b: Builder) -> None:
        super().__init__(b)
        self.env = env

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        if isinstance(node.op, Repeat):
            return None
        op = resized(node.op, self.env)
        if isinstance(op, Leaf):
            return self.b.append(op, (), tuple(resized_type(v.type, self.env) for v in node.results))
        return self.b.apply(op, *ins)


def resized(op: Any, env: Mapping[str, Size]) -> Any:
    """The op with ``env`` in the sizes that it names."""

    def new(x: Any) -> Any:
        if isinstance(x, Size):
            return x.substitute(env)
        return tuple(new(part) for part in x) if isinstance(x, tuple) else x

    found = {f.name: new(getattr(op, f.name)) for f in dataclasses.fields(op)}
    changed = {name: value for name, value in found.items() if value != getattr(op, name)}
    return dataclasses.replace(op, **changed) if changed else op


def resized_type(t: TensorType, env: Mapping[str, Size]) -> TensorType:
    return TensorType(t.axes, tuple(s.substitute(env) for s in t.sizes), t.dtype)
