"""The way back of attention, by the tiles of its way forward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node
from compiler.lower import attention
from compiler.lower.attention import known_offset, laid_out, padded, pairs, rows_of, scores_of
from compiler.lower.basic import align
from compiler.lower.bias import Tile
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.attention import AttendGradient


@lowers(AttendGradient)
def _attend_gradient(
    ctx: Context,
    node: Node,
    q: Array,
    k: Array,
    v: Array,
    delta: Array,
    sums: Array,
    g: Array,
    *rest: Array,
) -> tuple[Array, ...]:
    """The usual way back: p again from the log-sums; dv = p^T g; ds = p (g v^T - delta); dq, dk from ds."""
    op: Any = known_offset(ctx, node.op)
    ql, kl, vl, batch = laid_out(op, node, *ctx.factors(q, k, v))
    known = rows_of(ctx, node, rest, 6, batch, ql, kl, q)
    b, t, kv, group, _ = ql.shape

    def rows(x: Array, axes: tuple[str, ...], last: tuple[str, ...]) -> Array:
        return align(x, axes, (*batch, op.queries, op.heads, *last)).reshape(
            b, t, kv, group, *([x.shape[-1]] if last else [])
        )

    gl = rows(g, node.operands[5].axes, (node.operands[5].axes[-1],)).astype(jnp.float32)
    dl, sl = rows(delta, node.operands[3].axes, ()), rows(sums, node.operands[4].axes, ())
    precision = ctx.precision(jnp.float32 if q.dtype == jnp.float32 else q.dtype)
    n = kl.shape[2]
    blocked = op.implementation == "blocked"
    size = {1: attention.BLOCK if blocked else t, 2: attention.BLOCK if blocked else n}  # of a tile: queries, keys
    qp, gp, sp, dp = (padded(x, 1, size[1]) for x in (ql, gl, sl, dl))
    kp, vp = padded(kl, 2, size[2]), padded(vl, 2, size[2])
    i, j = pairs(op, t, n, True, op.chunk) if blocked else (np.zeros(1, np.int32),) * 2
    q32, k32, v32 = (x.astype(jnp.float32) for x in (qp, kp, vp))

    def tile(carry: Any, ij: Any) -> tuple[Any, None]:
        dq, dk, dv, dbias = carry
        qi, kj = ij[0] * size[1], ij[1] * size[2]
        cut = lambda x, at, axis=1: jax.lax.dynamic_slice_in_dim(x, at, size[axis], axis)  # noqa: E731
        qb, kb, vb, gb = cut(q32, qi), cut(k32, kj, 2), cut(v32, kj, 2), cut(gp, qi)
        scores = scores_of(op, cut(qp, qi), cut(kp, kj, 2), precision)
        queries, keys = qi + jnp.arange(size[1]), kj + jnp.arange(size[2])
        mask = known.sees_own(op, queries, jnp.where(keys < n, keys, -1)) & (queries < t)[:, None]
        biased, put = scores, None
        if known.bias is not None:
            at = Tile(size[1], size[2], op.offset + (qi - kj if blocked else 0), qi, kj)
            added, put = known.bias.both_ways(at, scores.shape)
            biased = scores + added
        p = jnp.where(mask, jnp.exp(biased - jnp.moveaxis(cut(sp, qi), 1, 3)[..., None]), 0.0)
        dots: Any = {"precision": precision, "preferred_element_type": jnp.float32}
        dpb = jnp.einsum("btkgd,bksd->bkgts", gb, vb, **dots)
        ds = p * (dpb - jnp.moveaxis(cut(dp, qi), 1, 3)[..., None])
        dbias = put(dbias, ds) if put is not None else dbias
        if op.softcap:
            ds = ds * (1.0 - jnp.square(scores / op.softcap))
        ds = ds * op.scale
        add = lambda x, y, at, axis=1: jax.lax.dynamic_update_slice_in_dim(x, cut(x, at, axis) + y, at, axis)  # noqa: E731
        dv = add(dv, jnp.einsum("bkgts,btkgd->bksd", p, gb, **dots), kj, 2)
        dq = add(dq, jnp.einsum("bkgts,bksd->btkgd", ds, kb, **dots), qi)
        dk = add(dk, jnp.einsum("bkgts,btkgd->bksd", ds, qb, **dots), kj, 2)
        return (dq, dk, dv, dbias), None

    zeros: Any = [jnp.zeros(x.shape, jnp.float32) for x in (qp, kp, vp)]
    zeros = (*zeros, known.bias.nothing() if known.bias is not None else ())
    (dq, dk, dv, dbias), _ = jax.lax.scan(tile, zeros, (jnp.asarray(i), jnp.asarray(j)))
    sizes = [q.shape[node.operands[0].axes.index(a)] for a in batch]
    dq = dq[:, :t].reshape(*sizes, t, kv * group, -1)
    dk, dv = (x[:, :, :n].reshape(*sizes, kv, n, x.shape[-1]) for x in (dk, dv))
    axes = (
        (*batch, op.queries, op.heads, op.dim),
        (*batch, op.kv_heads, op.keys, op.dim),
        (*batch, op.kv_heads, op.keys, node.operands[2].axes[-1]),
    )
    made = zip((dq, dk, dv), axes, node.operands, strict=False)
    learned = known.bias.results(dbias) if known.bias is not None else ()
    return (*(align(x, own, like.axes).astype(like.type.dtype) for x, own, like in made), *learned)
