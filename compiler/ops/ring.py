"""Attention over a sharded sequence: keys travel round the shards, what has been seen is kept with its log-sums.

Ring attention, arXiv:2310.01889; the way back carries the cotangents of keys and values with them, as the forward
carries keys and values. With a window only as many shards are visited as it reaches. Without one a causal mask leaves
the first shards idle: compiler/ops/zigzag.py shares out the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler.graph.ir import Value
from compiler.graph.sizes import ZERO, Size
from compiler.graph.types import TensorType
from compiler.ops.shards import SHARDS, joined, parts, to_next


def steps(op: Any, length: int, shards: int) -> int:
    """How many shards further back the window reaches."""
    if op.window is None or not op.causal:
        return shards - 1
    return int(min(shards - 1, max(0, -(-(op.window - 1) // length))))


class _Ring:
    """What both ways share: which shard's keys are here at a step, and how many of them count."""

    def __init__(self, b: Any, op: Any, shards: int, keys: Value, lengths: Value | None) -> None:
        self.b, self.op, self.shards, self.lengths = b, op, shards, lengths
        self.length = b.size(keys.type, op.keys) // shards
        self.steps = steps(op, self.length, shards)
        rows = TensorType.make([("batch", keys.type.size("batch")), (SHARDS, shards)], "int32")
        self.own = b.own(b.numbered(rows, SHARDS))

    def valid(self, source: Value) -> Value | None:
        """Of the keys that come from shard ``source`` [batch, shards], how many each row sees. A source below 0 is
        a shard behind the query's own end of a causal mask; it wraps round where there is no such mask."""
        b, length = self.b, self.b.constant(self.length, "int32")
        if self.op.causal:
            return b.select(b.greater(b.constant(0, "int32"), source), b.constant(0, "int32"), length)
        if self.lengths is None:
            return None
        wrapped = b.select(b.greater(b.constant(0, "int32"), source), b.add(source, self.shards), source)
        left = b.arrange(b.sub(self.lengths, b.mul(wrapped, length)), source.axes)
        return b.min(b.max(left, b.constant(0, "int32")), length)

    def behind(self, step: int | None) -> Any:
        """The op on keys that come from ``step`` shards back (None: from any, where no window looks at how far)."""
        offset = (step or 0) * self.length
        return dataclasses.replace(self.op, causal=False, offset=offset) if self.op.causal else self.op

    def operands(self, valid: Value | None) -> list[Value]:
        return [] if valid is None else [valid]


def sent(op: Any, shards: int, tensors: Sequence[TensorType]) -> Size:
    """Bytes that a shard sends of what travels round, from the types of a shard."""
    length = tensors[0].size(op.keys)
    count = steps(op, int(length.constant), shards) if length.is_constant else shards - 1
    return sum((t.bytes for t in tensors), ZERO) * count


def attend(b: Any, op: Any, ins: Sequence[Value], shards: int) -> tuple[Value, Value]:
    """Output and log-sums."""
    q, k, v = (parts(b, x, axis, shards) for x, axis in zip(ins, (op.queries, op.keys, op.keys), strict=False))
    ring = _Ring(b, op, shards, ins[1], ins[3] if len(ins) > 3 else None)
    first = [] if op.causal else ring.operands(ring.valid(ring.own))
    out, sums = b.apply(op, q, k, v, *first)
    out = b.cast(out, "float32")

    def step(inner: Any, k: Value, v: Value, source: Value, out: Value, sums: Value) -> list[Value]:
        k, v, source = to_next(b, k, 1, shards, True), to_next(b, v, 1, shards, True), b.sub(source, 1)
        new, seen = b.apply(inner, q, k, v, *ring.operands(ring.valid(source)))
        out, sums = together(b, out, sums, b.cast(new, "float32"), seen)
        return [k, v, source, out, sums]

    carried = [k, v, ring.own, out, sums]
    if op.window is None and ring.steps > 1:
        carried = b.loop(ring.steps, carried, lambda *c: step(ring.behind(None), *c))
    else:
        for i in range(ring.steps):
            carried = step(ring.behind(i + 1), *carried)
    out, sums = carried[3:]
    like = ins[0]
    return joined(b, b.cast(out, like.type.dtype), op.queries, like), joined(b, sums, op.queries, like)


def together(b: Any, out: Value, sums: Value, new: Value, seen: Value) -> tuple[Value, Value]:
    """Two outputs over other keys as one."""
    top = b.max(sums, seen)
    mine, theirs = b.exp(b.sub(sums, top)), b.exp(b.sub(seen, top))
    total = b.add(mine, theirs)
    mixed = b.div(b.add(b.mul(out, mine), b.mul(new, theirs)), total)
    return b.arrange(mixed, out.axes), b.add(top, b.log(total))


def attend_gradient(b: Any, op: Any, ins: Sequence[Value], shards: int) -> tuple[Value, Value, Value]:
    """Cotangents of queries, keys and values."""
    axes = (op.queries, op.keys, op.keys, op.queries, op.queries, op.queries)
    q, k, v, out, sums, g = (parts(b, x, axis, shards) for x, axis in zip(ins, axes, strict=False))
    ring = _Ring(b, op, shards, ins[1], ins[6] if len(ins) > 6 else None)

    def back(inner: Any, k: Value, v: Value, valid: list[Value]) -> list[Value]:
        return [b.cast(x, "float32") for x in b.apply(inner, q, k, v, out, sums, g, *valid)]

    dq, dk, dv = back(op, k, v, [] if op.causal else ring.operands(ring.valid(ring.own)))

    def step(inner: Any, k: Value, v: Value, source: Value, dq: Value, dk: Value, dv: Value) -> list[Value]:
        k, v, dk, dv = (to_next(b, x, 1, shards, True) for x in (k, v, dk, dv))
        source = b.sub(source, 1)
        more = back(inner, k, v, ring.operands(ring.valid(source)))
        return [k, v, source, *(b.add(x, y) for x, y in zip((dq, dk, dv), more, strict=True))]

    carried = [k, v, ring.own, dq, dk, dv]
    if op.window is None and ring.steps > 1:
        carried = b.loop(ring.steps, carried, lambda *c: step(ring.behind(None), *c))
    else:
        for i in range(ring.steps):
            carried = step(ring.behind(i + 1), *carried)
    dq, dk, dv = (b.cast(x, like.type.dtype) for x, like in zip(carried[3:], ins, strict=False))
    if ring.steps:  # home
        dk, dv = (to_next(b, x, shards - ring.steps, shards, True) for x in (dk, dv))
    made = tuple(joined(b, x, axis, like) for x, like, axis in zip((dq, dk, dv), ins, axes, strict=False))
    return made[0], made[1], made[2]


def over_slots(b: Any, op: Any, ins: Sequence[Value], shards: int) -> tuple[Value, Value]:
    """Attention over a cache whose slots are sharded: each shard sees its own, the outputs are added by the weights
    that their log-sums give them (as in arXiv:2311.01282), and this call's own keys are one part more."""
    from compiler.ops.attention import Attend

    fields = op.attributes()
    out, sums = b.apply(dataclasses.replace(op, slot_axes=(b.mesh_axis,), parts=shards), *ins)
    own = "plain" if op.implementation in ("streamed", "doubled") else op.implementation
    mine, own_sums = b.apply(Attend(**{**fields, "implementation": own}), *ins[:3], *ins[6:])
    top = b.max(b.reduce(sums, "max", (SHARDS,)), own_sums)
    weights, own_weight = b.exp(b.sub(sums, top)), b.exp(b.sub(own_sums, top))
    total = b.add(b.reduce(weights, "sum", (SHARDS,)), own_weight)
    mixed = b.reduce(b.mul(b.cast(out, "float32"), weights), "sum", (SHARDS,))
    mixed = b.div(b.add(mixed, b.mul(b.cast(mine, "float32"), own_weight)), total)
    return b.cast(b.arrange(mixed, mine.axes), mine.type.dtype), b.arrange(b.add(top, b.log(total)), own_sums.axes)
