"""How many of a kind."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.registry import Array, Context, lowers, read
from compiler.ops.ordinal import Ordinal


@lowers(Ordinal)
def _ordinal(ctx: Context, node: Node, ids: Array, before: Any = None) -> tuple[Array, ...]:
    op: Any = node.op
    axis = node.operands[0].axes.index(op.axis)
    here = ids == op.token
    count = jnp.cumsum(here.astype(jnp.int32), axis)
    if before is not None:
        count = count + jnp.expand_dims(read(before), axis)
    return jnp.where(here, count - 1, op.other).astype(ids.dtype), count.astype(ids.dtype)
