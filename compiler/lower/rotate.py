"""Rotary embedding with exact angles: fractions of a turn in 64-bit fixed point, in two 32-bit words."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.rotate import Rotate


def turns(theta: float, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns a position for each pair of channels, as 64 fractional bits in a high and a low 32-bit word."""
    from fractions import Fraction

    words = []
    for i in range(channels // 2):
        per_position = theta ** (-2.0 * i / channels) / (2 * math.pi)
        words.append(int(Fraction(per_position) * 2**64) % 2**64)
    return np.array([w >> 32 for w in words], np.uint32), np.array([w & 0xFFFFFFFF for w in words], np.uint32)


def angles(positions: Array, theta: float, channels: int) -> Array:
    """Angles in (-pi, pi] of [..., positions] for each pair: [..., positions, channels / 2], float32. The fraction
    of a turn wraps in integer arithmetic, so the error does not grow with the position."""
    high, low = turns(theta, channels)
    p = positions.astype(jnp.uint32)[..., None]
    p0, p1 = p & 0xFFFF, p >> 16
    l0, l1 = low & np.uint32(0xFFFF), low >> np.uint32(16)
    # the high 32 bits of p * low, by 16-bit halves
    cross = p1 * l0 + ((p0 * l0) >> 16)
    middle = p0 * l1 + (cross & 0xFFFF)
    carried = p1 * l1 + (cross >> 16) + (middle >> 16)
    fraction = p * high + carried  # of a turn, modulo 2**32
    return fraction.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * math.pi / 2**32)


@lowers(Rotate)
def _rotate(ctx: Context, node: Node, x: Array, positions: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    at = axes.index(op.axis)
    angle = angles(positions, op.theta, op.channels)
    if op.inverse:
        angle = -angle
    broadcast = (*node.operands[1].axes, op.axis)
    cos, sin = (align(f(angle), broadcast, axes) for f in (jnp.cos, jnp.sin))
    x32 = jnp.moveaxis(x.astype(jnp.float32), at, -1)
    cos, sin = jnp.moveaxis(cos, at, -1), jnp.moveaxis(sin, at, -1)
    turned, rest = x32[..., : op.channels], x32[..., op.channels :]
    if op.pairs == "half":
        a, b = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    y = jnp.concatenate([turned, rest], axis=-1) if op.channels < x32.shape[-1] else turned
    return (jnp.moveaxis(y, -1, at).astype(x.dtype),)
