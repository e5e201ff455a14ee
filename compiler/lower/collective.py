"""Collectives, inside a shard_map: one JAX collective for each node."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.registry import Array, Context, lowers, read
from compiler.ops import collective


@lowers(collective.AllReduce)
def _all_reduce(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    return (_settled({"sum": jax.lax.psum, "mean": jax.lax.pmean, "max": jax.lax.pmax}[op.kind](x, op.mesh_axes)),)


def _settled(x: Array) -> Array:
    """A sum that XLA for TPU does not take for one whose accumulation over a loop it may do outside: its pass for that
    fails ("while_loop_all_reduce_code_motion … kAdd") where the sum is widened before it is added to what a loop
    carries, as gradients in bfloat16 are (libtpu 0.0.42)."""
    return jax.lax.optimization_barrier(x) if x.dtype in (jnp.bfloat16, jnp.float16) else x


@lowers(collective.OwnShard)
def _own_shard(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    at = node.result.axes.index(op.axis)
    size = x.shape[at] // op.shards
    return (jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(op.mesh_axes) * size, size, at),)


@lowers(collective.Once)
def _once(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    return (jnp.where(jax.lax.axis_index(op.mesh_axes) == 0, x, jnp.zeros((), x.dtype)),)


@lowers(collective.AllGather)
def _all_gather(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    return (jax.lax.all_gather(read(x), op.mesh_axes, axis=node.result.axes.index(op.axis), tiled=True),)


@lowers(collective.ReduceScatter)
def _reduce_scatter(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    """Along the first dimension, without dimensions of one: XLA for TPU would make a sum of the whole, twice the bytes,
    of a scatter along the one that lies in lanes or behind one of a single entry (a batch of one row), and then join
    such sums into one that it cannot turn back (libtpu 0.0.42)."""
    op: Any = node.op
    at = node.result.axes.index(op.axis)
    front = jnp.moveaxis(x, at, 0)
    rows, *rest = front.shape
    front = front.reshape(rows, *(n for n in rest if n != 1))
    x = jax.lax.psum_scatter(front, op.mesh_axes, scatter_dimension=0, tiled=True).reshape(-1, *rest)
    return (jnp.moveaxis(_settled(x), 0, at),)


@lowers(collective.AllToAll)
def _all_to_all(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    split, joined = (node.result.axes.index(a) for a in (op.scattered, op.gathered))
    return (jax.lax.all_to_all(x, op.mesh_axes, split, joined, tiled=True),)


@lowers(collective.Permute)
def _permute(ctx: Context, node: Node, x: Array) -> tuple[Array, ...]:
    op: Any = node.op
    (axis,) = op.mesh_axes
    return (jax.lax.ppermute(x, axis, op.pairs()),)


@lowers(collective.GatherCounts)
def _gather_counts(ctx: Context, node: Node, counts: Array) -> tuple[Array, ...]:
    return (jax.lax.all_gather(counts, node.op.mesh_axes),)  # type: ignore[attr-defined]


def _before(x: Array, axis: int = 0) -> Array:
    """The sum of what comes before each entry."""
    return jnp.cumsum(x, axis) - x


@lowers(collective.Exchange)
def _exchange(ctx: Context, node: Node, rows: Array, table: Array) -> tuple[Array, ...]:
    """A shard keeps its rows sorted by expert; at the experts rows lie by expert, then by the shard they came from."""
    op: Any = node.op
    shards, here = op.shards, table.shape[1] // op.shards
    me = jax.lax.axis_index(op.mesh_axes)
    starts = _before(table, 1)  # [shards, experts]: where a shard has its rows for an expert
    blocks = jnp.sum(table, 0).reshape(shards, here)
    arrive = _before(blocks, 1).reshape(1, -1) + _before(table)  # and where these lie at the expert
    mine = (starts[me], table[me], arrive[me])  # of the rows whose tokens are here, by expert
    there = tuple(jax.lax.dynamic_slice_in_dim(x, me * here, here, 1).reshape(-1) for x in (arrive, table, starts))
    room = rows.shape[0] // shards if op.back else rows.shape[0] * shards
    sent, got = (there, mine) if op.back else (mine, there)
    (out, many, arriving), (into, coming, _) = sent, got

    def ragged(rows: Array) -> Array:
        space = jnp.zeros((room, *rows.shape[1:]), rows.dtype)
        return jax.lax.ragged_all_to_all(rows, space, out, many, arriving, coming, axis_name=op.mesh_axes)

    def padded(rows: Array) -> Array:
        each = min(room, rows.shape[0])
        block = (shards, here)
        taken = _slots(out.reshape(block), many.reshape(block), each)
        placed = _slots(into.reshape(block), coming.reshape(block), each)
        packed = jnp.take(rows, jnp.minimum(taken, rows.shape[0] - 1), axis=0)
        packed = jax.lax.all_to_all(packed, op.mesh_axes, 0, 0, tiled=True)
        return jnp.zeros((room, *rows.shape[1:]), rows.dtype).at[placed].set(packed, mode="drop")

    return (jax.lax.platform_dependent(rows, cpu=padded, default=ragged),)


def _slots(starts: Array, sizes: Array, each: int) -> Array:
    """For each shard the places of up to ``each`` rows that lie in pieces [shards, experts]; out of range: no row."""
    number = jnp.arange(each)
    ends = jnp.cumsum(sizes, 1)
    piece = jnp.sum(number[None, :, None] >= ends[:, None, :], -1)  # [shards, each]
    at = jnp.minimum(piece, sizes.shape[1] - 1)
    place = jnp.take_along_axis(starts - (ends - sizes), at, 1) + number
    return jnp.where(piece < sizes.shape[1], place, jnp.iinfo(jnp.int32).max)
