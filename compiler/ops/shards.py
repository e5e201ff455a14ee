"""Programs over the shards of an axis, for ops that look beyond their own: halos and carries passed on.

``b`` is the partition pass's builder (compiler/passes/across.py). An axis is split in [shards, axis]; what is done
along ``axis`` stays on a shard, and only what is done along ``shards`` moves data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.ops.collective import Permute

# What a device does in the time in which it sends a byte, in round numbers: 200 TFLOP/s and 1 TB/s of memory
# against 100 GB/s of links. Only to choose between doing work on every shard and sending its result.
FLOPS_A_BYTE = 2000
MEMORY_A_BYTE = 10
SHARDS = "shards"
CARRIES = "carries"  # the same axis once every shard has all of it


def parts(b: Any, x: Value, axis: str, shards: int) -> Value:
    """x [.., axis, ..] as [.., shards, axis, ..]."""
    from compiler.ops.shape import Split

    size = x.type.size(axis) // shards
    return b.one(Split(axis, (SHARDS, axis), (Size.of(shards), size)), x)


def joined(b: Any, x: Value, axis: str, like: Value) -> Value:
    """The way back, typed as ``like``."""
    from compiler.ops.shape import Merge

    return b.one(Merge((SHARDS, axis), axis, like.type.size(axis)), x)


def edge(b: Any, x: Value, axis: str, size: Any, last: bool) -> Value:
    """The first or last entries of each shard."""
    return b.slice(x, axis, x.type.size(axis) - size if last else 0, size)


def to_next(b: Any, x: Value, by: int, shards: int, wrap: bool = False) -> Value:
    """Each shard's value ``by`` shards further along."""
    return b.collective(Permute((b.mesh_axis,), shards, by, wrap), x)


def shift(b: Any, x: Value, axis: str, by: int, shards: int, wrap: bool = False) -> Value:
    """Entries moved along a sharded axis: a shard's edge goes to its neighbour."""
    from compiler.ops.recurrence import Shift

    if abs(by) > b.size(x.type, axis) // shards:
        return b.one(Shift(axis, by, wrap), b.whole(x, axis))
    inner = parts(b, x, axis, shards)
    halo = to_next(b, edge(b, inner, axis, abs(by), last=by > 0), 1 if by > 0 else -1, shards, wrap)
    rest = b.slice(inner, axis, 0 if by > 0 else -by, inner.type.size(axis) - abs(by))
    return joined(b, b.concat(*((halo, rest) if by > 0 else (rest, halo)), axis=axis), axis, x)


def short_conv(b: Any, op: Any, ins: Sequence[Value], shards: int) -> Value:
    """A short convolution along a sharded axis: each shard's last inputs are the tail of the next."""
    x, kernel = ins
    taps = int(kernel.type.size(op.taps).constant) - 1
    if taps > b.size(x.type, op.axis) // shards:
        return b.one(op, b.whole(x, op.axis), kernel)
    inner = parts(b, x, op.axis, shards)
    if taps == 0:
        return joined(b, b.one(op, inner, kernel), op.axis, x)
    halo = to_next(b, edge(b, inner, op.axis, taps, last=not op.reverse), -1 if op.reverse else 1, shards)
    return joined(b, b.one(op, inner, kernel, b.rename(halo, **{op.axis: "taps"})), op.axis, x)


def recur(b: Any, op: Any, ins: Sequence[Value], shards: int) -> Value:
    """A recurrence along a sharded axis: each shard runs from zero, the ends and decays of all are gathered and
    combined, and each runs again from the state that reaches it."""
    from compiler.ops.recurrence import Recur

    value, decay = (parts(b, x, op.axis, shards) for x in ins[:2])
    alone = b.one(op, value, decay)
    ends = b.reduce(edge(b, alone, op.axis, 1, last=not op.reverse), "sum", (op.axis,))
    decays = b.reduce(b.cast(decay, "float32"), "sum", (op.axis,))
    ends, decays = (b.rename(b.whole(x, SHARDS), **{SHARDS: CARRIES}) for x in (ends, decays))
    reached = b.one(Recur(CARRIES, op.reverse, "associative"), ends, decays, *ins[2:])
    entering = b.shift(reached, CARRIES, -1 if op.reverse else 1)
    if len(ins) > 2:
        entering = b.first(entering, ins[2], CARRIES, op.reverse)
    return joined(b, b.one(op, value, decay, b.rename(entering, **{CARRIES: SHARDS})), op.axis, ins[0])


def linear_attend(b: Any, op: Any, ins: Sequence[Value], shards: int) -> tuple[Value, ...]:
    """Linear attention along a sharded axis, as ``recur``: what each shard's positions write into an empty state and
    how far they let a state decay are gathered and combined, and each runs from the state that reaches it."""
    from compiler.ops.linear_attend import WRITING
    from compiler.ops.recurrence import Recur

    given = dict(zip(op.given, ins, strict=True))
    inner = {n: parts(b, x, op.axis, shards) if op.axis in x.axes else x for n, x in given.items()}
    writing = tuple(n for n in op.given if n in WRITING)
    alone = dataclasses.replace(op, given=writing, ends=True)
    ends = b.one(alone, *(inner[n] for n in writing))
    if "log_decay" in inner:
        decays = b.reduce(b.cast(inner["log_decay"], "float32"), "sum", (op.axis,))
    else:
        decays = b.constant(0.0, "float32")
    missing = [(a, s) for a, s in ends.type.pairs if a not in decays.axes]
    decays = b.arrange(b.expand(decays, missing), ends.axes)
    ends, decays = (b.rename(b.whole(x, SHARDS), **{SHARDS: CARRIES}) for x in (ends, decays))
    before = [b.arrange(given["state"], ends.type.drop(CARRIES).axes)] if "state" in given else []
    reached = b.one(Recur(CARRIES, False, "associative"), ends, decays, *before)
    entering = b.shift(reached, CARRIES, 1)
    if before:
        entering = b.first(entering, before[0], CARRIES, False)
    entering = b.rename(entering, **{CARRIES: SHARDS})
    made = []
    if "query" in given:
        rest = tuple(n for n in op.given if n != "state")
        run = dataclasses.replace(op, given=(*rest, "state"), ends=False)
        made.append(joined(b, b.one(run, *(inner[n] for n in rest), entering), op.axis, given["value"]))
    if op.ends:
        made.append(b.reduce(b.slice(reached, CARRIES, shards - 1, 1), "sum", (CARRIES,)))
    return tuple(made)
