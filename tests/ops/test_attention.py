"""Blocked attention: equal to plain for any length, window and cap, and as many tiles as the cost model counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph.sizes import Size
from compiler.lower import attention as lowering
from compiler.ops import attention
from compiler.ops.attention import Attend
from compiler.ops.bias import Bias, Buckets, Dense, Relative, Slopes
from tests.ops.build import Case, close

LENGTHS = st.integers(1, 19)
WINDOWS = st.one_of(st.none(), st.integers(1, 12))


def operands_of(bias: Bias | None, t: int, s: int) -> dict[str, str]:
    """Of queries [batch=2 seq heads=2 head_dim=3]."""
    known = {
        "slopes": "heads=2", "table": "buckets=8 heads=2", "position_queries": f"batch=2 seq={t} heads=2 head_dim=3",
        "position_keys": f"distance={s} heads=2 head_dim=3", "added": f"batch=2 heads=2 seq={t} keys={s}",
    }  # fmt: skip
    return {name: known[name] for name in (bias.operands if bias else ())}


def case(t: int, s: int, implementation: str, **options: Any) -> Case:
    keys = "seq" if options.get("causal", True) else "frame"
    inputs = {
        "q": f"batch=2 seq={t} heads=2 head_dim=3", "k": f"batch=2 {keys}={s} kv_heads=1 head_dim=3",
        "v": f"batch=2 {keys}={s} kv_heads=1 head_dim=3", **operands_of(options.get("bias"), t, s),
    }  # fmt: skip
    if options.get("prefix"):
        inputs["prefix"] = "batch=2:int32"
    op = Attend(keys=keys, scale=0.7, implementation=implementation, **options)
    return Case("attend", inputs, lambda b, *xs: b.apply(op, *xs))


@settings(max_examples=3, deadline=None)
@given(t=LENGTHS, s=LENGTHS, causal=st.booleans(), window=WINDOWS, softcap=st.sampled_from([None, 2.0]),
       block=st.integers(2, 6))  # fmt: skip
def test_blocked_equals_plain(
    t: int, s: int, causal: bool, window: int | None, softcap: float | None, block: int
) -> None:
    """Outputs, log-sums and gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        patch.setattr(lowering, "BLOCK", block)
        options = {"causal": causal, "window": window, "softcap": softcap}
        s = t if causal else s
        plain, blocked = (case(t, s, kind, **options) for kind in ("plain", "blocked"))
        arrays = plain.arrays()
        for x, y in zip(plain.run(plain.graph(), arrays), blocked.run(blocked.graph(), arrays), strict=True):
            close(y, x, 1e-5)
        g = np.random.default_rng(2).normal(size=(2, t, 2, 3)).astype("f4")
        arrays |= {"g0": g, "g1": np.zeros((2, t, 2), np.float32)}
        graphs = plain.gradient_graph(), blocked.gradient_graph()
        for x, y in zip(plain.run(graphs[0], arrays), blocked.run(graphs[1], arrays), strict=True):
            close(y, x, 1e-5)


BY_POSITION: dict[str, dict[str, Any]] = {
    "slopes": {"bias": Slopes()}, "buckets": {"bias": Buckets(8, 6)}, "relative": {"bias": Relative(), "window": 6},
    "dense": {"bias": Dense(), "softcap": 2.0}, "chunk": {"chunk": 5}, "prefix": {"prefix": True},
    "ahead": {"bias": Buckets(8, 6, ahead=True), "causal": False, "keys": "frame"},
}  # fmt: skip


@pytest.mark.parametrize("kind", BY_POSITION)
def test_blocked_equals_plain_whatever_positions_say(kind: str) -> None:
    """Outputs and gradients over several tiles, the last one not full."""
    options = {k: v for k, v in BY_POSITION[kind].items() if k != "keys"}
    t, s = 11, 7 if "keys" in BY_POSITION[kind] else 11
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", 4)
        patch.setattr(lowering, "BLOCK", 4)
        plain, blocked = (case(t, s, i, **options) for i in ("plain", "blocked"))
        arrays = plain.arrays() | ({"prefix": np.array([6, 0], np.int32)} if "prefix" in options else {})
        for x, y in zip(plain.run(plain.graph(), arrays), blocked.run(blocked.graph(), arrays), strict=True):
            close(y, x, 1e-5)
        draw = np.random.default_rng(2)
        arrays |= {"g0": draw.normal(size=(2, t, 2, 3)).astype("f4"), "g1": draw.normal(size=(2, t, 2)).astype("f4")}
        graphs = plain.gradient_graph(), blocked.gradient_graph()
        found = [c.run(g, arrays) for c, g in zip((plain, blocked), graphs, strict=True)]
        assert len(found[0]) == len(found[1]) >= 3
        for x, y in zip(*found, strict=True):
            close(y, x, 1e-5)


@settings(max_examples=200, deadline=None)
@given(t=st.integers(1, 60), s=st.integers(1, 60), causal=st.booleans(), window=WINDOWS, block=st.integers(1, 9),
       chunk=WINDOWS)  # fmt: skip
def test_tiles_run_are_tiles_priced(
    t: int, s: int, causal: bool, window: int | None, block: int, chunk: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "BLOCK", block)
        op = Attend(causal=causal, window=window)
        run = len(lowering.pairs(op, t, s, True, chunk)[0])
        assert run == Size.opaque("block_pairs", t, s, block, block, window or 0, int(causal), 0, chunk or 0).constant
        assert len(lowering.pairs(op, t, s, False)[0]) == Size.opaque("block_pairs", t, s, block, block, 0, 0).constant


@settings(max_examples=50, deadline=None)
@given(t=st.integers(1, 40), causal=st.booleans(), window=WINDOWS, block=st.integers(1, 9))
def test_no_visible_pair_is_left_out(t: int, causal: bool, window: int | None, block: int) -> None:
    """And no tile without one is run; a window that is not causal reaches to both sides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "BLOCK", block)
        found = lowering.pairs(Attend(causal=causal, window=window), t, t, True)
    reach = window or t
    wanted = {
        (q // block, k // block) for q in range(t) for k in range(t) if abs(q - k) < reach and (k <= q or not causal)
    }
    assert set(zip(*map(list, found), strict=True)) == wanted


def test_a_row_without_a_visible_key_gives_zero() -> None:
    op = Attend(causal=False, keys="frame")
    inputs = {"q": "batch=2 seq=2 heads=1 head_dim=3", "k": "batch=2 frame=2 kv_heads=1 head_dim=3",
              "v": "batch=2 frame=2 kv_heads=1 head_dim=3", "lengths": "batch=2:int32"}  # fmt: skip
    made = Case("attend", inputs, lambda b, *xs: b.apply(op, *xs)[0], values={"lengths": [2, 0]})
    assert (np.asarray(made.run(made.graph(), made.arrays())[0])[1] == 0).all()
    arrays = {**made.arrays(), "g0": np.ones((2, 2, 1, 3), np.float32)}
    for g in made.run(made.gradient_graph(), arrays):
        assert np.isfinite(g).all() and (np.asarray(g)[1] == 0).all()
