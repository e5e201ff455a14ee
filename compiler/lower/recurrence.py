"""Recurrences: one step, an associative scan, or blocks of it for long inputs; the short convolution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers, read
from compiler.ops.recurrence import Recur, Shift, ShortConv

BLOCK = 256  # positions of one block of a long scan


def _scan(decay: Array, value: Array, axis: int) -> tuple[Array, Array]:
    """Running products of decay and running states, along ``axis``."""

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(join, (decay, value), axis=axis)


def recur(value: Array, log_decay: Array, state: Array | None, implementation: str) -> Array:
    """States [batch, seq, …] of h_t = exp(log_decay_t) h_(t-1) + value_t, float32; seq is axis 1."""
    value, decay = value.astype(jnp.float32), jnp.exp(log_decay.astype(jnp.float32))
    if state is None:
        state = jnp.zeros_like(value[:, 0])
    length = value.shape[1]
    if implementation == "step" and length == 1:
        return decay * state[:, None] + value
    if implementation != "blocked" or length <= BLOCK:
        products, states = _scan(decay, value, 1)
        return states + products * state[:, None]
    extra = -length % BLOCK
    pads = [(0, 0), (0, extra), *[(0, 0)] * (value.ndim - 2)]
    value, decay = jnp.pad(value, pads), jnp.pad(decay, pads, constant_values=1.0)

    def blocks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:]), 1, 0)

    def step(carry: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        products, states = _scan(*xs, 1)
        states = states + products * carry[:, None]
        return states[:, -1], states

    _, states = jax.lax.scan(step, state, (blocks(decay), blocks(value)))
    states = jnp.moveaxis(states, 0, 1).reshape(value.shape)
    return states[:, :length]


@lowers(Recur)
def _recur(ctx: Context, node: Node, value: Array, decay: Array, state: Any = None) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    order = ("batch", op.axis, *(a for a in axes if a not in ("batch", op.axis)))
    value, decay = (align(x, v.axes, order) for x, v in zip((value, decay), node.operands, strict=False))
    if state is not None:
        state = align(read(state), node.operands[2].axes, tuple(a for a in order if a != op.axis)).astype(jnp.float32)
    if op.reverse:
        value, decay = jnp.flip(value, 1), jnp.flip(decay, 1)
    states = recur(value, decay, state, op.implementation)
    if op.reverse:
        states = jnp.flip(states, 1)
    return (align(states, order, node.result.axes),)


@lowers(ShortConv)
def _short_conv(ctx: Context, node: Node, x: Array, kernel: Array, tail: Any = None) -> tuple[Array, ...]:
    op: Any = node.op
    axes = node.operands[0].axes
    rest = tuple(a for a in axes if a not in ("batch", op.axis))
    x = align(x, axes, ("batch", op.axis, *rest))
    taps = kernel.shape[node.operands[1].axes.index(op.taps)]
    kernel = align(kernel, node.operands[1].axes, (op.taps, *rest)).astype(jnp.float32)
    if op.reverse:
        x = jnp.flip(x, 1)
    if tail is None:
        before = jnp.zeros((x.shape[0], taps - 1, *x.shape[2:]), x.dtype)
    else:
        before = align(read(tail), node.operands[2].axes, ("batch", "taps", *rest)).astype(x.dtype)
    if op.reverse:
        before = jnp.flip(before, 1)
    joined = jnp.concatenate([before, x], 1).astype(jnp.float32)
    length = x.shape[1]
    y = sum(jax.lax.slice_in_dim(joined, k, k + length, axis=1) * kernel[k] for k in range(taps))
    y = jnp.asarray(y).astype(x.dtype)
    if op.reverse:
        y = jnp.flip(y, 1)
    return (align(y, ("batch", op.axis, *rest), axes),)


@lowers(Shift)
def _shift(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    at = node.operands[0].axes.index(op.axis)
    if op.wrap:
        return (jnp.roll(x, op.by, at),)
    size = x.shape[at]
    by = max(-size, min(size, op.by))
    widths = [(max(by, 0), max(-by, 0)) if i == at else (0, 0) for i in range(x.ndim)]
    start = 0 if by >= 0 else -by
    return (jax.lax.slice_in_dim(jnp.pad(x, widths), start, start + size, axis=at),)
