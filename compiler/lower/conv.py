"""Convolutions and pooling. XLA convolves [batch, …, features]: the axes that only x has are its batch, groups (the
outermost) and summed axes its features. What is in this order already is only reshaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Node, Value
from compiler.lower.basic import align
from compiler.lower.registry import Array, Context, lowers
from compiler.ops.conv import Conv, ConvInput, ConvKernel
from compiler.ops.pool import Pool, PoolGradient
from compiler.ops.windows import Window

Parts = Sequence[tuple[str, ...]]  # axes that XLA sees as one


@dataclass(frozen=True)
class _Roles:
    """The axes of a convolution by what they are to it."""

    op: Any
    x: Value
    kernel: Value
    groups: tuple[str, ...]

    @property
    def input(self) -> Parts:
        batch = tuple(a for a in self.x.axes if a not in (*self.op.over, *self.groups, *self.op.contract))
        return [batch, *((a,) for a in self.op.over), (*self.groups, *self.op.contract)]

    @property
    def weight(self) -> Parts:
        return [*((a,) for a in self.op.taps), self.op.contract, (*self.groups, *self._new)]

    @property
    def result(self) -> Parts:
        return [*self.input[:-1], (*self.groups, *self._new)]

    @property
    def _new(self) -> tuple[str, ...]:
        return tuple(a for a in self.kernel.axes if a not in (*self.op.taps, *self.groups, *self.op.contract))


def _flat(x: Array, value: Value, parts: Parts) -> Array:
    x = align(x, value.axes, tuple(a for part in parts for a in part))
    lengths = iter(x.shape)
    return x.reshape([math.prod(next(lengths) for _ in part) for part in parts])


def _shape(ctx: Context, value: Value, parts: Parts) -> tuple[int, ...]:
    return tuple(math.prod(ctx.length(value, a) for a in part) for part in parts)


def _unflat(ctx: Context, y: Array, value: Value, parts: Parts) -> Array:
    axes = tuple(a for part in parts for a in part)
    return align(y.reshape([ctx.length(value, a) for a in axes]), axes, value.axes).astype(value.type.dtype)


def _convolve(ctx: Context, roles: _Roles, x: Array, kernel: Array, **options: Any) -> Array:
    n, op = len(roles.op.over), roles.op
    spatial = tuple(range(1, n + 1))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=[w.stride for w in op.windows],
        padding=_pads(op.windows, x.shape[1:-1]),
        rhs_dilation=[w.dilation for w in op.windows],
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            (0, n + 1, *spatial), (n + 1, n, *range(n)), (0, n + 1, *spatial)
        ),
        feature_group_count=math.prod(ctx.length(roles.x, g) for g in roles.groups),
        precision=ctx.precision(x.dtype),
        **options,
    )


def _pads(windows: Sequence[Window], lengths: Sequence[int]) -> list[tuple[int, int]]:
    pads = [w.pads(n) for w, n in zip(windows, lengths, strict=True)]
    return [(int(before.constant), int(after.constant)) for before, after in pads]


@lowers(Conv)
def _conv(ctx: Context, node: Node, x: Array, kernel: Array) -> tuple[Array, ...]:
    left, right = node.operands
    op: Any = node.op
    roles = _Roles(op, left, right, tuple(a for a in left.axes if a in right.axes and a not in op.contract))
    x, kernel = ctx.factors(_flat(x, left, roles.input), _flat(kernel, right, roles.weight))
    y = _convolve(ctx, roles, x, kernel, preferred_element_type=jnp.float32)
    return (_unflat(ctx, y, node.result, roles.result),)


@lowers(ConvInput)
def _conv_input(ctx: Context, node: Node, g: Array, kernel: Array) -> tuple[Array, ...]:
    result, (cotangent, right) = node.result, node.operands
    roles = _Roles(node.op, result, right, node.op.groups)  # type: ignore[attr-defined]
    g, kernel = ctx.factors(_flat(g, cotangent, roles.result), _flat(kernel, right, roles.weight))
    like = jax.ShapeDtypeStruct(_shape(ctx, result, roles.input), g.dtype)
    (x,) = jax.linear_transpose(lambda x: _convolve(ctx, roles, x, kernel), like)(g)
    return (_unflat(ctx, x, result, roles.input),)


@lowers(ConvKernel)
def _conv_kernel(ctx: Context, node: Node, x: Array, g: Array) -> tuple[Array, ...]:
    result, (left, cotangent) = node.result, node.operands
    roles = _Roles(node.op, left, result, node.op.groups)  # type: ignore[attr-defined]
    x, g = ctx.factors(_flat(x, left, roles.input), _flat(g, cotangent, roles.result))
    like = jax.ShapeDtypeStruct(_shape(ctx, result, roles.weight), g.dtype)
    (kernel,) = jax.linear_transpose(lambda k: _convolve(ctx, roles, x, k), like)(g)
    return (_unflat(ctx, kernel, result, roles.weight),)


def pool(x: Array, axes: Sequence[str], kind: str, windows: Sequence[Window]) -> Array:
    """Of every window its mean, in float32, or largest entry; padding is none."""
    at = {w.axis: w for w in windows}
    sizes = [at[a].size if a in at else 1 for a in axes]
    strides = [at[a].stride if a in at else 1 for a in axes]
    pads = [_pads([at[a]], [n])[0] if a in at else (0, 0) for a, n in zip(axes, x.shape, strict=True)]
    if kind == "max":
        return jax.lax.reduce_window(x, np.asarray(-np.inf, x.dtype), jax.lax.max, sizes, strides, pads)
    total = jax.lax.reduce_window(x.astype(jnp.float32), 0.0, jax.lax.add, sizes, strides, pads)
    if not any(map(any, pads)):
        return (total / math.prod(sizes)).astype(x.dtype)
    one = jnp.ones([n if a in at else 1 for a, n in zip(axes, x.shape, strict=True)], jnp.float32)
    return (total / jax.lax.reduce_window(one, 0.0, jax.lax.add, sizes, strides, pads)).astype(x.dtype)


@lowers(Pool)
def _pool(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    return (pool(x, node.result.axes, op.kind, op.windows),)


@lowers(PoolGradient)
def _pool_gradient(ctx: Context, node: Node, g: Array, x: Array | None = None) -> tuple[Array, ...]:
    op: Any = node.op
    at = jnp.zeros(ctx.shape(node.result), g.dtype) if x is None else x
    _, pull = jax.vjp(lambda x: pool(x, node.result.axes, op.kind, op.windows), at)
    return pull(g)
