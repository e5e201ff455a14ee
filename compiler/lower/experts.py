"""Experts: ragged (sorted pairs, one grouped product) or dense (every expert on every token)."""

from __future__ import annotations

import string
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops import experts


@lowers(experts.Route)
def _route(ctx: Context, node: Node, logits: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    logits = align(logits, axes, (*(a for a in axes if a != "experts"), "experts")).astype(jnp.float32)
    values, chosen = jax.lax.top_k(jax.nn.softmax(logits, -1), op.active)
    if op.normalise:
        values = values / jnp.sum(values, -1, keepdims=True)
    return values, chosen.astype(jnp.int32)


@lowers(experts.OneHot)
def _one_hot(ctx: Context, node: Node, weights: Array, chosen: Array) -> tuple[Array, ...]:
    hits = jax.nn.one_hot(chosen, ctx.size(node.op.experts), dtype=weights.dtype)  # type: ignore[attr-defined]
    return (jnp.sum(weights[..., None] * hits, -2),)


@lowers(experts.PickExperts)
def _pick(ctx: Context, node: Node, x: Array, chosen: Array) -> tuple[Array, ...]:
    axes = node.operands[0].axes
    x = align(x, axes, (*(a for a in axes if a != "experts"), "experts"))
    return (jnp.take_along_axis(x, chosen, -1),)


@lowers(experts.Dispatch)
def _dispatch(ctx: Context, node: Node, x: Array, chosen: Array) -> tuple[Array, ...]:
    op: Any = node.op
    count = ctx.size(op.experts)
    if op.implementation == "dense":
        return x, jnp.zeros((0,), jnp.int32), jnp.zeros((count,), jnp.int32)
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    groups = jnp.bincount(flat, length=count).astype(jnp.int32)
    rows = x.reshape(-1, *x.shape[chosen.ndim - 1 :])
    return jnp.take(rows, order // chosen.shape[-1], axis=0), order, groups


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
        y = jax.lax.ragged_dot(x, w, groups, precision=ctx.precision(x.dtype), preferred_element_type=jnp.float32)
        return (y.astype(out.dtype),)
    letters = dict(zip(dict.fromkeys([*left.axes, *right.axes]), string.ascii_letters, strict=False))
    sides = ["".join(letters[a] for a in axes) for axes in (left.axes, right.axes, out.axes)]
    y = jnp.einsum(f"{sides[0]},{sides[1]}->{sides[2]}", x, w, precision=ctx.precision(x.dtype),
                   preferred_element_type=jnp.float32)  # fmt: skip
    return (y.astype(out.dtype),)


@lowers(experts.ExpertOuter)
def _expert_outer(ctx: Context, node: Node, x: Array, g: Array, groups: Array) -> tuple[Array, ...]:
    numbers = jax.lax.ragged_dot_general(
        x, g, groups,
        jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], []),
        precision=ctx.precision(x.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip
    return (numbers,)


def _sorted_weights(weights: Array, order: Array) -> Array:
    return jnp.take(weights.reshape(-1), order)


def _dense_weights(weights: Array, chosen: Array, experts_count: int) -> Array:
    return jnp.sum(weights[..., None] * jax.nn.one_hot(chosen, experts_count, dtype=weights.dtype), -2)


@lowers(experts.Collect)
def _collect(ctx: Context, node: Node, y: Array, weights: Array, chosen: Array, order: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    if op.implementation == "dense":
        rest = tuple(a for a in node.result.axes if a not in node.operands[1].axes)
        y = align(y, axes, (*node.operands[1].axes[:-1], "experts", *rest))
        here = y.shape[len(node.operands[1].axes) - 1]
        first = jax.lax.axis_index(op.shard) * here if op.shard else 0
        spread = _dense_weights(weights, chosen - first, here)
        total = jnp.einsum("...e,...ed->...d", spread, y.astype(jnp.float32), precision=ctx.precision(jnp.float32))
        return (total.astype(y.dtype),)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
    rows = jnp.take(y, back, axis=0).reshape(*weights.shape, *y.shape[1:]).astype(jnp.float32)
    total = jnp.sum(rows * weights.reshape(*weights.shape, *[1] * (y.ndim - 1)), len(weights.shape) - 1)
    return (total.astype(y.dtype),)


@lowers(experts.CollectGradient)
def _collect_gradient(
    ctx: Context, node: Node, g: Array, y: Array, weights: Array, chosen: Array, order: Array
) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[1].axes
    g32 = g.astype(jnp.float32)
    if op.implementation == "dense":
        rest = tuple(a for a in axes if a not in ("experts", *node.operands[2].axes))
        order_axes = (*node.operands[2].axes[:-1], "experts", *rest)
        laid = align(y, axes, order_axes).astype(jnp.float32)
        spread = _dense_weights(weights, chosen, laid.shape[len(node.operands[2].axes) - 1])
        dy = align(spread[..., None] * g32[..., None, :], order_axes, axes)
        dw = jnp.take_along_axis(jnp.sum(laid * g32[..., None, :], -1), chosen, -1)
        return dy.astype(y.dtype), dw.astype(weights.dtype)
    tokens = g32.reshape(-1, *g.shape[len(weights.shape) - 1 :])
    picked = jnp.take(tokens, order // weights.shape[-1], axis=0)
    dy = picked * _sorted_weights(weights, order)[:, None]
    dots = jnp.sum(picked * y.astype(jnp.float32), -1)
    dw = jnp.zeros_like(dots).at[order].set(dots).reshape(weights.shape)
    return dy.astype(y.dtype), dw.astype(weights.dtype)
