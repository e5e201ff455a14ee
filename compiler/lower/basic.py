"""Element-wise ops, products, shapes, norms, lookups."""

from __future__ import annotations

import string
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.graph.sizes import Size
from compiler.lower.registry import Array, Context, lowers, read
from compiler.ops import elementwise, leaves, linear, lookup, normalise, shape

FUNCTIONS: dict[str, Any] = {
    "add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide, "max": jnp.maximum,
    "min": jnp.minimum, "power": jnp.power, "neg": jnp.negative, "abs": jnp.abs, "sign": jnp.sign, "exp": jnp.exp,
    "log": jnp.log,
    "sqrt": jnp.sqrt, "bounded_sqrt": lambda x: jnp.sqrt(jnp.maximum(x, 0)),
    "rsqrt": jax.lax.rsqrt, "tanh": jnp.tanh, "erf": jax.lax.erf, "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus, "square": jnp.square, "relu": lambda x: jnp.maximum(x, 0),
    "squared_relu": lambda x: jnp.square(jnp.maximum(x, 0)), "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False), "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "greater": jnp.greater, "equal": jnp.equal, "select": jnp.where,
}  # fmt: skip


def align(x: Array, axes: tuple[str, ...], to: tuple[str, ...]) -> Array:
    """x with its axes in the order of ``to`` and length-1 axes where it has none."""
    order = [axes.index(a) for a in to if a in axes]
    x = jnp.transpose(x, order) if order != list(range(len(axes))) else x
    return jnp.expand_dims(x, [i for i, a in enumerate(to) if a not in axes]) if len(to) > len(axes) else x


@lowers(elementwise.Map)
def _map(ctx: Context, node: Node, *xs: Array) -> tuple[Array, ...]:
    axes = node.result.axes
    return (FUNCTIONS[node.op.fn](*(align(x, v.axes, axes) for x, v in zip(xs, node.operands, strict=True))),)  # type: ignore[attr-defined]


@lowers(elementwise.Cast)
def _cast(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    return (x.astype(node.result.type.dtype),)


@lowers(elementwise.StopGradient)
def _stop(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    return (jax.lax.stop_gradient(x),)


def product(
    ctx: Context, left: tuple[str, ...], right: tuple[str, ...], out: tuple[str, ...], a: Array, b: Array
) -> Array:
    """The product by axis names, accumulated in float32."""
    a, b = ctx.factors(a, b)
    letters = dict(zip(dict.fromkeys([*left, *right]), string.ascii_letters, strict=False))
    sides = ["".join(letters[x] for x in axes) for axes in (left, right, out)]
    return jnp.einsum(f"{sides[0]},{sides[1]}->{sides[2]}", a, b, precision=ctx.precision(a.dtype),
                      preferred_element_type=jnp.float32)  # fmt: skip


@lowers(linear.Dot)
def _dot(ctx: Context, node: Node, a: Array, b: Array) -> tuple[Array, ...]:
    left, right = node.operands
    y = product(ctx, left.axes, right.axes, node.result.axes, a, b)
    return (y.astype(node.result.type.dtype),)


@lowers(normalise.Norm)
def _norm(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axis = node.operands[0].axes.index(op.axis)
    x = x.astype(jnp.float32)
    if op.kind == "layer":
        x = x - jnp.mean(x, axis, keepdims=True)
    total = (jnp.sum if op.kind == "l2" else jnp.mean)(jnp.square(x), axis, keepdims=True)
    return (x * jax.lax.rsqrt(total + op.eps),)


@lowers(normalise.Softmax)
def _softmax(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    return (jax.nn.softmax(x.astype(jnp.float32), node.operands[0].axes.index(node.op.axis)),)  # type: ignore[attr-defined]


def own_ids(ids: Array, size: int, shard: tuple[str, ...]) -> tuple[Array, Array]:
    """Ids counted from this shard's first entry (0 where they are another's), and which are this shard's."""
    local = ids - jax.lax.axis_index(shard) * size if shard else ids
    mine = (local >= 0) & (local < size)
    return jnp.where(mine, local, 0), mine


def _inside(ids: Array, size: int, shard: tuple[str, ...]) -> Array:
    """Ids outside the whole table become 0."""
    whole = size * jax.lax.axis_size(shard) if shard else size
    return jnp.where((ids >= 0) & (ids < whole), ids, 0)


@lowers(lookup.Lookup)
def _lookup(ctx: Context, node: Node, table: Array, ids: Array) -> tuple[Array, ...]:
    axis = node.operands[0].axes.index(node.op.axis)  # type: ignore[attr-defined]
    rows = jnp.moveaxis(table, axis, 0)
    ids, mine = own_ids(_inside(ids, rows.shape[0], node.op.shard), rows.shape[0], node.op.shard)  # type: ignore[attr-defined]
    y = jnp.take(rows, ids, axis=0, mode="clip")
    return (jnp.where(mine.reshape(*mine.shape, *[1] * (y.ndim - mine.ndim)), y, 0) if node.op.shard else y,)  # type: ignore[attr-defined]


@lowers(lookup.ScatterAdd)
def _scatter_add(ctx: Context, node: Node, ids: Array, g: Array) -> tuple[Array, ...]:
    op: Any = node.op
    ids_axes, g_axes = node.operands[0].axes, node.operands[1].axes
    rest = tuple(a for a in g_axes if a not in ids_axes)
    g = align(g, g_axes, (*ids_axes, *rest))
    flat = g.reshape(-1, *g.shape[len(ids_axes) :])
    size = ctx.length(node.result, op.axis)
    ids, mine = own_ids(_inside(ids, size, op.shard), size, op.shard)
    place = jnp.where(mine, ids, size).reshape(-1)  # another shard's go out of range and are dropped
    return (jnp.zeros((size, *flat.shape[1:]), g.dtype).at[place].add(flat, mode="drop"),)


@lowers(lookup.Put)
def _put(ctx: Context, node: Node, table: Array, value: Array, index: Array) -> tuple[Array, ...]:
    axis = node.operands[0].axes.index(node.op.axis)  # type: ignore[attr-defined]
    return (jax.lax.dynamic_update_index_in_dim(table, value, index, axis),)


@lowers(shape.Arrange)
def _arrange(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    return (align(x, node.operands[0].axes, node.result.axes),)


@lowers(shape.Rename)
def _rename(ctx: Context, node: Node, x: Any) -> tuple[Array, ...]:
    return (read(x),)  # of a state too: what shift kept


@lowers(shape.Split, shape.Merge)
def _reshape(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    if isinstance(op, shape.Split):
        at = node.operands[0].axes.index(op.axis)
        inner = [ctx.length(node.result, n) for n in op.names]
        return (x.reshape(*x.shape[:at], *inner, *x.shape[at + 1 :]),)
    at = node.operands[0].axes.index(op.names[0])
    return (x.reshape(*x.shape[:at], -1, *x.shape[at + len(op.names) :]),)


@lowers(shape.Reduce)
def _reduce(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    axes = tuple(node.operands[0].axes.index(a) for a in op.over)
    if op.kind == "max":
        return (jnp.max(x, axes),)
    total = (jnp.sum if op.kind == "sum" else jnp.mean)(x.astype(jnp.float32), axes)
    return (total.astype(x.dtype),)


@lowers(shape.Expand)
def _expand(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    return (jnp.broadcast_to(x, ctx.shape(node.result)),)


@lowers(shape.Concat)
def _concat(ctx: Context, node: Node, *xs: Array) -> tuple[Array, ...]:
    return (jnp.concatenate(xs, node.result.axes.index(node.op.axis)),)  # type: ignore[attr-defined]


@lowers(shape.Slice)
def _slice(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    start = ctx.size(op.start)
    return (jax.lax.slice_in_dim(x, start, start + ctx.size(op.size), axis=node.result.axes.index(op.axis)),)


@lowers(shape.Pad)
def _pad(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    widths = [(ctx.size(op.before), ctx.size(op.after)) if a == op.axis else (0, 0) for a in node.result.axes]
    return (jnp.pad(x, widths),)


@lowers(leaves.Distances)
def _distances(ctx: Context, node: Node) -> tuple[Array, ...]:
    return (jnp.arange(ctx.length(node.result, "distance"), dtype=jnp.int32),)


@lowers(leaves.Index)
def _index(ctx: Context, node: Node) -> tuple[Array, ...]:
    return (jnp.arange(node.result.type.sizes[0].constant, dtype=jnp.float32),)


@lowers(leaves.Positions)
def _positions(ctx: Context, node: Node, start: Array | None = None) -> tuple[Array, ...]:
    batch, size = ctx.shape(node.result)
    op: Any = node.op
    steps = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (batch, size))
    at = steps + (ctx.size(Size.of(op.first)) if start is None else start[:, None])
    if op.grid is None:
        return (at,)
    after, each, period = op.grid
    return (jnp.where(at < after, at, after + (at - after) // each % period),)
