"""One product for each expert, tile by tile: what XLA for CPU and GPU runs in place of a ragged product, which it would
make a product of every row with the matrix of every expert (jax 0.10). On TPU the ragged product has a kernel.

Where all rows are there, the number of tiles is fixed. Where a device has room for all rows that other devices may send
(``room``), tiles run while rows are left: most of the room is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from compiler.lower.registry import Array
from compiler.ops.experts import tile_rows


def product(x: Array, w: Array, groups: Array, precision: Any, room: bool) -> Array:
    """x [rows, in], sorted by expert, each row with its expert's matrix w [experts, in, out]; float32 [rows, out].
    ``groups`` [experts]: rows of each. Rows that belong to none give zeros."""
    rows, (experts, _, out) = x.shape[0], w.shape
    tile = tile_rows(rows, experts)
    padded = jnp.pad(x, ((0, tile), (0, 0)))

    def step(made: Array, expert: Array, start: Array, stop: Array) -> Array:
        mine = jax.lax.dynamic_slice_in_dim(padded, start, tile)
        y = jnp.dot(mine, w[expert], precision=precision, preferred_element_type=jnp.float32)
        # what a tile writes beyond its expert's last row, the next expert's first tile writes again
        return jax.lax.dynamic_update_slice_in_dim(made, y, start, 0)

    made = _run(step, jnp.zeros((rows + tile, out), jnp.float32), groups, rows, tile, room)
    return jnp.where(jnp.arange(rows)[:, None] < jnp.sum(groups), made[:rows], 0)


def outer(x: Array, g: Array, groups: Array, precision: Any, room: bool) -> Array:
    """For each expert the sum over its rows of x [rows, in] outer g [rows, out]; float32 [experts, in, out]."""
    rows, experts = x.shape[0], groups.shape[0]
    tile = tile_rows(rows, experts)
    left, right = (jnp.pad(v, ((0, tile), (0, 0))) for v in (x, g))

    def step(made: Array, expert: Array, start: Array, stop: Array) -> Array:
        mine = (start + jnp.arange(tile) < stop)[:, None]
        a, b = (jax.lax.dynamic_slice_in_dim(v, start, tile) for v in (left, right))
        a, b = jnp.where(mine, a, 0), jnp.where(mine, b, 0)
        return made.at[expert].add(jnp.dot(a.T, b, precision=precision, preferred_element_type=jnp.float32))

    return _run(step, jnp.zeros((experts, x.shape[1], g.shape[1]), jnp.float32), groups, rows, tile, room)


def _run(step: Callable[..., Array], made: Array, groups: Array, rows: int, tile: int, room: bool) -> Array:
    """``step`` for each tile with its expert, its first row and where its expert's rows end; a tile without rows lies
    behind all rows."""
    experts, ends = groups.shape[0], jnp.cumsum(groups)
    counts = (groups + tile - 1) // tile
    last = jnp.cumsum(counts)
    at = jnp.arange(rows // tile + experts)
    which = jnp.minimum(jnp.searchsorted(last, at, side="right"), experts - 1)
    starts = (ends - groups)[which] + (at - (last - counts)[which]) * tile
    used = at < last[-1]
    starts, stops = jnp.where(used, starts, rows), jnp.where(used, ends[which], rows)
    end = last[-1] if room else at.shape[0]
    return jax.lax.fori_loop(0, end, lambda i, made: step(made, which[i], starts[i], stops[i]), made)
