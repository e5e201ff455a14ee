"""Writing state in place: in the scan's carry a write touches only the new entries of one layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, StackSlot, lowers, read
from compiler.ops.state import Append, KeepLast, KeepTail, LastValid


def _store(old: Any, new: Array) -> Any:
    """A whole layer's state replaced (small states only)."""
    if isinstance(old, StackSlot):
        return StackSlot(old.stack.at[old.index].set(new.astype(old.stack.dtype)), old.index)
    return new.astype(old.dtype)


@lowers(Append)
def _append(ctx: Context, node: Node, cache: Any, new: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    slots = ctx.size(node.operands[0].type.size("slots"))
    axes = tuple("seq" if a == "slots" else a for a in node.operands[0].axes)
    new = align(new, node.operands[1].axes, axes)
    if axes[:2] != ("batch", "seq"):
        raise AssertionError(f"a cache is [batch slots …], found {axes}")
    length = new.shape[1]
    if length > slots:  # only the last ``slots`` valid entries of a row stay
        first = jnp.maximum(valid - slots, 0)
        index = first[:, None] + jnp.arange(slots)
        new = jnp.take_along_axis(new, jnp.minimum(index, length - 1).reshape(*index.shape, *[1] * (new.ndim - 2)), 1)
        step = index
    else:
        step = jnp.broadcast_to(jnp.arange(length), (new.shape[0], length))
    # entries past the valid ones go out of range and are dropped
    place = jnp.where(step < valid[:, None], (start[:, None] + step) % slots, slots)
    rows = jnp.arange(new.shape[0])[:, None]
    options = {"mode": "drop", "unique_indices": False}
    if isinstance(cache, StackSlot):
        stack = cache.stack.at[cache.index, rows, place].set(new.astype(cache.stack.dtype), **options)
        return (StackSlot(stack, cache.index),)
    return (cache.at[rows, place].set(new.astype(cache.dtype), **options),)


def _pick(x: Array, index: Array) -> Array:
    """Entry index[b] of row b along axis 1."""
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), 1)


@lowers(KeepLast)
def _keep_last(ctx: Context, node: Node, old: Any, states: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    states = align(states, node.operands[1].axes, ("batch", "seq", *node.operands[0].axes[1:]))
    last = _pick(states, jnp.maximum(valid - 1, 0))[:, 0]
    before = read(old)
    return (_store(old, jnp.where((valid > 0).reshape(-1, *[1] * (last.ndim - 1)), last.astype(before.dtype), before)),)


@lowers(KeepTail)
def _keep_tail(ctx: Context, node: Node, tail: Any, new: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    rest = tuple(a for a in node.operands[0].axes if a not in ("batch", "taps"))
    before = read(tail)
    axes = node.operands[0].axes
    joined = jnp.concatenate(
        [
            align(before, axes, ("batch", "taps", *rest)),
            align(new, node.operands[1].axes, ("batch", "seq", *rest)).astype(before.dtype),
        ],
        1,
    )
    taps = joined.shape[1] - new.shape[node.operands[1].axes.index("seq")]
    index = valid[:, None] + jnp.arange(taps)
    kept = jnp.take_along_axis(joined, index.reshape(*index.shape, *[1] * (joined.ndim - 2)), 1)
    return (_store(tail, align(kept, ("batch", "taps", *rest), axes)),)


@lowers(LastValid)
def _last_valid(ctx: Context, node: Node, x: Array, valid: Array) -> tuple[Array, ...]:
    axes = node.operands[0].axes
    if axes[:2] != ("batch", "seq"):
        raise AssertionError(f"expected [batch seq …], found {axes}")
    return (_pick(x, jnp.maximum(valid - 1, 0)),)
