"""Which positions count, where none is left out."""

from __future__ import annotations

import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.dropout import Kept


@lowers(Kept)
def _kept(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    return (jnp.ones(ctx.shape(node.result), jnp.int32),)
