"""The compiler's padded copy of a cache with small heads, against what libtpu 0.0.42 said (v5e, decode, GiB)."""

from __future__ import annotations

import pytest

from compiler.language.model import loads
from costmodel.simulate import simulate

# kv_heads, head_dim, temporary memory of the compiled program; batch 16, length 2,048, 8 layers
MEASURED = [(3, 128, 0.501), (20, 128, 3.001), (8, 64, 1.001), (4, 96, 0.501)]


@pytest.mark.parametrize(("kv_heads", "head_dim", "gib"), MEASURED)
def test_padded_copies_are_counted(kv_heads: int, head_dim: int, gib: float) -> None:
    text = f"""
extends: smollm2-135m
name: small-heads
dims: {{vocab: 5000, embed: 512, heads: {kv_heads}, kv_heads: {kv_heads}, head_dim: {head_dim}, mlp: 1024}}
args: {{layers: 8}}
"""
    model = loads(text)
    plan = simulate(model, "v5e", phase="decode", batch=16, length=2048)
    assert plan.memory.padded_copies / 2**30 == pytest.approx(gib, abs=0.002)
    assert simulate(model, "h100", phase="decode", batch=16, length=2048).memory.padded_copies == 0


def test_full_tiles_need_no_copy() -> None:
    assert simulate("gemma2-2b", "v5e", phase="decode", batch=8, length=8192).memory.padded_copies == 0
