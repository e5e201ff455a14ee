"""Writing state in place: in the scan's carry a write touches only the new entries of one layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, StackSlot, lowers, read
from compiler.ops.state import After, Append, KeepLast, KeepTail, LastValid, Replace, slots_of, slots_together


def _store(old: Any, new: Array) -> Any:
    """A whole layer's state replaced (small states only)."""
    if isinstance(old, StackSlot):
        return StackSlot(old.stack.at[old.index].set(new.astype(old.stack.dtype)), old.index)
    return new.astype(old.dtype)


@lowers(Append)
def _append(ctx: Context, node: Node, cache: Any, new: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    axes = node.operands[0].axes
    types = [v.type for v in node.operands[:2]]
    axis = node.op.axis  # type: ignore[attr-defined]
    slots, together = ctx.size(slots_of(types[0], types[1], axis)), slots_together(types[0], types[1], axis)
    packed = "lanes" in axes
    inner = node.operands[1].axes if packed else axes
    new = align(new, node.operands[1].axes, ("batch", axis, *(a for a in inner if a not in ("batch", "slots", axis))))
    new = new.reshape(*new.shape[:2], -1) if packed else new
    skipped = jnp.zeros_like(valid)
    if new.shape[1] > slots:  # only the last ``slots`` valid entries of a row stay
        skipped = jnp.maximum(valid - slots, 0)
        index = jnp.minimum(skipped[:, None] + jnp.arange(slots), new.shape[1] - 1)
        new = jnp.take_along_axis(new, index.reshape(*index.shape, *[1] * (new.ndim - 2)), 1)
    count = jnp.minimum(valid - skipped, new.shape[1])
    stack, layer = (cache.stack, cache.index) if isinstance(cache, StackSlot) else (cache, ())
    first, new = (start + skipped) % slots, new.astype(stack.dtype)
    if together > 1:
        stack = _scatter_lanes(stack, layer, axes, together, new, first, count)
    else:
        here = jax.lax.axis_index(node.op.shard) * ctx.length(node.operands[0], "slots") if node.op.shard else 0  # type: ignore[attr-defined]
        stack = _scatter(stack, layer, axes, new, (first, slots, here), count)
    return (StackSlot(stack, layer) if isinstance(cache, StackSlot) else stack,)


def _scatter(
    stack: Array,
    layer: tuple[Array, ...],
    axes: tuple[str, ...],
    new: Array,
    where_to: tuple[Array, int, Any],
    count: Array,
) -> Array:
    """new [batch, seq, …] at slots first + t, for t < count; one scatter. ``where_to``: first, the slots of the whole
    cache, and which of them is the first here."""
    slots_axis = "slot_rows" if "lanes" in axes else "slots"
    (first, slots, here), step = where_to, jnp.arange(new.shape[1])
    local = stack.shape[len(layer) + axes.index(slots_axis)]
    place = (first[:, None] + step) % slots - here
    # entries past the valid ones, and other shards', go out of range and are dropped
    place = jnp.where((step < count[:, None]) & (place >= 0), place, local)
    rows = jnp.arange(new.shape[0])[:, None]
    where = tuple({"batch": rows, slots_axis: place}.get(a, _inner(axes, a)) for a in axes)
    return stack.at[(*layer, *where)].set(new, mode="drop")


def _inner(axes: tuple[str, ...], axis: str) -> Any:
    """Index of an axis that is neither rows nor slots: of a packed cache a shard has one entry of the divided heads."""
    return 0 if "lanes" in axes and axis != "lanes" else slice(None)


def _scatter_lanes(
    stack: Array,
    layer: tuple[Array, ...],
    axes: tuple[str, ...],
    together: int,
    new: Array,
    first: Array,
    count: Array,
) -> Array:
    """As ``_scatter``, where ``together`` slots share a row [batch, slot_rows, lanes]."""
    rows, width, shape = stack.shape[-2], new.shape[-1], new.shape[:2]
    step = jnp.arange(shape[1])
    place = (first[:, None] + step) % (rows * together)
    row = jnp.where(step < count[:, None], place // together, rows)
    inner = {"batch": jnp.arange(shape[0])[:, None], "slot_rows": row, "lanes": place % together * width}
    where = (*layer, *(inner.get(a, jnp.zeros((), row.dtype)) for a in axes))
    index = jnp.stack([jnp.broadcast_to(i, shape) for i in where], -1)
    fixed = tuple(range(stack.ndim - 1))
    numbers = jax.lax.ScatterDimensionNumbers((2,), fixed, (*fixed, stack.ndim - 1))
    return jax.lax.scatter(stack, index, new, numbers, mode="drop")


def _pick(x: Array, index: Array) -> Array:
    """Entry index[b] of row b along axis 1."""
    return jnp.take_along_axis(x, index.reshape(-1, *[1] * (x.ndim - 1)), 1)


@lowers(KeepLast)
def _keep_last(ctx: Context, node: Node, old: Any, states: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    order = ("batch", node.op.axis, *node.operands[0].axes[1:])  # type: ignore[attr-defined]
    states = align(states, node.operands[1].axes, order)
    last = _pick(states, jnp.maximum(valid - 1, 0))[:, 0]
    before = read(old)
    return (_store(old, jnp.where((valid > 0).reshape(-1, *[1] * (last.ndim - 1)), last.astype(before.dtype), before)),)


@lowers(KeepTail)
def _keep_tail(ctx: Context, node: Node, tail: Any, new: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    rest = tuple(a for a in node.operands[0].axes if a not in ("batch", "taps"))
    before, axis = read(tail), node.op.axis  # type: ignore[attr-defined]
    axes = node.operands[0].axes
    joined = jnp.concatenate(
        [
            align(before, axes, ("batch", "taps", *rest)),
            align(new, node.operands[1].axes, ("batch", axis, *rest)).astype(before.dtype),
        ],
        1,
    )
    taps = joined.shape[1] - new.shape[node.operands[1].axes.index(axis)]
    index = valid[:, None] + jnp.arange(taps)
    kept = jnp.take_along_axis(joined, index.reshape(*index.shape, *[1] * (joined.ndim - 2)), 1)
    return (_store(tail, align(kept, ("batch", "taps", *rest), axes)),)


@lowers(Replace)
def _replace(ctx: Context, node: Node, old: Any, new: Array, start: Array, valid: Array) -> tuple[Any, ...]:
    return (_store(old, align(new, node.operands[1].axes, node.operands[0].axes)),)


@lowers(After)
def _after(ctx: Context, node: Node, x: Array, other: Array) -> tuple[Array, ...]:
    # never true, which the compiler cannot know: an optimisation barrier is gone before XLA for CPU inserts copies
    one = other.reshape(-1)[0]
    return (jnp.where((one != one) & (one == 0), jnp.zeros((), x.dtype), x),)


@lowers(LastValid)
def _last_valid(ctx: Context, node: Node, x: Array, valid: Array) -> tuple[Array, ...]:
    axes, axis = node.operands[0].axes, node.op.axis  # type: ignore[attr-defined]
    if axes[:2] != ("batch", axis):
        raise AssertionError(f"expected [batch {axis} …], found {axes}")
    return (_pick(x, jnp.maximum(valid - 1, 0)),)
