"""Products of experts tile by tile, against NumPy expert by expert."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from compiler.lower import tiles
from compiler.ops.experts import tile_rows, tiled_rows
from tests.ops.build import close

GROUPS = {"even": [25, 25, 25, 25], "one has all": [0, 100, 0, 0], "few": [3, 0, 17, 1], "none": [0, 0, 0, 0]}


@pytest.mark.parametrize("room", [False, True])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_each_expert_gets_its_rows(groups: list[int], room: bool) -> None:
    """Rows beyond the last expert's hold anything, and count nowhere."""
    draw = np.random.default_rng(0)
    x, w, g = (draw.normal(size=s).astype("f4") for s in ((100, 6), (4, 6, 5), (100, 5)))
    y, dw = np.zeros((100, 5), "f4"), np.zeros((4, 6, 5), "f4")
    start = 0
    for expert, count in enumerate(groups):
        mine = slice(start, start + count)
        y[mine], dw[expert] = x[mine] @ w[expert], x[mine].T @ g[mine]
        start += count
    rows, right, matrices, sizes = map(jnp.asarray, (x, g, w, np.array(groups, np.int32)))
    close(tiles.product(rows, matrices, sizes, "highest", room), y, 1e-6)
    close(tiles.outer(rows, right, sizes, "highest", room), dw, 1e-6)


@pytest.mark.parametrize(("rows", "experts"), [(1, 1), (100, 4), (16384, 8), (65536, 256), (10**6, 8)])
def test_little_is_multiplied_in_vain(rows: int, experts: int) -> None:
    tile = tile_rows(rows, experts)
    assert 16 <= tile <= 256 and tile & (tile - 1) == 0
    assert rows <= tiled_rows(rows, experts) <= rows + experts * tile
    if rows >= 256 * experts:
        assert tiled_rows(rows, experts) <= 1.13 * rows
