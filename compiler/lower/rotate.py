"""Rotary embedding with exact angles: fractions of a turn in 64-bit fixed point, in two 32-bit words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.rotate import Rotate


def turns(frequencies: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Turns a position for each pair of channels, from radians a position, as 64 fractional bits in a high and a low
    32-bit word."""
    words = [int(Fraction(f / (2 * math.pi)) * 2**64) % 2**64 for f in frequencies]
    return np.array([w >> 32 for w in words], np.uint32), np.array([w & 0xFFFFFFFF for w in words], np.uint32)


def angles(positions: Array, frequencies: Sequence[float]) -> Array:
    """Angles in (-pi, pi] of [..., positions] for each frequency (radians a position): [..., positions, pairs],
    float32. The fraction of a turn wraps in integer arithmetic, so the error does not grow with the position."""
    high, low = turns(frequencies)
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
    angle = angles(positions, op.scaling.frequencies(op.theta, op.channels))
    if op.inverse:
        angle = -angle
    broadcast = (*node.operands[1].axes, op.axis)
    cos, sin = (align(f(angle) * op.scaling.magnitude, broadcast, axes) for f in (jnp.cos, jnp.sin))
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
