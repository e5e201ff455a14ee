"""What is added to a tile of attention scores, from where its queries and keys lie.

Within a tile the gap (by how many positions a key lies before its query) falls by one from key to key and rises by one
from query to query. So what depends on the gap alone is computed for the tile's queries + keys - 1 gaps and laid out
by ``skewed``, which moves data and gathers nothing. Slots of a cache follow the same rule modulo their number: of a
visible key the gap is below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Value
from compiler.lower.basic import align
from compiler.lower.registry import Array
from compiler.ops.attention import _Attention
from compiler.ops.bias import FEW, Bias, Buckets, Dense, Relative, Slopes


@dataclass(frozen=True)
class Tile:
    """``gap``: of the first query and the first key, one number or one a row [b]. ``query``, ``key``: the first ones'
    places in the call and among the keys. ``around``: the slots modulo which gaps are known."""

    queries: int
    keys: int
    gap: Any
    query: Any = 0
    key: Any = 0
    around: int | None = None

    @property
    def falling(self) -> Array:
        """Gaps from the largest down: of the last query and the first key to the first query and the last key
        [b or 1, queries + keys - 1]."""
        return self._known(self._first + (self.queries - 1) - jnp.arange(self.queries + self.keys - 1))

    @property
    def gaps(self) -> Array:
        """[b or 1, queries, keys]"""
        steps = jnp.arange(self.queries)[:, None] - jnp.arange(self.keys)
        return self._known(self._first[..., None] + steps)

    @property
    def _first(self) -> Array:
        return jnp.reshape(jnp.asarray(self.gap, jnp.int32), (-1, 1))

    def _known(self, gaps: Array) -> Array:
        return gaps if self.around is None else gaps % self.around


def skewed(x: Array, queries: int, keys: int) -> Array:
    """[…, queries or 1, falling gaps] as […, queries, keys]: row i starts at entry queries - 1 - i."""
    if queries == 1:
        return x
    wide = queries + keys - 1
    x = jnp.broadcast_to(x, (*x.shape[:-2], queries, wide))
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*x.shape[:-2], -1)
    return x[..., : queries * wide].reshape(*x.shape[:-1], queries, wide)[..., queries - 1 :]


class Reader:
    """The operands of a bias, laid out for tiles. ``parts``: what of the learned ones a tile reads; ``scores``: what it
    adds [b or 1, kv or 1, group or 1, queries, keys]; ``put``: the parts' cotangents added to ``total``, which begins
    as ``nothing()`` and becomes the operands' cotangents by ``results``."""

    def __init__(self, op: _Attention, values: Mapping[str, Value], arrays: Mapping[str, Array], at: Laid) -> None:
        self.op, self.values, self.arrays, self.at = op, values, arrays, at

    def parts(self, tile: Tile) -> Any:
        return ()

    def scores(self, parts: Any, tile: Tile) -> Array:
        raise NotImplementedError

    def added(self, tile: Tile) -> Array:
        return self.scores(self.parts(tile), tile)

    def both_ways(self, tile: Tile, shape: tuple[int, ...]) -> tuple[Array, Callable[[Any, Array], Any]]:
        """What it adds to scores of a shape, and a function of a total and the scores' cotangent: the new total."""
        added, pull = jax.vjp(lambda parts: jnp.broadcast_to(self.scores(parts, tile), shape), self.parts(tile))
        return added, lambda total, ds: self.put(total, pull(ds)[0], tile)

    def nothing(self) -> Any:
        return ()

    def put(self, total: Any, parts: Any, tile: Tile) -> Any:
        return total

    def results(self, total: Any) -> tuple[Array, ...]:
        return ()

    def by_head(self, x: Array) -> Array:
        """[heads, …] as [kv, group, …]."""
        return x.reshape(self.at.kv, self.at.group, *x.shape[1:])


@dataclass(frozen=True)
class Laid:
    """How the queries were laid out [b, t, kv, group, d]: batch axes, their sizes, and the block to which queries and
    keys are padded. ``cached``: tiles of a cache are met."""

    batch: tuple[str, ...]
    sizes: tuple[int, ...]
    kv: int
    group: int
    block: int
    precision: Any
    cached: bool = False


READERS: dict[type[Bias], type[Reader]] = {}


def reads(kind: type[Bias]) -> Callable[[type[Reader]], type[Reader]]:
    def register(cls: type[Reader]) -> type[Reader]:
        READERS[kind] = cls
        return cls

    return register


def reader(op: _Attention, values: Sequence[Value], arrays: Sequence[Array], at: Laid) -> Reader | None:
    """The reader of an op's bias; ``values`` and ``arrays`` are the operands behind the usual ones."""
    if op.bias is None:
        return None
    return READERS[type(op.bias)](op, op.given(values), op.given(arrays), at)


@reads(Slopes)
class _Slopes(Reader):
    def scores(self, parts: Any, tile: Tile) -> Array:
        slopes = self.by_head(self.arrays["slopes"].astype(jnp.float32))
        return -slopes[..., None, None] * jnp.abs(tile.gaps)[:, None, None].astype(jnp.float32)


@reads(Buckets)
class _Buckets(Reader):
    def parts(self, tile: Tile) -> Array:
        return self._table

    @property
    def _table(self) -> Array:
        """[buckets, heads]"""
        x = align(self.arrays["table"], self.values["table"].axes, ("buckets", self.op.heads))
        return x.astype(jnp.float32)

    def nothing(self) -> Array:
        return jnp.zeros(self._table.shape, jnp.float32)

    def scores(self, parts: Array, tile: Tile) -> Array:
        kind: Any = self.op.bias
        gaps = tile.falling
        side = jnp.abs(gaps) if kind.ahead else jnp.maximum(gaps, 0)
        bucket = sum((side >= s).astype(jnp.int32) for s in kind.starts()[1:])
        if kind.ahead:
            bucket = bucket + jnp.where(gaps < 0, kind.side, 0)
        added = jnp.moveaxis(jnp.take(parts, bucket, axis=0), -1, 0)  # [heads, b, gaps]
        added = jnp.moveaxis(self.by_head(added), 2, 0)[..., None, :]
        return skewed(added, tile.queries, tile.keys)

    def put(self, total: Array, parts: Array, tile: Tile) -> Array:
        return total + parts

    def results(self, total: Array) -> tuple[Array, ...]:
        value = self.values["table"]
        return (align(total, ("buckets", self.op.heads), value.axes).astype(value.type.dtype),)


@reads(Relative)
class _Relative(Reader):
    """Of this call's own keys a tile reads the rows of its gaps; of a cache, whose rows begin at gaps of their own,
    few queries meet all gaps at once, and more of them rows that are gathered."""

    def __init__(self, op: _Attention, values: Mapping[str, Value], arrays: Mapping[str, Array], at: Laid) -> None:
        super().__init__(op, values, arrays, at)
        order, n = (*at.batch, op.queries, op.heads, op.dim), len(at.batch)
        q = align(arrays["position_queries"], values["position_queries"].axes, order)
        self.q = q.reshape(-1, q.shape[n], at.kv, at.group, q.shape[-1])
        self.length = self.q.shape[1]
        keys = align(arrays["position_keys"], values["position_keys"].axes, ("distance", op.heads, op.dim))
        self.keys = keys.reshape(keys.shape[0], at.kv, at.group, -1)
        self.every = self._products(self.q, self.keys) if at.cached and self.length <= FEW else None
        self.q = jnp.pad(self.q, [(0, 0), (0, -self.length % at.block), (0, 0), (0, 0), (0, 0)])
        # from the largest gap down, with room for the gaps of a whole tile on both sides
        self.falling = jnp.pad(self.keys[::-1], [(at.block, at.block), (0, 0), (0, 0), (0, 0)])

    def _products(self, q: Array, keys: Array) -> Array:
        """[b, kv, group, t, gaps]; keys [gaps, kv, group, d], or with rows of their own in front."""
        letters = "btkgd,blkgd->bkgtl" if keys.ndim == 5 else "btkgd,lkgd->bkgtl"
        dots: Any = {"precision": self.at.precision, "preferred_element_type": jnp.float32}
        return jnp.einsum(letters, q, keys, **dots) * self.op.scale

    def _start(self, tile: Tile) -> Any:
        """Of a tile's gaps, among the falling ones."""
        return self.at.block + self.keys.shape[0] - tile.gap - tile.queries

    def parts(self, tile: Tile) -> Any:
        cut = lambda x, at, size, axis: jax.lax.dynamic_slice_in_dim(x, at, size, axis)  # noqa: E731
        q = cut(self.q, tile.query, tile.queries, 1)
        if tile.around is not None:
            return q, None
        gaps = tile.queries + tile.keys - 1
        if isinstance(tile.gap, int) and self.op.causal:  # those ahead of the query are not seen
            gaps = min(gaps, tile.gap + tile.queries)
        return q, cut(self.falling, self._start(tile), gaps, 0)

    def scores(self, parts: Any, tile: Tile) -> Array:
        q, keys = parts
        if self.every is not None and tile.around is not None:
            index = jnp.minimum(tile.gaps, self.keys.shape[0] - 1)[:, None, None]
            return jnp.take_along_axis(self.every, index, -1)
        if keys is None:
            keys = jnp.take(self.keys, tile.falling, axis=0, mode="clip")
        added = self._products(q, keys)
        rest = tile.queries + tile.keys - 1 - added.shape[-1]
        added = jnp.pad(added, [(0, 0)] * 4 + [(0, rest)]) if rest else added
        return skewed(added, tile.queries, tile.keys)

    def nothing(self) -> Any:
        return jnp.zeros(self.q.shape, jnp.float32), jnp.zeros(self.falling.shape, jnp.float32)

    def put(self, total: Any, parts: Any, tile: Tile) -> Any:
        def add(x: Array, y: Array, at: Any, axis: int) -> Array:
            old = jax.lax.dynamic_slice_in_dim(x, at, y.shape[axis], axis)
            return jax.lax.dynamic_update_slice_in_dim(x, old + y.astype(jnp.float32), at, axis)

        return add(total[0], parts[0], tile.query, 1), add(total[1], parts[1], self._start(tile), 0)

    def results(self, total: Any) -> tuple[Array, ...]:
        queries, keys = (self.values[name] for name in ("position_queries", "position_keys"))
        q, falling = total
        op, at, n = self.op, self.at, self.keys.shape[0]
        q = q[:, : self.length].reshape(*at.sizes, self.length, at.kv * at.group, -1)
        k = falling[at.block : at.block + n][::-1].reshape(n, at.kv * at.group, -1)
        return (
            align(q, (*at.batch, op.queries, op.heads, op.dim), queries.axes).astype(queries.type.dtype),
            align(k, ("distance", op.heads, op.dim), keys.axes).astype(keys.type.dtype),
        )


@reads(Dense)
class _Dense(Reader):
    def __init__(self, op: _Attention, values: Mapping[str, Value], arrays: Mapping[str, Array], at: Laid) -> None:
        super().__init__(op, values, arrays, at)
        kind: Any = op.bias
        value = values["added"]
        self.axes = (*at.batch, op.heads, op.queries, kind.keys)
        x = align(arrays["added"], value.axes, self.axes).astype(jnp.float32)
        n = len(at.batch)
        if any(a in value.axes for a in at.batch):
            x = jnp.broadcast_to(x, (*at.sizes, *x.shape[n:]))
        x = x.reshape(-1, *x.shape[n:])
        self.heads = x.shape[1]
        heads = (at.kv, at.group) if self.heads > 1 else (1, 1)
        self.shape = (x.shape[0], *heads, *x.shape[2:])
        x = x.reshape(self.shape)
        wide = [0, 0, 0, *(-s % at.block if s > 1 else 0 for s in x.shape[3:])]
        self.x = jnp.pad(x, [(0, w) for w in wide])

    def _where(self, tile: Tile) -> tuple[list[Any], list[int]]:
        """Where a tile begins, and how much of it there is: axes that the operand lacks have length 1."""
        places = (a if s > 1 else 0 for a, s in zip((tile.query, tile.key), self.shape[3:], strict=True))
        starts = [jnp.asarray(a, jnp.int32) for a in (0, 0, 0, *places)]
        sizes = [min(n, s) for n, s in zip((tile.queries, tile.keys), self.x.shape[3:], strict=True)]
        return starts, [*self.x.shape[:3], *sizes]

    def parts(self, tile: Tile) -> Array:
        return jax.lax.dynamic_slice(self.x, *self._where(tile))

    def scores(self, parts: Array, tile: Tile) -> Array:
        return jnp.broadcast_to(parts, (*parts.shape[:3], tile.queries, tile.keys))

    def nothing(self) -> Array:
        return jnp.zeros(self.x.shape, jnp.float32)

    def put(self, total: Array, parts: Array, tile: Tile) -> Array:
        starts, sizes = self._where(tile)
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, starts, sizes) + parts, starts)

    def results(self, total: Array) -> tuple[Array, ...]:
        value, at = self.values["added"], self.at
        x = total[:, :, :, : self.shape[3], : self.shape[4]]
        x = x.reshape(x.shape[0], self.heads, *x.shape[3:])
        n, has = len(at.batch), [a in value.axes for a in at.batch]
        x = x.reshape(*(at.sizes if any(has) else (1,) * n), *x.shape[1:])
        lacking = tuple(i for i, a in enumerate(self.axes) if a not in value.axes)
        x = jnp.sum(x, lacking)
        kept = tuple(a for a in self.axes if a in value.axes)
        return (align(x, kept, value.axes).astype(value.type.dtype),)
