"""Attention: plain (one score matrix) or blocked (tiles with an online softmax, no score matrix in memory).

Both take several sources of keys: a cache and this call's own. Blocked attention runs over a static list of
(query block, key block) pairs, so that a causal or windowed mask saves its share of the work and the number of
tiles is known before it runs. Method: arXiv:2205.14135 and arXiv:2307.08691.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node
from compiler.graph.sizes import Size
from compiler.lower.basic import align
from compiler.lower.bias import Laid, Reader, Tile, reader
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.attention import BLOCK, Attend, _Attention

NEGATIVE = -1e30  # below any score; finite, so that a fully masked row gives 0 and not NaN


@dataclass
class Keys:
    """Some keys and values with their positions; ``first``: the first one's place in the call, or its slot."""

    k: Array
    v: Array
    positions: Array
    first: Any


@dataclass
class Source:
    """Keys and values [batch, kv, keys, d] with the key positions: static offsets, or an array [batch, keys]."""

    k: Array
    v: Array
    positions: Array | None = None  # None: this call's own keys, aligned with the queries
    first: Any = 0  # of a cache: its first slot here,
    around: int | None = None  # and how many slots there are

    @property
    def size(self) -> int:
        return int(self.k.shape[2])

    @property
    def width(self) -> int:
        return int(self.v.shape[-1])

    @property
    def own(self) -> bool:
        return self.positions is None

    def tiles(self, block: int) -> Callable[[Array], Keys]:
        """A function that gives ``block`` keys from a place on, their positions -1 past the end."""
        k, v = padded(self.k, 2, block), padded(self.v, 2, block)
        positions = jnp.arange(self.size) if self.positions is None else self.positions
        positions = padded(positions, positions.ndim - 1, block, -1)
        return lambda at: Keys(
            _cut(k, at, block, 2), _cut(v, at, block, 2), _cut(positions, at, block, -1), self.first + at
        )


class Tiled(Protocol):
    """Keys that blocked attention reads tile by tile; ``own``: of this call, aligned with the queries."""

    @property
    def size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def own(self) -> bool: ...
    @property
    def around(self) -> int | None: ...
    def tiles(self, block: int) -> Callable[[Array], Keys]: ...


def laid_out(op: _Attention, node: Node, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array, tuple[str, ...]]:
    """q [b, t, kv, group, d], k and v [b, kv, s, d]; other batch axes are folded into b."""
    qv, kv_, vv = node.operands[:3]
    batch = tuple(a for a in qv.axes if a not in (op.queries, op.heads, op.dim))
    q = align(q, qv.axes, (*batch, op.queries, op.heads, op.dim))
    k = align(k, kv_.axes, (*batch, op.kv_heads, op.keys, op.dim))
    v = align(v, vv.axes, (*batch, op.kv_heads, op.keys, vv.axes[-1]))
    n = len(batch)
    q = q.reshape(-1, q.shape[n], k.shape[n], q.shape[n + 1] // k.shape[n], q.shape[n + 2])
    k, v = (x.reshape(-1, *x.shape[n:]) for x in (k, v))
    return q, k, v, batch


def back(op: _Attention, node: Node, y: Array, batch: tuple[str, ...], like: Array) -> Array:
    """[b, t, kv, group, …] to the axes of the node's result."""
    out = node.results[0].axes if y.ndim == 5 else node.results[1].axes
    sizes = [like.shape[node.operands[0].axes.index(a)] for a in batch]
    y = y.reshape(*sizes, y.shape[1], y.shape[2] * y.shape[3], *y.shape[4:])
    axes = (*batch, op.queries, op.heads, *([node.results[0].axes[-1]] if y.ndim == len(batch) + 3 else []))
    return align(y, axes, out)


def scores_of(op: _Attention, q: Array, k: Array, precision: Any, product: str = "btkgd,bksd->bkgts") -> Array:
    """Scaled and capped scores in float32, [b, kv, group, t, s] if ``product`` is not another."""
    s = jnp.einsum(product, q, k, precision=precision, preferred_element_type=jnp.float32) * op.scale
    return jnp.tanh(s / op.softcap) * op.softcap if op.softcap else s


@dataclass(frozen=True)
class Rows:
    """What attention knows of each row [b]: the position of its first query (0 where there is no cache), where its
    prefix and its keys end; and what is added to the scores."""

    start: Array | None = None
    first: Array | None = None  # where its queries lie, if not from ``start`` on
    prefix: Array | None = None
    lengths: Array | None = None
    bias: Reader | None = None
    segments: tuple[Array, Array] | None = None  # numbers of this call's queries and keys [b, t], [b, s]

    def own(self, op: _Attention, index: Array) -> Array:
        """Where entries of this call lie: [n] counted from its first where only distances matter, else [b, n]."""
        fixed = self.start is None or (op.chunk is None and self.prefix is None and self.first is None)
        return index if fixed else self.start[:, None] + index  # type: ignore[index]

    def queries(self, op: Any, index: Array) -> Array:
        """Where this call's queries lie, beside its own keys."""
        return self.own(op, op.offset + index) if self.first is None else self.first[:, None] + index

    def past(self, index: Array) -> Array:
        """Where this call's queries lie, beside a cache [b, n]."""
        begin = self.start if self.first is None else self.first
        assert begin is not None
        return begin[:, None] + index

    def sees(self, op: _Attention, qp: Array, kp: Array) -> Array:
        """True where a query [.., t] sees a key [.., s]: [b or 1, 1, 1, t, s]."""
        gap = qp[..., :, None] - kp[..., None, :]
        seen = gap >= 0 if op.causal else jnp.full_like(gap, True, bool)
        if self.prefix is not None:
            seen = seen | (kp[..., None, :] < self.prefix[:, None, None])
        if op.window:
            seen = seen & (gap < op.window)
            seen = seen if op.causal else seen & (gap > -op.window)
        if op.chunk:
            seen = seen & (qp[..., :, None] // op.chunk == kp[..., None, :] // op.chunk)
        return by_row(seen & (kp[..., None, :] >= 0))

    def sees_own(self, op: _Attention, queries: Array, keys: Array) -> Array:
        """The same of this call's own keys, by places in it; -1 for none."""
        at = jnp.where(keys >= 0, self.own(op, keys), -1)
        seen = self.sees(op, self.queries(op, queries), at)
        if self.segments is not None:
            mine, theirs = (
                jnp.take(x, i, axis=1, mode="clip") for x, i in zip(self.segments, (queries, keys), strict=True)
            )
            seen = seen & by_row(mine[:, :, None] == theirs[:, None])
        return seen if self.lengths is None else seen & by_row((keys < self.lengths[:, None])[:, None])

    def biased(self, scores: Array, tile: Tile) -> Array:
        return scores if self.bias is None else scores + self.bias.added(tile)


def by_row(mask: Array) -> Array:
    """[t, s] or [b, t, s] to [b or 1, 1, 1, t, s]."""
    return mask[None, None, None] if mask.ndim == 2 else mask[:, None, None]


def plain(op: _Attention, q: Array, sources: list[Source], rows: Rows, precision: Any) -> tuple[Array, Array]:
    """Output [b, t, kv, group, d] in float32 and log-sums [b, t, kv, group]."""
    t = q.shape[1]
    scored = []
    for source in sources:
        scores = scores_of(op, q, source.k, precision)
        if source.positions is None:
            mask, gap = rows.sees_own(op, jnp.arange(t), jnp.arange(source.size)), op.offset
        else:
            mask, gap = rows.sees(op, rows.past(jnp.arange(t)), source.positions), rows.start - source.first
        scores = rows.biased(scores, Tile(t, source.size, gap, 0, source.first, source.around))
        scored.append((jnp.where(mask, scores, NEGATIVE), mask))
    weights, sums = softmax(scored)
    out = jnp.zeros((), jnp.float32)
    for w, source in zip(weights, sources, strict=True):
        out = out + weighted(w, source.v, precision)
    return out, sums


def softmax(scored: list[tuple[Array, Array]]) -> tuple[list[Array], Array]:
    """Weights [b, kv, group, t, s] of several scores of the same queries, each with its mask, and the log-sums
    [b, t, kv, group]. Masked scores are NEGATIVE."""
    top = jnp.max(jnp.stack([jnp.max(s, -1) for s, _ in scored]), 0)
    weights = [jnp.where(m, jnp.exp(s - top[..., None]), 0.0) for s, m in scored]
    total = jnp.sum(jnp.stack([jnp.sum(w, -1) for w in weights]), 0)
    safe = jnp.where(total > 0, total, 1.0)
    return [w / safe[..., None] for w in weights], jnp.moveaxis(top + jnp.log(safe), 3, 1)


def weighted(w: Array, v: Array, precision: Any) -> Array:
    """The sum of the values by their weights [b, t, kv, group, d]."""
    return jnp.einsum(
        "bkgts,bksd->btkgd", w.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
    )


def pairs(op: _Attention, t: int, s: int, aligned: bool, chunk: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The (query block, key block) pairs that the mask leaves; agrees with sizes.block_pairs. ``chunk``: the op's,
    where the first query begins one."""
    nq, nk = -(-t // BLOCK), -(-s // BLOCK)
    found = []
    for i in range(nq):
        first, last = i * BLOCK, min((i + 1) * BLOCK, t) - 1
        if aligned:
            first, last = first + int(op.offset), last + int(op.offset)  # type: ignore[arg-type]
        causal = op.causal and not op.prefix
        ahead = 0 if causal else op.window - 1 if op.window else s  # how far a query sees beyond itself
        upper = min((last + ahead) // BLOCK + 1, nk) if aligned else nk
        lower = max(first - op.window + 1, 0) // BLOCK if aligned and op.window else 0
        if chunk and aligned:
            lower = max(lower, first // chunk * chunk // BLOCK)
            upper = min(upper, ((last // chunk + 1) * chunk - 1) // BLOCK + 1)
        found += [(i, j) for j in range(lower, upper)]
    grid = np.array(found, np.int32).reshape(-1, 2)
    return grid[:, 0], grid[:, 1]


def padded(x: Array, axis: int, block: int, value: int = 0) -> Array:
    extra = -x.shape[axis] % block
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)], constant_values=value) if extra else x


def _cut(x: Array, at: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size, axis)


def blocked(
    op: _Attention,
    q: Array,
    sources: Sequence[Tiled],
    rows: Rows,
    precision: Any,
) -> tuple[Array, Array]:
    """As ``plain``, tile by tile: memory grows with the length, not with its square."""
    t = q.shape[1]
    q = padded(q, 1, BLOCK)
    carry = nothing(q, sources[0].width)
    for source in sources:
        i, j = pairs(op, t, source.size, source.own and not op.placed, op.chunk if rows.start is None else None)
        read = source.tiles(BLOCK)

        def tile(carry: Carry, ij: Any, source: Tiled = source, read: Any = read) -> tuple[Carry, None]:
            qi = ij[0] * BLOCK
            keys = read(ij[1] * BLOCK)
            queries = qi + jnp.arange(BLOCK)
            if source.own:
                mask, gap = rows.sees_own(op, queries, keys.positions), op.offset + qi - keys.first
            else:
                mask, gap = rows.sees(op, rows.past(queries), keys.positions), rows.start + qi - keys.first
            mine = tuple(_cut(x, qi, BLOCK, 1) for x in carry)
            at = Tile(BLOCK, keys.k.shape[2], gap, qi, keys.first, source.around)
            folded = fold(op, mine, _cut(q, qi, BLOCK, 1), keys, mask, rows, at, precision)
            put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, qi, 1)  # noqa: E731
            return tuple(put(x, y) for x, y in zip(carry, folded, strict=True)), None

        carry, _ = jax.lax.scan(tile, carry, (jnp.asarray(i), jnp.asarray(j)))
    out, sums = finish(carry)
    return out[:, :t], sums[:, :t]


Carry = tuple[
    Array, ...
]  # of an online softmax: maximum and sum [b, t, kv, group], weighted values [b, t, kv, group, d]


def nothing(q: Array, width: int) -> Carry:
    """The carry before any key."""
    shape = q.shape[:4]
    return jnp.full(shape, NEGATIVE, jnp.float32), jnp.zeros(shape), jnp.zeros((*shape, width))


def fold(
    op: _Attention, carry: Carry, q: Array, keys: Keys | Source, mask: Array, rows: Rows, at: Tile, precision: Any
) -> Carry:
    """The carry with the keys of one tile taken in."""
    top, total, acc = carry
    v = keys.v
    scores = jnp.where(mask, rows.biased(scores_of(op, q, keys.k, precision), at), NEGATIVE)
    old = jnp.moveaxis(top, 1, 3)
    new = jnp.maximum(old, jnp.max(scores, -1))
    weights = jnp.where(mask, jnp.exp(scores - new[..., None]), 0.0)
    fade = jnp.moveaxis(jnp.exp(old - new), 3, 1)
    partial = jnp.einsum("bkgts,bksd->btkgd", weights.astype(v.dtype), v, precision=precision,
                         preferred_element_type=jnp.float32)  # fmt: skip
    total = total * fade + jnp.moveaxis(jnp.sum(weights, -1), 3, 1)
    return jnp.moveaxis(new, 3, 1), total, acc * fade[..., None] + partial


def finish(carry: Carry) -> tuple[Array, Array]:
    """Output and log-sums."""
    top, total, acc = carry
    safe = jnp.where(total > 0, total, 1.0)
    return acc / safe[..., None], top + jnp.log(safe)


IMPLEMENTATIONS = {"plain": plain, "blocked": blocked}


def rows_of(
    ctx: Context, node: Node, rest: Sequence[Array], first: int, batch: tuple[str, ...], ql: Array, kl: Array, q: Array,
    start: Array | None = None,
) -> Rows:  # fmt: skip
    """The operands behind the usual ones, the ``first`` of all, by the rows [b] into which batch axes were folded."""
    op: Any = node.op
    values = node.operands[first:]
    sizes = tuple(q.shape[node.operands[0].axes.index(a)] for a in batch)

    def row(name: str, *inner: str) -> Array | None:
        x, value = op.given(rest).get(name), op.given(values).get(name)
        if x is None or value is None:
            return None
        x = align(x, value.axes, (*batch, *inner))
        own = x.shape[len(batch) :]
        return jnp.broadcast_to(x, (*sizes, *own)).reshape(-1, *own)

    tiles = op.implementation == "blocked"
    block = BLOCK if tiles else max(ql.shape[1], kl.shape[2])
    precision = ctx.precision(jnp.float32 if q.dtype == jnp.float32 else q.dtype)
    at = Laid(batch, sizes, ql.shape[2], ql.shape[3], block, precision, start is not None and not tiles)
    arrays = [*ctx.factors(*rest[: len(op.bias.operands)]), *rest[len(op.bias.operands) :]] if op.bias else rest
    numbers = [row("query_segments", op.queries), row("key_segments", op.keys)] if op.segments else []
    segments: Any = tuple(numbers) or None
    return Rows(start, row("first"), row("prefix"), row("lengths"), reader(op, values, arrays, at), segments)


def known_offset(ctx: Context, op: Any) -> Any:
    """The op with its offset as a number."""
    return replace(op, offset=ctx.size(op.offset)) if isinstance(op.offset, Size) else op


def unfinished(rows: Rows, queries: int) -> Array | None:
    """Rows [b, 1, 1, 1, 1] in whose prefix this call ends: what they give is not what the whole would."""
    if rows.prefix is None:
        return None
    start = 0 if rows.start is None else rows.start
    return ((start < rows.prefix) & (rows.prefix > start + queries))[:, None, None, None, None]


@lowers(Attend)
def _attend(ctx: Context, node: Node, q: Array, k: Array, v: Array, *rest: Array) -> tuple[Array, ...]:
    op: Any = known_offset(ctx, node.op)
    ql, kl, vl, batch = laid_out(op, node, *ctx.factors(q, k, v))
    rows = rows_of(ctx, node, rest, 3, batch, ql, kl, q)
    out, sums = IMPLEMENTATIONS[op.implementation](op, ql, [Source(kl, vl)], rows, ctx.precision(q.dtype))
    broken = unfinished(rows, ql.shape[1])
    out = out if broken is None else jnp.where(broken, jnp.nan, out)
    return back(op, node, out.astype(q.dtype), batch, q), back(op, node, sums, batch, q)
