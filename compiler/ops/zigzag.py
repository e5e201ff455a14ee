"""Ring attention whose shards all have as much to do under a causal mask.

A shard that holds the first positions has seen all its keys after one step of the ring, the last shard after all of
them. So each gets one early and one late half of a shard, halves i and 2n - 1 - i of the 2n, and does the same two
half-by-half products in every step: its late queries on the early keys that come by, which always lie before them;
and, where these keys come from a shard before it, its early queries on the early keys, else its late queries on the
late keys. Over all steps that is (2n + 1) / 4 runs of a shard's own attention in place of n. (The arrangement is that
of Llama 3's context parallelism, arXiv:2407.21783, section 3.3.2.)

Only attention is arranged like this: recurrences and shifts need neighbours. Halves are exchanged on the way in and
out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler.graph.ir import Value
from compiler.graph.types import TensorType
from compiler.ops.collective import Permute
from compiler.ops.leaves import Constant
from compiler.ops.ring import together
from compiler.ops.shards import FLOPS_A_BYTE, SHARDS, edge, joined, parts, to_next

TILE = 512  # queries and keys of a tile of blocked attention: smaller halves are one
ALWAYS = False  # for tests: also where it costs more than it saves


def runs(shards: int) -> float:
    """A shard's products in all steps, in runs of attention on its own part."""
    return (2 * shards + 1) / 4


def pays(op: Any, shards: int, q: TensorType, k: TensorType, v: TensorType) -> bool:
    """Whether what is no longer computed takes longer than the halves' way in and out. Types of the whole, in
    numbers."""
    if not op.causal or op.window is not None or op.queries != op.keys or op.offset:
        return False
    length, rest = divmod(int(q.size(op.queries).constant), shards)
    if rest or length % 2:
        return False
    heads, kv = int(q.size(op.heads).constant), int(k.size(op.kv_heads).constant)
    width = int(q.size(op.dim).constant) + int(v.sizes[-1].constant)
    saved = (shards - runs(shards)) * length**2 * heads * width * 2
    moved = length * (heads + kv) * width * int(q.bytes.constant) / int(q.elements.constant)
    return ALWAYS or saved / FLOPS_A_BYTE > moved


class _Zigzag:
    def __init__(self, b: Any, op: Any, shards: int, like: Value) -> None:
        self.b, self.shards = b, shards
        self.half = b.size(like.type, op.queries) // shards // 2
        # tiles of blocked attention would be padded where a half is less than one
        self.own = dataclasses.replace(op, implementation="plain") if self.half <= TILE else op
        self.other = dataclasses.replace(self.own, causal=False)
        flat = TensorType.make([(SHARDS, shards)], "bool")
        self.even = b.append(Constant(tuple(i % 2 == 0 for i in range(shards))), (), (flat,))[0]
        rows = TensorType.make([("batch", like.type.size("batch")), (SHARDS, shards)], "int32")
        self.me = b.own(b.numbered(rows, SHARDS))
        home = [i if i < shards else 2 * shards - 1 - i for i in range(2 * shards)]  # of each half
        self.low = Permute((b.mesh_axis,), shards, to=tuple(home[::2]))
        self.high = Permute((b.mesh_axis,), shards, to=tuple(home[1::2]))

    def pick(self, condition: Value, x: Value, y: Value) -> Value:
        return self.b.arrange(self.b.select(condition, x, y), x.axes)

    def apart(self, x: Value, axis: str) -> tuple[Value, Value]:
        """[.., axis, ..] as each shard's early and late half [.., shards, axis, ..]."""
        b, inner = self.b, parts(self.b, x, axis, self.shards)
        low = b.collective(self.low, edge(b, inner, axis, self.half, last=False))
        high = b.collective(self.high, edge(b, inner, axis, self.half, last=True))
        return self.pick(self.even, low, high), self.pick(self.even, high, low)

    def back(self, early: Value, late: Value, axis: str, like: Value) -> Value:
        """The way back, typed as ``like``."""
        b = self.b
        early, late = (b.cast(x, like.type.dtype) for x in (early, late))
        low = b.collective(self.low.back(), self.pick(self.even, early, late))
        high = b.collective(self.high.back(), self.pick(self.even, late, early))
        return joined(b, b.concat(low, high, axis=axis), axis, like)

    def halves(self, x: Value, axis: str) -> tuple[Value, Value]:
        return edge(self.b, x, axis, self.half, last=False), edge(self.b, x, axis, self.half, last=True)

    def before(self, source: Value) -> Value:
        """[batch, shards]: whether the keys here come from a shard before one's own."""
        return self.b.greater(source, self.b.constant(-1, "int32"))

    def loop(self, carried: Sequence[Value], step: Any) -> list[Value]:
        return self.b.loop(self.shards - 1, carried, step) if self.shards > 2 else list(step(*carried))

    def next(self, *xs: Value) -> list[Value]:
        return [to_next(self.b, x, 1, self.shards, True) for x in xs]


def attend(b: Any, op: Any, ins: Sequence[Value], shards: int) -> tuple[Value, Value]:
    """Output and log-sums."""
    z, axis = _Zigzag(b, op, shards, ins[0]), op.queries
    (q0, q1), (k0, k1), (v0, v1) = (z.apart(x, axis) for x in ins[:3])

    def seen(inner: Any, q: Value, k: Value, v: Value) -> tuple[Value, Value]:
        out, sums = b.apply(inner, q, k, v)
        return b.cast(out, "float32"), sums

    out0, sums0 = seen(z.own, q0, k0, v0)
    out1, sums1 = together(b, *seen(z.own, q1, k1, v1), *seen(z.other, q1, k0, v0))

    def step(k: Value, v: Value, source: Value, o0: Value, s0: Value, o1: Value, s1: Value) -> list[Value]:
        k, v = z.next(k, v)
        source = b.sub(source, 1)
        (k0, k1), (v0, v1), before = z.halves(k, axis), z.halves(v, axis), z.before(source)
        o1, s1 = together(b, o1, s1, *seen(z.other, q1, k0, v0))
        new = seen(z.other, z.pick(before, q0, q1), z.pick(before, k0, k1), z.pick(before, v0, v1))
        o, s = together(b, z.pick(before, o0, o1), z.pick(before, s0, s1), *new)
        o0, s0 = z.pick(before, o, o0), z.pick(before, s, s0)
        o1, s1 = z.pick(before, o1, o), z.pick(before, s1, s)
        return [k, v, source, o0, s0, o1, s1]

    k, v = b.concat(k0, k1, axis=axis), b.concat(v0, v1, axis=axis)
    out0, sums0, out1, sums1 = z.loop([k, v, z.me, out0, sums0, out1, sums1], step)[3:]
    out, sums = op.infer(*(x.type for x in ins[:3]))
    return z.back(out0, out1, axis, Value(-1, out)), z.back(sums0, sums1, axis, Value(-1, sums))


def attend_gradient(b: Any, op: Any, ins: Sequence[Value], shards: int) -> tuple[Value, Value, Value]:
    """Cotangents of queries, keys and values."""
    z, axis = _Zigzag(b, op, shards, ins[0]), op.queries
    (q0, q1), (k0, k1), (v0, v1), (o0, o1), (s0, s1), (g0, g1) = (z.apart(x, axis) for x in ins[:6])

    def ways(inner: Any, q: Value, k: Value, v: Value, out: Value, sums: Value, g: Value) -> list[Value]:
        return [b.cast(x, "float32") for x in b.apply(inner, q, k, v, out, sums, g)]

    dq0, dk0, dv0 = ways(z.own, q0, k0, v0, o0, s0, g0)
    dq1, dk1, dv1 = ways(z.own, q1, k1, v1, o1, s1, g1)
    found = zip((dq1, dk0, dv0), ways(z.other, q1, k0, v0, o1, s1, g1), strict=True)
    dq1, dk0, dv0 = (b.add(x, y) for x, y in found)

    def step(k: Value, v: Value, source: Value, dk: Value, dv: Value, dq0: Value, dq1: Value) -> list[Value]:
        k, v, dk, dv = z.next(k, v, dk, dv)
        source = b.sub(source, 1)
        (k0, k1), (v0, v1), before = z.halves(k, axis), z.halves(v, axis), z.before(source)
        more, early_k, early_v = ways(z.other, q1, k0, v0, o1, s1, g1)
        dq1 = b.add(dq1, more)
        mine = [z.pick(before, x, y) for x, y in ((q0, q1), (k0, k1), (v0, v1), (o0, o1), (s0, s1), (g0, g1))]
        more, more_k, more_v = ways(z.other, *mine)
        nothing = b.constant(0.0, "float32")
        dq0 = b.add(dq0, z.pick(before, more, b.expand(nothing, more.type.pairs)))
        dq1 = b.add(dq1, z.pick(before, b.expand(nothing, more.type.pairs), more))
        both = []
        for early, new in ((early_k, more_k), (early_v, more_v)):
            none = b.expand(nothing, new.type.pairs)
            late = z.pick(before, none, new)
            both.append(b.concat(b.add(early, z.pick(before, new, none)), late, axis=axis))
        return [k, v, source, b.add(dk, both[0]), b.add(dv, both[1]), dq0, dq1]

    k, v, dk, dv = (b.concat(x, y, axis=axis) for x, y in ((k0, k1), (v0, v1), (dk0, dk1), (dv0, dv1)))
    dk, dv, dq0, dq1 = z.loop([k, v, z.me, dk, dv, dq0, dq1], step)[3:]
    dk, dv = z.next(b.cast(dk, ins[1].type.dtype), b.cast(dv, ins[2].type.dtype))  # home
    made = [(dq0, dq1), z.halves(dk, axis), z.halves(dv, axis)]
    back = [z.back(early, late, axis, like) for (early, late), like in zip(made, ins, strict=False)]
    return back[0], back[1], back[2]
