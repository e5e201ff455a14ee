"""Rows of experts: tokens sorted by expert, and back; of a shard's own experts where they are split."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops import rows


def own(ctx: Context, op: Any) -> tuple[int, Any]:
    """How many experts a shard has, and the first of them."""
    here = ctx.size(op.experts)
    for m in op.shard:
        here //= ctx.mesh[m]
    return here, jax.lax.axis_index(op.shard) * here if op.shard else 0


def tally(ctx: Context, op: Any, chosen: Array) -> Array:
    """How many rows each expert of the whole has."""
    return jnp.bincount(chosen.reshape(-1), length=ctx.size(op.experts)).astype(jnp.int32)


def _span(ctx: Context, op: Any, chosen: Array) -> tuple[Any, Any]:
    """Where the rows of a shard's own experts start in the order of all, and how many they are."""
    here, first = own(ctx, op)
    every = tally(ctx, op, chosen)
    before = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(every)])
    return before[first], before[first + here] - before[first]


def to_rows(ctx: Context, op: Any, x: Array, chosen: Array, order: Array, each: bool = False) -> Array:
    """x [tokens…, …] by row; ``each``: x has an entry for every pair. Of a shard's own experts come first."""
    flat = x.reshape(-1, *x.shape[chosen.ndim - (0 if each else 1) :])
    if op.shard:
        start, _ = _span(ctx, op, chosen)
        order = jnp.roll(order, -start)
    return jnp.take(flat, order if each else order // chosen.shape[-1], axis=0)


def from_rows(ctx: Context, op: Any, y: Array, chosen: Array, order: Array) -> Array:
    """The rows [rows, …] as [tokens…, active, …]; zero where another shard has them."""
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))
    if op.shard:
        start, many = _span(ctx, op, chosen)
        back = back - start
        here = (back >= 0) & (back < many)
        found = jnp.take(y, jnp.clip(back, 0, y.shape[0] - 1), axis=0)
        found = jnp.where(here.reshape(-1, *[1] * (y.ndim - 1)), found, jnp.zeros((), y.dtype))
    else:
        found = jnp.take(y, back, axis=0)
    return found.reshape(*chosen.shape, *y.shape[1:])


@lowers(rows.ToRows)
def _to_rows(ctx: Context, node: Node, x: Array, chosen: Array, order: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes, tokens = node.operands[0].axes, node.operands[1].axes
    each = "active" in axes
    lead = tokens if each else tokens[:-1]
    rest = tuple(a for a in axes if a not in tokens)
    return (to_rows(ctx, op, align(x, axes, (*lead, *rest)), chosen, order, each),)


@lowers(rows.FromRows)
def _from_rows(ctx: Context, node: Node, y: Array, chosen: Array, order: Array) -> tuple[Array, ...]:
    return (from_rows(ctx, node.op, y, chosen, order),)


@lowers(rows.Tally)
def _tally(ctx: Context, node: Node, chosen: Array) -> tuple[Array, ...]:
    return (tally(ctx, node.op, chosen),)
