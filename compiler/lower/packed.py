"""Packed weights where they are read."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import product
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.packed import DotPacked, Unpack

PART = 1 << 24  # entries of a weight that are unpacked at once: 32 MiB in bfloat16
TILE = 128


def unpacked(values: Array, scales: Array, axis: int, dtype: Any) -> Array:
    groups = scales.shape[axis]
    shape = (*values.shape[:axis], groups, values.shape[axis] // groups, *values.shape[axis + 1 :])
    whole = values.astype(dtype).reshape(shape) * jnp.expand_dims(scales.astype(dtype), axis + 1)
    return whole.reshape(values.shape)


@lowers(Unpack)
def _unpack(ctx: Context, node: Node, values: Array, scales: Array) -> tuple[Array, ...]:
    op: Any = node.op
    return (unpacked(values, scales, node.operands[0].axes.index(op.axis), node.result.type.dtype),)


def parts(size: int, axis: int) -> int:
    """In how many parts an axis of a weight of ``size`` entries is taken: whole tiles of a TPU where there is a number
    near that gives them, as XLA copies what it cuts otherwise."""
    least = math.ceil(size / PART)
    fitting = [n for n in range(least, min(4 * least, axis) + 1) if axis % n == 0]
    whole = [n for n in fitting if axis // n % TILE == 0]
    return next(iter([*whole, *fitting]), 1)


@lowers(DotPacked)
def _dot_packed(ctx: Context, node: Node, x: Array, values: Array, scales: Array) -> tuple[Array, ...]:
    """In parts along an axis of the result that the weight alone has: XLA would write a large weight to memory unpacked
    (for TPU parts of this size stay in vector memory)."""
    op: Any = node.op
    left, right, out = node.operands[0].axes, node.operands[1].axes, node.result
    at = right.index(op.axis)

    def part(values: Array, scales: Array) -> Array:
        w = unpacked(values, scales, at, x.dtype)
        return product(ctx, left, right, out.axes, x, w).astype(out.type.dtype)

    free = [a for a in right if a not in left and a != op.axis]
    axis = max(free, key=lambda a: values.shape[right.index(a)], default=None)
    most = values.shape[right.index(axis)] if axis else 1
    count = parts(values.size, most)
    if count <= 1 or axis is None:
        return (part(values, scales),)
    where, into, size = right.index(axis), out.axes.index(axis), most // count

    def step(i: Array, total: Array) -> Array:
        cut = [jax.lax.dynamic_slice_in_dim(a, i * size, size, where) for a in (values, scales)]
        return jax.lax.dynamic_update_slice_in_dim(total, part(*cut), i * size, into)

    shape = [ctx.length(out, a) for a in out.axes]
    return (jax.lax.fori_loop(0, count, step, jnp.zeros(shape, out.type.dtype)),)
