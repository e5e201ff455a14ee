"""Sinusoidal positions with exact angles."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.registry import Array, Context, lowers
from compiler.lower.rotate import angles
from compiler.ops.frequencies import geometric
from compiler.ops.sinusoid import Sinusoid


@lowers(Sinusoid)
def _sinusoid(ctx: Context, node: Node, positions: Array) -> tuple[Array, ...]:
    op: Any = node.op
    angle = angles(positions, geometric(op.theta, int(op.size.constant)))
    parts = jnp.sin(angle), jnp.cos(angle)
    if op.pairs == "half":
        return (jnp.concatenate(parts, -1),)
    return (jnp.stack(parts, -1).reshape(*positions.shape, -1),)
