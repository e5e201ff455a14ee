"""Picking entries by number along an axis, and laying them out again; each shard knows its own entries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align, own_ids
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.loss import Pick, Place


@lowers(Pick)
def _pick(ctx: Context, node: Node, x: Array, ids: Array) -> tuple[Array, ...]:
    op: Any = node.op
    rest = node.result.axes
    x = align(x, node.operands[0].axes, (*rest, op.axis))
    ids = align(ids, node.operands[1].axes, rest)
    local, mine = own_ids(ids, x.shape[-1], op.shard)
    return (jnp.where(mine, jnp.take_along_axis(x, local[..., None], -1)[..., 0], 0),)


@lowers(Place)
def _place(ctx: Context, node: Node, g: Array, ids: Array) -> tuple[Array, ...]:
    op: Any = node.op
    size = ctx.length(node.result, op.axis)
    ids = align(ids, node.operands[1].axes, node.operands[0].axes)
    local, mine = own_ids(ids, size, op.shard)
    hit = jax.nn.one_hot(jnp.where(mine, local, -1), size, dtype=bool)
    return (jnp.where(hit, g[..., None], 0),)
