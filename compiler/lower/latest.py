"""The last positions of a sequence: a slice where it is whole; entries of the tail and of the call where it is not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.axes import RECENT, STREAM
from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers, read
from compiler.ops.latest import Latest, LatestCount, LatestHeld


@lowers(Latest)
def _latest(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    axis = node.operands[0].axes.index(STREAM)
    count = ctx.length(node.result, RECENT)
    return (jax.lax.slice_in_dim(x, x.shape[axis] - count, x.shape[axis], axis=axis),)


@lowers(LatestHeld)
def _latest_held(ctx: Context, node: Node, x: Array, tail: Any, start: Array, valid: Array) -> tuple[Array, ...]:
    (own, held), out = (v.axes for v in node.operands[:2]), node.result.axes
    rest = tuple(a for a in own if a not in ("batch", STREAM))
    before = align(read(tail), held, ("batch", "taps", *rest)).astype(x.dtype)
    joined = jnp.concatenate([before, align(x, own, ("batch", STREAM, *rest))], 1)
    keep = ctx.length(node.result, RECENT)
    first = jnp.maximum(start + valid - keep, 0) - start + before.shape[1]  # a tail ends where the call begins
    index = jnp.clip(first[:, None] + jnp.arange(keep), 0, joined.shape[1] - 1)
    found = jnp.take_along_axis(joined, index.reshape(*index.shape, *[1] * len(rest)), 1)
    return (align(found, ("batch", RECENT, *rest), out),)


@lowers(LatestCount)
def _latest_count(ctx: Context, node: Node, start: Array, valid: Array) -> tuple[Array, ...]:
    keep = ctx.size(node.op.keep)  # type: ignore[attr-defined]
    first = jnp.maximum(start + valid - keep, 0)
    return first, jnp.where(valid > 0, start + valid - first, 0)
