"""What XLA for TPU adds to a cache whose innermost matrices do not fill its tiles: a padded copy of the whole cache.

Measured (libtpu 0.0.42, v5e, decode): the compiler takes the cache unpadded and keeps a copy laid out in tiles of
128 columns and 1, 2, 4 or a multiple of 8 rows. Temporary memory was that of the padded copy for kv_heads x head_dim
of 3 x 128, 20 x 128, 8 x 64, 12 x 64, 3 x 64 and 4 x 96; where nothing is padded (4 x 256, 8 x 128, 1 x 256) there
is no copy."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.graph.ir import Graph
from compiler.graph.types import DTYPE_BITS
from compiler.ops.leaves import State

COLUMNS = 128
ROWS = 8


def padded_copy_bytes(graph: Graph, env: Mapping[str, int]) -> float:
    """Bytes of the copies, of all caches and rings together; 0 where every tile is full."""
    total = 0.0
    for node in graph.leaves(State):
        op, t = node.op, node.result.type
        if not isinstance(op, State) or op.kind not in ("cache", "ring"):
            continue
        sizes = [int(s.evaluate(env)) for s in t.sizes]
        rows, columns = sizes[-2:]
        full = _rows(rows) * (-(-columns // COLUMNS) * COLUMNS)
        if full > rows * columns:
            elements = full
            for size in sizes[:-2]:
                elements *= size
            total += elements * DTYPE_BITS[t.dtype] / 8
    return total


def _rows(rows: int) -> int:
    return 1 << (rows - 1).bit_length() if rows <= ROWS else -(-rows // ROWS) * ROWS
