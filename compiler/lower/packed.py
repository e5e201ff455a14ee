"""Packed weights where they are read."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.packed import Unpack


@lowers(Unpack)
def _unpack(ctx: Context, node: Node, values: Array, scales: Array) -> tuple[Array, ...]:
    op: Any = node.op
    at = node.operands[0].axes.index(op.axis)
    groups = scales.shape[at]
    shape = (*values.shape[:at], groups, values.shape[at] // groups, *values.shape[at + 1 :])
    whole = values.astype(op.dtype).reshape(shape) * jnp.expand_dims(scales.astype(op.dtype), at + 1)
    return (whole.reshape(values.shape),)
