"""Commit: writes the accepted part of what verify handed out, and moves the length on."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.region import Region
from compiler.graph.sizes import BATCH
from compiler.graph.types import TensorType
from compiler.ops.leaves import Input, State
from compiler.ops.state import written
from compiler.passes.streaming import STREAM, Pending, stacked


def commit(pendings: Sequence[Pending]) -> Graph:
    """The graph whose inputs are the pendings and ``valid``, the accepted positions of each row."""
    b = Builder()
    rows = TensorType.make([("batch", BATCH)], "int32")
    start = b.append(State("length", "length"), (), (rows,))[0]
    valid = b.append(Input("valid"), (), (rows,))[0]

    def write(b: Builder, p: Pending, state: Value, new: Sequence[Value], trips: Sequence[tuple[str, int]]) -> Value:
        if not trips:
            return written(b, p.write, STREAM, state, new, (start, valid))
        axis, count = trips[0]
        region = Region(b, count, axis)
        old, fresh = region.state(state), [region.stacked(v) for v in new]
        region.set_state(old, write(region, p, old, fresh, trips[1:]))
        return region.close([])[2][0]

    outputs: list[tuple[str, Value]] = []
    for p in pendings:
        state = b.append(State(p.label, p.kind), (), (stacked(p.state, p.trips),))[0]
        types = [stacked(t, p.trips) for t in p.values]
        new = [b.append(Input(name), (), (t,))[0] for name, t in zip(p.names, types, strict=True)]
        outputs.append((f"state:{p.label}", write(b, p, state, new, p.trips)))
    outputs.append(("state:length", b.add(start, valid)))
    return b.finish(outputs)
