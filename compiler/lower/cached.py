"""Attention over a cache besides this call's own keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node, Value
from compiler.lower import attention
from compiler.lower.attention import (
    NEGATIVE,
    Carry,
    Keys,
    Rows,
    Source,
    back,
    finish,
    fold,
    laid_out,
    nothing,
    rows_of,
    scores_of,
    softmax,
    unfinished,
    weighted,
)
from compiler.lower.basic import align
from compiler.lower.bias import Tile
from compiler.lower.registry import Array, Context, StackSlot, lowers, read
from compiler.ops.attention import AttendCached, _Attention
from compiler.ops.state import slots_of, slots_together


def slot_positions(start: Array, index: Array, slots: int) -> Array:
    """Which position the slots ``index`` hold [batch, index]: the last one before ``start`` that falls there, or
    below 0."""
    last = start[:, None] - 1
    return last - (last - index) % slots


@dataclass
class Cached:
    """A cache of one layer; ``axes`` as it lies."""

    state: Any  # an array, or a StackSlot
    axes: tuple[str, ...]
    order: tuple[str, ...]  # [batch, kv, slots, d]
    slots: int
    together: int  # slots of a row, where it is packed
    inner: tuple[int, int]  # heads, and their width

    @property
    def packed(self) -> bool:
        return "lanes" in self.axes

    @property
    def tile(self) -> int:
        """Slots of one tile: at most an eighth of the cache where that is not tiny; a divisor of it if there is one
        near."""
        most = min(attention.BLOCK, max(64, self.slots // 8), self.slots) // self.together * self.together
        sizes = range(most, most // 2, -self.together)
        return next((d for d in sizes if self.slots % d == 0), most)

    def read(self, at: Array, dtype: Any, tile: int) -> Array:
        """``tile`` slots from ``at`` on, [batch, kv, slots, d]; of a packed cache both are whole rows."""
        stack, index = (self.state.stack, self.state.index) if isinstance(self.state, StackSlot) else (self.state, ())
        shape = list(stack.shape[len(index) :])
        starts: list[Any] = [jnp.zeros((), jnp.int32)] * len(shape)
        where = self.axes.index("slot_rows" if self.packed else "slots")
        shape[where], starts[where] = tile // self.together, at // self.together
        part = jax.lax.dynamic_slice(stack, (*index, *starts), (*[1] * len(index), *shape)).reshape(shape)
        return self._apart(part).astype(dtype)

    def whole(self, dtype: Any) -> Array:
        return self._apart(read(self.state)).astype(dtype)

    def rows(self, dtype: Any) -> Array:
        """A packed cache as it lies, [batch, slot_rows, lanes]."""
        found = read(self.state)
        return found.reshape(found.shape[0], *found.shape[-2:]).astype(dtype)

    def _apart(self, part: Array) -> Array:
        if not self.packed:
            return align(part, self.axes, self.order)
        return jnp.moveaxis(part.reshape(part.shape[0], -1, *self.inner), 1, 2)


@dataclass
class Stored:
    """Keys and values that blocked attention reads where they lie, without a copy of a layer's slice."""

    keys: Cached
    values: Cached
    start: Array
    dtype: Any
    own: bool = False

    @property
    def size(self) -> int:
        return self.keys.slots

    @property
    def width(self) -> int:
        return self.values.inner[1]

    @property
    def around(self) -> int:
        return self.keys.slots

    def tiles(self, block: int) -> Callable[[Array], Keys]:
        tile = min(block, self.size)

        def cut(at: Array) -> Keys:
            first = jnp.minimum(at, self.size - tile)  # the last tile may lie over the one before
            index = first + jnp.arange(tile)
            held = jnp.where(index >= at, slot_positions(self.start, index, self.size), -1)
            k, v = self.keys.read(first, self.dtype, tile), self.values.read(first, self.dtype, tile)
            return Keys(k, v, held, first)

        return cut


def streamed(
    op: _Attention, q: Array, keys: Cached, values: Cached, own: Source, rows: Rows, precision: Any
) -> tuple[Array, Array]:
    """Few queries over a long cache that is read tile by tile where it lies, without a copy of a layer's slice."""
    start: Any = rows.start
    t, mine = q.shape[1], jnp.arange(q.shape[1])
    queries, read = rows.past(mine), Stored(keys, values, start, own.k.dtype).tiles(keys.tile)

    def tile(j: Array, carry: Carry) -> Carry:
        some = read(j * keys.tile)
        at = Tile(t, keys.tile, start - some.first, 0, some.first, keys.slots)
        return fold(op, carry, q, some, rows.sees(op, queries, some.positions), rows, at, precision)

    carry = jax.lax.fori_loop(0, -(-keys.slots // keys.tile), tile, nothing(q, own.width))
    return finish(fold(op, carry, q, own, rows.sees_own(op, mine, mine), rows, Tile(t, t, 0), precision))


def diagonal(
    op: _Attention, q: Array, keys: Cached, values: Cached, own: Source, known: Rows, precision: Any
) -> tuple[Array, Array]:
    """Few queries over a packed cache, read as it lies: a query is laid over a row's lanes, once for each slot of the
    row, with zeros where other heads and slots lie. More products, no more memory."""
    b, t, kv, group, d = q.shape
    start: Any = known.start
    together, rows = keys.together, keys.slots // keys.together
    heads, places = jnp.arange(kv), jnp.arange(together)
    # [kv, group, t, place] of a query against [place, kv] of the lanes
    same = (heads[:, None, None, None, None, None] == heads) & (places[:, None, None] == places[:, None])
    laid = jnp.where(same[..., None], q.transpose(0, 2, 3, 1, 4)[:, :, :, :, None, None, None], jnp.zeros((), q.dtype))
    laid = laid.reshape(b, -1, together * kv * d)
    scores = scores_of(op, laid, keys.rows(q.dtype), precision, "bqc,bsc->bqs")
    held = slot_positions(start, jnp.arange(keys.slots), keys.slots).reshape(b, rows, together)
    mine = jnp.arange(t)
    seen = known.sees(op, known.past(mine), held.swapaxes(1, 2).reshape(b, -1))
    own_seen = known.sees_own(op, mine, mine)
    own_scores = known.biased(scores_of(op, q, own.k, precision), Tile(t, t, 0))
    scores = scores.reshape(b, kv, group, t, -1)
    if known.bias is not None:  # slots by their place in a row, as they lie in the scores
        added = known.bias.added(Tile(t, keys.slots, start, 0, 0, keys.slots))
        added = added.reshape(*added.shape[:-1], rows, together).swapaxes(-1, -2)
        scores = scores + added.reshape(*added.shape[:-2], -1)
    scored = [
        (jnp.where(seen, scores, NEGATIVE), seen),
        (jnp.where(own_seen, own_scores, NEGATIVE), own_seen),
    ]
    (cached, fresh), sums = softmax(scored)
    v = values.rows(own.v.dtype)
    out = jnp.einsum("bqs,bsc->bqc", cached.astype(v.dtype).reshape(b, -1, rows), v, precision=precision,
                     preferred_element_type=jnp.float32)  # fmt: skip
    out = out.reshape(b, kv, group, t, together, together, kv, -1)
    out = jnp.sum(jnp.where(same[..., None], out, 0.0), (4, 5, 6))
    return out.transpose(0, 3, 1, 2, 4) + weighted(fresh, own.v, precision), sums


def _cached(ctx: Context, op: AttendCached, old: Any, cache: Value, new: Value, array: Array) -> Cached:
    order = ("batch", op.kv_heads, "slots", cache.axes[-1])
    together = slots_together(cache.type, new.type, op.keys)
    slots = ctx.size(slots_of(cache.type, new.type, op.keys))
    return Cached(old, cache.axes, order, slots, together, (array.shape[1], array.shape[3]))


@lowers(AttendCached)
def _attend_cached(
    ctx: Context, node: Node, q: Array, k: Array, v: Array, old_k: Any, old_v: Any, start: Array, *rest: Array
) -> tuple[Array, ...]:
    op: Any = node.op
    ql, kl, vl, batch = laid_out(op, node, *ctx.factors(q, k, v))
    if len(batch) != 1:
        raise AssertionError(f"a cache has one batch axis, found {batch}")
    own = Source(kl, vl)
    keys = _cached(ctx, op, old_k, node.operands[3], node.operands[1], kl)
    values = _cached(ctx, op, old_v, node.operands[4], node.operands[2], vl)
    precision = ctx.precision(q.dtype)
    rows = rows_of(ctx, node, rest, 6, batch, ql, kl, q, start)
    if op.slot_axes:  # this shard's slots only
        here = ctx.length(node.operands[3], "slots")
        first = jax.lax.axis_index(op.slot_axes) * here
        places = slot_positions(start, first + jnp.arange(here), keys.slots)
        source = Source(keys.whole(kl.dtype), values.whole(kl.dtype), places, first, keys.slots)
        plainly: Any = attention.blocked if op.implementation == "blocked" else attention.plain
        out, sums = plainly(op, ql, [source], rows, precision)
        return back(op, node, out.astype(q.dtype), batch, q), back(op, node, sums, batch, q)
    if op.implementation == "doubled":  # two equal rows make it a matrix product
        ql = jnp.repeat(ql, 2, axis=3)
    if op.implementation in ("streamed", "diagonal"):
        run: Any = streamed if op.implementation == "streamed" else diagonal
        out, sums = run(op, ql, keys, values, own, rows, precision)
    elif op.implementation == "blocked" and keys.packed:
        out, sums = attention.blocked(op, ql, [Stored(keys, values, start, kl.dtype), own], rows, precision)
    else:
        places = slot_positions(start, jnp.arange(keys.slots), keys.slots)
        source = Source(keys.whole(kl.dtype), values.whole(kl.dtype), places, 0, keys.slots)
        dense: Any = attention.blocked if op.implementation == "blocked" else attention.plain
        out, sums = dense(op, ql, [source, own], rows, precision)
    if op.implementation == "doubled":
        out, sums = out[:, :, :, :1], sums[:, :, :, :1]
    broken = unfinished(rows, ql.shape[1])
    out = out if broken is None else jnp.where(broken, jnp.nan, out)
    return back(op, node, out.astype(q.dtype), batch, q), back(op, node, sums, batch, q)
