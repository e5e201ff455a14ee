"""Experts: ragged (sorted pairs, one grouped product) or dense (every expert on every token)."""

from __future__ import annotations

import string
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower import tiles
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.lower.rows import from_rows, own, tally, to_rows
from compiler.ops import experts


@lowers(experts.Choose)
def _choose(ctx: Context, node: Node, scores: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    scores = align(scores, axes, (*(a for a in axes if a != "experts"), "experts"))
    if op.active_groups < op.groups:
        grouped = scores.reshape(*scores.shape[:-1], op.groups, -1)
        best = jax.lax.top_k(grouped, min(2, grouped.shape[-1]) if op.by == "top2" else 1)[0].sum(-1)
        groups = jax.lax.top_k(best, op.active_groups)[1]
        open_ = jnp.any(groups[..., None] == jnp.arange(op.groups), -2)
        scores = jnp.where(open_[..., None], grouped, -jnp.inf).reshape(scores.shape)
    return (jax.lax.top_k(scores, op.active)[1].astype(jnp.int32),)


@lowers(experts.OneHot)
def _one_hot(ctx: Context, node: Node, weights: Array, chosen: Array) -> tuple[Array, ...]:
    here, first = own(ctx, node.op)
    hits = jax.nn.one_hot(chosen - first, here, dtype=weights.dtype)
    return (jnp.sum(weights[..., None] * hits, -2),)


@lowers(experts.PickExperts)
def _pick(ctx: Context, node: Node, x: Array, chosen: Array) -> tuple[Array, ...]:
    axes = node.operands[0].axes
    x = align(x, axes, (*(a for a in axes if a != "experts"), "experts"))
    shard, here = node.op.shard, x.shape[-1]  # type: ignore[attr-defined]
    at = chosen - jax.lax.axis_index(shard) * here if shard else chosen
    found = jnp.take_along_axis(x, jnp.clip(at, 0, here - 1), -1)
    return (jnp.where((at >= 0) & (at < here), found, jnp.zeros((), x.dtype)),)


@lowers(experts.Dispatch)
def _dispatch(ctx: Context, node: Node, x: Array, chosen: Array) -> tuple[Array, ...]:
    op: Any = node.op
    if op.implementation == "dense":
        return x, jnp.zeros((0,), jnp.int32), jnp.zeros((0,), jnp.int32)
    order = jnp.argsort(chosen.reshape(-1), stable=True).astype(jnp.int32)
    here, first = own(ctx, op)
    groups = jax.lax.dynamic_slice(tally(ctx, op, chosen), (first,), (here,))
    x = align(x, node.operands[0].axes, (*node.operands[1].axes[:-1], *node.results[0].axes[1:]))
    return to_rows(ctx, op, x, chosen, order), order, groups


@lowers(experts.ExpertDot)
def _expert_dot(ctx: Context, node: Node, x: Array, w: Array, groups: Array) -> tuple[Array, ...]:
    op: Any = node.op
    left, right = node.operands[:2]
    out = node.result.type
    x, w = ctx.factors(x, w)
    if op.implementation == "ragged":
        w = align(
            w,
            right.axes,
            ("experts", *op.contract, *(a for a in right.axes if a not in ("experts", *op.contract))),
        )
        precision, room = ctx.precision(x.dtype), w.shape[0] < int(op.experts.constant)

        def ragged(x: Array, w: Array, groups: Array) -> Array:
            return jax.lax.ragged_dot(x, w, groups, precision=precision, preferred_element_type=jnp.float32)

        def tiled(x: Array, w: Array, groups: Array) -> Array:
            return tiles.product(x, w, groups, precision, room)

        y = jax.lax.platform_dependent(x, w, groups, tpu=ragged, default=tiled)
        return (y.astype(out.dtype),)
    letters = dict(zip(dict.fromkeys([*left.axes, *right.axes]), string.ascii_letters, strict=False))
    sides = ["".join(letters[a] for a in axes) for axes in (left.axes, right.axes, out.axes)]
    y = jnp.einsum(f"{sides[0]},{sides[1]}->{sides[2]}", x, w, precision=ctx.precision(x.dtype),
                   preferred_element_type=jnp.float32)  # fmt: skip
    return (y.astype(out.dtype),)


@lowers(experts.ExpertOuter)
def _expert_outer(ctx: Context, node: Node, x: Array, g: Array, groups: Array) -> tuple[Array, ...]:
    op: Any = node.op
    room = groups.shape[0] < int(op.experts.constant)
    precision, rows = ctx.precision(x.dtype), jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])

    def ragged(x: Array, g: Array, groups: Array) -> Array:
        return jax.lax.ragged_dot_general(
            x, g, groups, rows, precision=precision, preferred_element_type=jnp.float32
        )  # fmt: skip

    def tiled(x: Array, g: Array, groups: Array) -> Array:
        return tiles.outer(x, g, groups, precision, room)

    made = jax.lax.platform_dependent(x, g, groups, tpu=ragged, default=tiled)
    return (made.astype(node.result.type.dtype),)


@lowers(experts.Collect)
def _collect(ctx: Context, node: Node, y: Array, weights: Array, chosen: Array, order: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    if op.implementation == "dense":
        rest = tuple(a for a in node.result.axes if a not in node.operands[1].axes)
        y = align(y, axes, (*node.operands[1].axes[:-1], "experts", *rest))
        here, first = own(ctx, op)
        spread = jnp.sum(weights[..., None] * jax.nn.one_hot(chosen - first, here, dtype=weights.dtype), -2)
        total = jnp.einsum("...e,...ed->...d", spread, y.astype(jnp.float32), precision=ctx.precision(jnp.float32))
        return (total.astype(y.dtype),)
    rows = from_rows(ctx, op, y, chosen, order).astype(jnp.float32)
    total = jnp.sum(rows * weights.reshape(*weights.shape, *[1] * (y.ndim - 1)), len(weights.shape) - 1)
    return (total.astype(y.dtype),)
