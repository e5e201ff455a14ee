"""Attention: plain (one score matrix) or blocked (tiles with an online softmax, no score matrix in memory).

Both take several sources of keys: a cache and this call's own. Blocked attention runs over a static list of
(query block, key block) pairs, so that a causal or windowed mask saves its share of the work and the number of
tiles is known before it runs. Method: arXiv:2205.14135 and arXiv:2307.08691.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.attention import BLOCK, Attend, AttendGradient, _Attention

NEGATIVE = -1e30  # below any score; finite, so that a fully masked row gives 0 and not NaN


@dataclass
class Source:
    """Keys and values [batch, kv, keys, d] with the key positions: static offsets, or an array [batch, keys]."""

    k: Array
    v: Array
    positions: Array | None = None  # None: this call's own keys, aligned with the queries

    @property
    def size(self) -> int:
        return int(self.k.shape[2])

    @property
    def width(self) -> int:
        return int(self.v.shape[-1])

    @property
    def own(self) -> bool:
        return self.positions is None

    def tiles(self, block: int) -> Callable[[Array], tuple[Array, Array, Array]]:
        """A function that gives ``block`` keys from a place on: keys, values and positions, -1 past the end."""
        k, v = _padded(self.k, 2, block), _padded(self.v, 2, block)
        positions = jnp.arange(self.size) if self.positions is None else self.positions
        positions = _padded(positions, positions.ndim - 1, block, -1)
        return lambda at: (_cut(k, at, block, 2), _cut(v, at, block, 2), _cut(positions, at, block, -1))


class Tiled(Protocol):
    """Keys that blocked attention reads tile by tile; ``own``: of this call, aligned with the queries."""

    @property
    def size(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def own(self) -> bool: ...
    def tiles(self, block: int) -> Callable[[Array], tuple[Array, Array, Array]]: ...


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


def sees(op: _Attention, qp: Array, kp: Array) -> Array:
    """True where a query [.., t] sees a key [.., s]: [.., t, s]."""
    gap = qp[..., :, None] - kp[..., None, :]
    seen = kp[..., None, :] >= 0
    if op.causal:
        seen = seen & (gap >= 0)
    if op.window:
        seen = seen & (gap < op.window)
        seen = seen if op.causal else seen & (gap > -op.window)
    return seen


def bias(mask: Array) -> Array:
    """[t, s] or [b, t, s] to [b|1, 1, 1, t, s]."""
    return mask[None, None, None] if mask.ndim == 2 else mask[:, None, None]


def plain(
    op: _Attention,
    q: Array,
    sources: list[Source],
    start: Array | None,
    lengths: Array | None,
    precision: Any,
) -> tuple[Array, Array]:
    """Output [b, t, kv, group, d] in float32 and log-sums [b, t, kv, group]."""
    t = q.shape[1]
    scored = []
    for source in sources:
        scores = scores_of(op, q, source.k, precision)
        if source.positions is None:
            keys = jnp.arange(source.k.shape[2])
            mask = sees(op, op.offset + jnp.arange(t), keys)
            if lengths is not None:
                mask = mask & (keys < lengths[:, None])[:, None]
        else:
            assert start is not None
            mask = sees(op, start[:, None] + jnp.arange(t), source.positions)
        scored.append((jnp.where(bias(mask), scores, NEGATIVE), bias(mask)))
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


def pairs(op: _Attention, t: int, s: int, aligned: bool) -> tuple[np.ndarray, np.ndarray]:
    """The (query block, key block) pairs that the mask leaves; agrees with sizes.block_pairs."""
    nq, nk = -(-t // BLOCK), -(-s // BLOCK)
    found = []
    for i in range(nq):
        first, last = i * BLOCK, min((i + 1) * BLOCK, t) - 1
        if aligned:
            first, last = first + op.offset, last + op.offset
        ahead = 0 if op.causal else op.window - 1 if op.window else s  # how far a query sees beyond itself
        upper = min((last + ahead) // BLOCK + 1, nk) if aligned else nk
        lower = max(first - op.window + 1, 0) // BLOCK if aligned and op.window else 0
        found += [(i, j) for j in range(lower, upper)]
    grid = np.array(found, np.int32).reshape(-1, 2)
    return grid[:, 0], grid[:, 1]


def _padded(x: Array, axis: int, block: int, value: int = 0) -> Array:
    extra = -x.shape[axis] % block
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)], constant_values=value) if extra else x


def _cut(x: Array, at: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size, axis)


def blocked(
    op: _Attention,
    q: Array,
    sources: Sequence[Tiled],
    start: Array | None,
    lengths: Array | None,
    precision: Any,
) -> tuple[Array, Array]:
    """As ``plain``, tile by tile: memory grows with the length, not with its square."""
    t = q.shape[1]
    q = _padded(q, 1, BLOCK)
    carry = nothing(q, sources[0].width)
    for source in sources:
        i, j = pairs(op, t, source.size, source.own)
        read = source.tiles(BLOCK)

        def tile(carry: Carry, ij: Any, own: bool = source.own, read: Any = read) -> tuple[Carry, None]:
            qi = ij[0] * BLOCK
            k, v, keys = read(ij[1] * BLOCK)
            queries = qi + jnp.arange(BLOCK)
            if own:
                queries = op.offset + queries
            else:
                assert start is not None
                queries = start[:, None] + queries
            mask = sees(op, queries, keys)
            if own and lengths is not None:
                mask = mask & (keys < lengths[:, None])[:, None]
            mine = tuple(_cut(x, qi, BLOCK, 1) for x in carry)
            folded = fold(op, mine, _cut(q, qi, BLOCK, 1), k, v, bias(mask), precision)
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


def fold(op: _Attention, carry: Carry, q: Array, k: Array, v: Array, mask: Array, precision: Any) -> Carry:
    """The carry with the keys of one tile taken in."""
    top, total, acc = carry
    scores = jnp.where(mask, scores_of(op, q, k, precision), NEGATIVE)
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


def _rows(value: Sequence[Any], lengths: Array | None, batch: tuple[str, ...], q: Array, node: Node) -> Array | None:
    """The lengths of the rows [b] into which the batch axes were folded."""
    if lengths is None:
        return None
    sizes = [q.shape[node.operands[0].axes.index(a)] for a in batch]
    return jnp.broadcast_to(align(lengths, value[0].axes, batch), sizes).reshape(-1)


@lowers(Attend)
def _attend(ctx: Context, node: Node, q: Array, k: Array, v: Array, lengths: Array | None = None) -> tuple[Array, ...]:
    op: Any = node.op
    ql, kl, vl, batch = laid_out(op, node, *ctx.factors(q, k, v))
    lengths = _rows(node.operands[3:], lengths, batch, q, node)
    out, sums = IMPLEMENTATIONS[op.implementation](op, ql, [Source(kl, vl)], None, lengths, ctx.precision(q.dtype))
    return back(op, node, out.astype(q.dtype), batch, q), back(op, node, sums, batch, q)


@lowers(AttendGradient)
def _attend_gradient(
    ctx: Context,
    node: Node,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    sums: Array,
    g: Array,
    lengths: Array | None = None,
) -> tuple[Array, ...]:
    """The usual way back: p again from the log-sums; dv = p^T g; ds = p (g v^T - sum(g out)); dq, dk from ds."""
    op: Any = node.op
    ql, kl, vl, batch = laid_out(op, node, *ctx.factors(q, k, v))
    lengths = _rows(node.operands[6:], lengths, batch, q, node)
    b, t, kv, group, _ = ql.shape

    def rows(x: Array, axes: tuple[str, ...], last: tuple[str, ...]) -> Array:
        return align(x, axes, (*batch, op.queries, op.heads, *last)).reshape(
            b, t, kv, group, *([x.shape[-1]] if last else [])
        )

    gl = rows(g, node.operands[5].axes, (node.operands[5].axes[-1],)).astype(jnp.float32)
    ol = rows(out, node.operands[3].axes, (node.operands[3].axes[-1],)).astype(jnp.float32)
    sl = rows(sums, node.operands[4].axes, ())
    delta = jnp.sum(gl * ol, -1)
    precision = ctx.precision(jnp.float32 if q.dtype == jnp.float32 else q.dtype)
    n = kl.shape[2]
    blocked = op.implementation == "blocked"
    size = {1: BLOCK if blocked else t, 2: BLOCK if blocked else n}  # of a tile: queries, keys
    qp, gp, sp, dp = (_padded(x, 1, size[1]) for x in (ql, gl, sl, delta))
    kp, vp = _padded(kl, 2, size[2]), _padded(vl, 2, size[2])
    i, j = pairs(op, t, n, True) if blocked else (np.zeros(1, np.int32),) * 2
    q32, k32, v32 = (x.astype(jnp.float32) for x in (qp, kp, vp))

    def tile(carry: Any, ij: Any) -> tuple[Any, None]:
        dq, dk, dv = carry
        qi, kj = ij[0] * size[1], ij[1] * size[2]
        cut = lambda x, at, axis=1: _cut(x, at, size[axis], axis)  # noqa: E731
        qb, kb, vb, gb = cut(q32, qi), cut(k32, kj, 2), cut(v32, kj, 2), cut(gp, qi)
        scores = scores_of(op, cut(qp, qi), cut(kp, kj, 2), precision)
        queries, keys = qi + jnp.arange(size[1]), kj + jnp.arange(size[2])
        mask = sees(op, op.offset + queries, jnp.where(keys < n, keys, -1)) & (queries < t)[:, None]
        if lengths is not None:
            mask = mask & (keys < lengths[:, None])[:, None]
        p = jnp.where(bias(mask), jnp.exp(scores - jnp.moveaxis(cut(sp, qi), 1, 3)[..., None]), 0.0)
        dots: Any = {"precision": precision, "preferred_element_type": jnp.float32}
        dpb = jnp.einsum("btkgd,bksd->bkgts", gb, vb, **dots)
        ds = p * (dpb - jnp.moveaxis(cut(dp, qi), 1, 3)[..., None])
        if op.softcap:
            ds = ds * (1.0 - jnp.square(scores / op.softcap))
        ds = ds * op.scale
        add = lambda x, y, at, axis=1: jax.lax.dynamic_update_slice_in_dim(x, cut(x, at, axis) + y, at, axis)  # noqa: E731
        dv = add(dv, jnp.einsum("bkgts,btkgd->bksd", p, gb, **dots), kj, 2)
        dq = add(dq, jnp.einsum("bkgts,bksd->btkgd", ds, kb, **dots), qi)
        dk = add(dk, jnp.einsum("bkgts,btkgd->bksd", ds, qb, **dots), kj, 2)
        return (dq, dk, dv), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (qp, kp, vp))
    (dq, dk, dv), _ = jax.lax.scan(tile, zeros, (jnp.asarray(i), jnp.asarray(j)))
    sizes = [q.shape[node.operands[0].axes.index(a)] for a in batch]
    dq = dq[:, :t].reshape(*sizes, t, kv * group, -1)
    dk, dv = (x[:, :, :n].reshape(*sizes, kv, n, x.shape[-1]) for x in (dk, dv))
    axes = (
        (*batch, op.queries, op.heads, op.dim),
        (*batch, op.kv_heads, op.keys, op.dim),
        (*batch, op.kv_heads, op.keys, node.operands[2].axes[-1]),
    )
    return tuple(
        align(x, own, like.axes).astype(like.type.dtype)
        for x, own, like in zip((dq, dk, dv), axes, node.operands, strict=False)
    )
