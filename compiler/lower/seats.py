"""Seats of experts: tokens to seats and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops import seats


@lowers(seats.Seats)
def _seats(ctx: Context, node: Node, chosen: Array) -> tuple[Array, ...]:
    op: Any = node.op
    out = ctx.shape(node.result)
    x = align(chosen, node.operands[0].axes, (*node.result.axes[:-2], op.axis, "active"))
    x = x.reshape(-1, *x.shape[-2:])
    (rows, tokens), (experts, places) = x.shape[:2], out[-2:]
    hits = jnp.any(x[..., None] == jnp.arange(experts), -2)  # [rows, tokens, experts]
    place = jnp.where(hits, jnp.cumsum(hits.astype(jnp.int32), 1) - 1, places)  # beyond the last: dropped
    row, expert = jnp.arange(rows)[:, None, None], jnp.arange(experts)
    number = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], hits.shape)
    empty = jnp.full((rows, experts, places), tokens, jnp.int32)
    return (empty.at[row, expert, place].set(number, mode="drop").reshape(out),)


@lowers(seats.ChooseTokens)
def _choose(ctx: Context, node: Node, scores: Array, lengths: Array | None = None) -> tuple[Array, ...]:
    op: Any = node.op
    axes, lead = node.operands[0].axes, node.result.axes[:-2]
    x = align(scores, axes, (*lead, "experts", op.axis))
    tokens = x.shape[-1]
    if lengths is not None:
        real = jnp.arange(tokens) < lengths.reshape(-1, *[1] * (x.ndim - 1))
        x = jnp.where(real, x, -jnp.inf)
    best, at = jax.lax.top_k(x, ctx.size(op.seats))
    return (jnp.where(jnp.isneginf(best), tokens, at).astype(jnp.int32),)


@lowers(seats.ToSeats)
def _to_seats(ctx: Context, node: Node, x: Array, at: Array) -> tuple[Array, ...]:
    op: Any = node.op
    lead, rest, at = _sides(node, at)
    own = ("experts",) if "experts" in node.operands[0].axes else ()
    x = align(x, node.operands[0].axes, (*lead, *own, op.axis, *rest))
    inner = x.shape[len(lead) + len(own) + 1 :]

    def take(entries: Array, places: Array) -> Array:
        return jnp.take(entries, places, axis=0, mode="fill", fill_value=0)

    each = jax.vmap(jax.vmap(take)) if own else jax.vmap(take)
    found = each(x.reshape(-1, *x.shape[len(lead) :]), at.reshape(-1, *at.shape[len(lead) :]))
    return (align(found.reshape(*at.shape, *inner), (*lead, *op.places, *rest), node.result.axes),)


@lowers(seats.FromSeats)
def _from_seats(ctx: Context, node: Node, y: Array, at: Array) -> tuple[Array, ...]:
    op: Any = node.op
    lead, rest, at = _sides(node, at)
    y = align(y, node.operands[0].axes, (*lead, *op.places, *rest))
    inner, tokens = y.shape[at.ndim :], ctx.length(node.result, op.axis)

    def add(entries: Array, places: Array) -> Array:
        total = jnp.zeros((tokens, *inner), jnp.float32)
        return total.at[places.reshape(-1)].add(entries.reshape(-1, *inner).astype(jnp.float32), mode="drop")

    each = jax.vmap(jax.vmap(add)) if op.each else jax.vmap(add)
    total = each(y.reshape(-1, *y.shape[len(lead) :]), at.reshape(-1, *at.shape[len(lead) :])).astype(y.dtype)
    axes = (*lead, *(("experts",) if op.each else ()), op.axis, *rest)
    return (align(total.reshape(*at.shape[: len(lead)], *total.shape[1:]), axes, node.result.axes),)


def _sides(node: Node, at: Array) -> tuple[tuple[str, ...], tuple[str, ...], Array]:
    """The axes of rows, those that entries have besides, and the seats' tokens [rows.., places..]."""
    (x, seat), op = node.operands, node.op
    places: tuple[str, ...] = op.places  # type: ignore[attr-defined]
    lead = tuple(a for a in seat.axes if a not in places)
    rest = tuple(a for a in x.axes if a not in (*seat.axes, op.axis))  # type: ignore[attr-defined]
    return lead, rest, align(at, seat.axes, (*lead, *places))
