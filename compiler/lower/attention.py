"""Attention: plain (one score matrix) or blocked (tiles with an online softmax, no score matrix in memory).

Both take several sources of keys: a cache and this call's own. Blocked attention runs over a static list of
(query block, key block) pairs, so that a causal or windowed mask saves its share of the work and the number of
tiles is known before it runs. Method: arXiv:2205.14135 and arXiv:2307.08691.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, StackSlot, lowers, read
from compiler.ops.attention import BLOCK, Attend, AttendCached, AttendGradient, _Attention

NEGATIVE = -1e30  # below any score; finite, so that a fully masked row gives 0 and not NaN


@dataclass
class Source:
    """Keys and values [batch, kv, keys, d] with the key positions: static offsets, or an array [batch, keys]."""

    k: Array
    v: Array
    positions: Array | None = None  # None: this call's own keys, aligned with the queries


def _laid_out(op: _Attention, node: Node, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array, tuple[str, ...]]:
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


def _back(op: _Attention, node: Node, y: Array, batch: tuple[str, ...], like: Array) -> Array:
    """[b, t, kv, group, …] to the axes of the node's result."""
    out = node.results[0].axes if y.ndim == 5 else node.results[1].axes
    sizes = [like.shape[node.operands[0].axes.index(a)] for a in batch]
    y = y.reshape(*sizes, y.shape[1], y.shape[2] * y.shape[3], *y.shape[4:])
    axes = (*batch, op.queries, op.heads, *([node.results[0].axes[-1]] if y.ndim == len(batch) + 3 else []))
    return align(y, axes, out)


def _scores(op: _Attention, q: Array, k: Array, precision: Any) -> Array:
    """Scaled and capped scores [b, kv, group, t, s] in float32."""
    s = jnp.einsum("btkgd,bksd->bkgts", q, k, precision=precision, preferred_element_type=jnp.float32) * op.scale
    return jnp.tanh(s / op.softcap) * op.softcap if op.softcap else s


def _mask(op: _Attention, qp: Array, kp: Array) -> Array:
    """True where a query [.., t] sees a key [.., s]: [.., t, s]."""
    gap = qp[..., :, None] - kp[..., None, :]
    seen = kp[..., None, :] >= 0
    if op.causal:
        seen = seen & (gap >= 0)
    return seen & (gap < op.window) if op.window else seen


def _bias(mask: Array) -> Array:
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
        scores = _scores(op, q, source.k, precision)
        if source.positions is None:
            keys = jnp.arange(source.k.shape[2])
            mask = _mask(op, jnp.arange(t), keys)
            if lengths is not None:
                mask = mask & (keys < lengths[:, None])[:, None]
        else:
            assert start is not None
            mask = _mask(op, start[:, None] + jnp.arange(t), source.positions)
        scored.append((jnp.where(_bias(mask), scores, NEGATIVE), _bias(mask)))
    top = jnp.max(jnp.stack([jnp.max(s, -1) for s, _ in scored]), 0)
    weights = [jnp.where(m, jnp.exp(s - top[..., None]), 0.0) for s, m in scored]
    total = jnp.sum(jnp.stack([jnp.sum(w, -1) for w in weights]), 0)
    safe = jnp.where(total > 0, total, 1.0)
    out = jnp.zeros((), jnp.float32)
    for w, source in zip(weights, sources, strict=True):
        w = (w / safe[..., None]).astype(source.v.dtype)
        out = out + jnp.einsum(
            "bkgts,bksd->btkgd", w, source.v, precision=precision, preferred_element_type=jnp.float32
        )
    return out, jnp.moveaxis(top + jnp.log(safe), 3, 1)


def pairs(op: _Attention, t: int, s: int, aligned: bool) -> tuple[np.ndarray, np.ndarray]:
    """The (query block, key block) pairs that the mask leaves; agrees with sizes.block_pairs."""
    nq, nk = -(-t // BLOCK), -(-s // BLOCK)
    found = []
    for i in range(nq):
        first, last = i * BLOCK, min((i + 1) * BLOCK, t) - 1
        upper = min(last // BLOCK + 1, nk) if aligned and op.causal else nk
        lower = max(first - op.window + 1, 0) // BLOCK if aligned and op.window else 0
        found += [(i, j) for j in range(lower, upper)]
    grid = np.array(found, np.int32).reshape(-1, 2)
    return grid[:, 0], grid[:, 1]


def _padded(x: Array, axis: int, block: int, value: int = 0) -> Array:
    extra = -x.shape[axis] % block
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)], constant_values=value) if extra else x


def blocked(
    op: _Attention,
    q: Array,
    sources: list[Source],
    start: Array | None,
    lengths: Array | None,
    precision: Any,
) -> tuple[Array, Array]:
    """As ``plain``, tile by tile: memory grows with the length, not with its square."""
    t = q.shape[1]
    q = _padded(q, 1, BLOCK)
    carry = _nothing(q, sources[0].v.shape[-1])
    for source in sources:
        n = source.k.shape[2]
        k, v = _padded(source.k, 2, BLOCK), _padded(source.v, 2, BLOCK)
        places = None if source.positions is None else _padded(source.positions, 1, BLOCK, -1)
        i, j = pairs(op, t, n, source.positions is None)

        def tile(
            carry: Carry, ij: Any, k: Array = k, v: Array = v, n: int = n, places: Array | None = places
        ) -> tuple[Carry, None]:
            qi, kj = ij[0] * BLOCK, ij[1] * BLOCK
            cut = lambda x, at, axis=1: jax.lax.dynamic_slice_in_dim(x, at, BLOCK, axis)  # noqa: E731
            steps = jnp.arange(BLOCK)
            if places is None:
                keys = kj + steps
                mask = _mask(op, qi + steps, jnp.where(keys < n, keys, -1))
                if lengths is not None:
                    mask = mask & (keys < lengths[:, None])[:, None]
            else:
                assert start is not None
                mask = _mask(op, start[:, None] + qi + steps, cut(places, kj))
            mine = tuple(cut(x, qi) for x in carry)
            folded = _fold(op, mine, cut(q, qi), cut(k, kj, 2), cut(v, kj, 2), _bias(mask), precision)
            put = lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, qi, 1)  # noqa: E731
            return tuple(put(x, y) for x, y in zip(carry, folded, strict=True)), None

        carry, _ = jax.lax.scan(tile, carry, (jnp.asarray(i), jnp.asarray(j)))
    out, sums = _finish(carry)
    return out[:, :t], sums[:, :t]


Carry = tuple[
    Array, ...
]  # of an online softmax: maximum and sum [b, t, kv, group], weighted values [b, t, kv, group, d]


def _nothing(q: Array, width: int) -> Carry:
    """The carry before any key."""
    shape = q.shape[:4]
    return jnp.full(shape, NEGATIVE, jnp.float32), jnp.zeros(shape), jnp.zeros((*shape, width))


def _fold(op: _Attention, carry: Carry, q: Array, k: Array, v: Array, mask: Array, precision: Any) -> Carry:
    """The carry with the keys of one tile taken in."""
    top, total, acc = carry
    scores = jnp.where(mask, _scores(op, q, k, precision), NEGATIVE)
    old = jnp.moveaxis(top, 1, 3)
    new = jnp.maximum(old, jnp.max(scores, -1))
    weights = jnp.where(mask, jnp.exp(scores - new[..., None]), 0.0)
    fade = jnp.moveaxis(jnp.exp(old - new), 3, 1)
    partial = jnp.einsum("bkgts,bksd->btkgd", weights.astype(v.dtype), v, precision=precision,
                         preferred_element_type=jnp.float32)  # fmt: skip
    total = total * fade + jnp.moveaxis(jnp.sum(weights, -1), 3, 1)
    return jnp.moveaxis(new, 3, 1), total, acc * fade[..., None] + partial


def _finish(carry: Carry) -> tuple[Array, Array]:
    """Output and log-sums."""
    top, total, acc = carry
    safe = jnp.where(total > 0, total, 1.0)
    return acc / safe[..., None], top + jnp.log(safe)


def streamed(
    op: _Attention, q: Array, keys: Cached, values: Cached, own: Source, start: Array, precision: Any
) -> tuple[Array, Array]:
    """Few queries over a long cache that is read tile by tile where it lies, without a copy of a layer's slice."""
    steps, queries = jnp.arange(keys.tile), start[:, None] + jnp.arange(q.shape[1])

    def tile(j: Array, carry: Carry) -> Carry:
        at = jnp.minimum(j * keys.tile, keys.slots - keys.tile)  # the last tile may lie over the one before
        held = slot_positions(start, at + steps, keys.slots)
        mask = _mask(op, queries, jnp.where(at + steps >= j * keys.tile, held, -1))
        return _fold(op, carry, q, keys.read(at, own.k.dtype), values.read(at, own.v.dtype), _bias(mask), precision)

    carry = jax.lax.fori_loop(0, -(-keys.slots // keys.tile), tile, _nothing(q, own.v.shape[-1]))
    mine = jnp.arange(q.shape[1])
    return _finish(_fold(op, carry, q, own.k, own.v, _bias(_mask(op, mine, mine)), precision))


@dataclass
class Cached:
    """A cache of one layer that is read tile by tile; ``axes`` as it lies."""

    state: Any  # an array, or a StackSlot
    axes: tuple[str, ...]
    order: tuple[str, ...]  # [batch, kv, slots, d]
    slots: int

    @property
    def tile(self) -> int:
        """Slots of one tile: at most an eighth of the cache where that is not tiny; a divisor of it if there is one
        near."""
        most = min(BLOCK, max(64, self.slots // 8), self.slots)
        return next((d for d in range(most, most // 2, -1) if self.slots % d == 0), most)

    def read(self, at: Array, dtype: Any) -> Array:
        stack, index = (self.state.stack, self.state.index) if isinstance(self.state, StackSlot) else (self.state, ())
        shape = list(stack.shape[len(index) :])
        starts: list[Any] = [jnp.zeros((), jnp.int32)] * len(shape)
        where = self.axes.index("slots")
        shape[where], starts[where] = self.tile, at
        part = jax.lax.dynamic_slice(stack, (*index, *starts), (*[1] * len(index), *shape)).reshape(shape)
        return align(part, self.axes, self.order).astype(dtype)


IMPLEMENTATIONS = {"plain": plain, "blocked": blocked}


@lowers(Attend)
def _attend(ctx: Context, node: Node, q: Array, k: Array, v: Array, lengths: Array | None = None) -> tuple[Array, ...]:
    op: Any = node.op
    ql, kl, vl, batch = _laid_out(op, node, *ctx.factors(q, k, v))
    out, sums = IMPLEMENTATIONS[op.implementation](op, ql, [Source(kl, vl)], None, lengths, ctx.precision(q.dtype))
    return _back(op, node, out.astype(q.dtype), batch, q), _back(op, node, sums, batch, q)


def slot_positions(start: Array, index: Array, slots: int) -> Array:
    """Which position the slots ``index`` hold [batch, index]: the last one before ``start`` that falls there, or
    below 0."""
    last = start[:, None] - 1
    return last - (last - index) % slots


@lowers(AttendCached)
def _attend_cached(
    ctx: Context, node: Node, q: Array, k: Array, v: Array, old_k: Any, old_v: Any, start: Array
) -> tuple[Array, ...]:
    op: Any = node.op
    ql, kl, vl, batch = _laid_out(op, node, *ctx.factors(q, k, v))
    if len(batch) != 1:
        raise AssertionError(f"a cache has one batch axis, found {batch}")
    slots = ctx.size(node.operands[3].type.size("slots"))
    own = Source(kl, vl)
    keys, values = (
        Cached(old, v.axes, (*batch, op.kv_heads, "slots", v.axes[-1]), slots)
        for old, v in zip((old_k, old_v), node.operands[3:5], strict=True)
    )
    precision = ctx.precision(q.dtype)
    if op.implementation == "doubled":  # two equal rows make it a matrix product
        ql = jnp.repeat(ql, 2, axis=3)
    if op.implementation == "streamed":
        out, sums = streamed(op, ql, keys, values, own, start, precision)
    else:
        ck, cv = (align(read(c.state), c.axes, c.order).astype(kl.dtype) for c in (keys, values))
        places = slot_positions(start, jnp.arange(slots), slots)
        run = blocked if op.implementation == "blocked" else plain
        out, sums = run(op, ql, [Source(ck, cv, places), own], start, None, precision)
    if op.implementation == "doubled":
        out, sums = out[:, :, :, :1], sums[:, :, :, :1]
    return _back(op, node, out.astype(q.dtype), batch, q), _back(op, node, sums, batch, q)


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
    ql, kl, vl, batch = _laid_out(op, node, *ctx.factors(q, k, v))
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
    block = BLOCK if op.implementation == "blocked" else max(t, n)
    qp, gp, sp, dp = (_padded(x, 1, block) for x in (ql, gl, sl, delta))
    kp, vp = _padded(kl, 2, block), _padded(vl, 2, block)
    if block == BLOCK:
        i, j = pairs(op, t, n, True)
    else:
        i = j = np.zeros(1, np.int32)
    q32, k32, v32 = (x.astype(jnp.float32) for x in (qp, kp, vp))

    def tile(carry: Any, ij: Any) -> tuple[Any, None]:
        dq, dk, dv = carry
        qi, kj = ij[0] * block, ij[1] * block
        cut = lambda x, at, axis=1: jax.lax.dynamic_slice_in_dim(x, at, block, axis)  # noqa: E731
        qb, kb, vb, gb = cut(q32, qi), cut(k32, kj, 2), cut(v32, kj, 2), cut(gp, qi)
        scores = _scores(op, cut(qp, qi), cut(kp, kj, 2), precision)
        steps = jnp.arange(block)
        keys = kj + steps
        mask = _mask(op, qi + steps, jnp.where(keys < n, keys, -1)) & (qi + steps < t)[:, None]
        if lengths is not None:
            mask = mask & (keys < lengths[:, None])[:, None]
        p = jnp.where(_bias(mask), jnp.exp(scores - jnp.moveaxis(cut(sp, qi), 1, 3)[..., None]), 0.0)
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
