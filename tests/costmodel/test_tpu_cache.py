"""A TPU's program takes the cache that the plan has, and no second one: what libtpu says of small heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import blockgraph as bg
from compiler.errors import TargetError
from compiler.language.model import Model, load
from compiler.targets import environment, parse_target
from costmodel.simulate import simulate

SHARE = 0.15  # of the cache, at most, that the program may need besides
# kv_heads, head_dim: all but the last do not fill tiles of 8 (or 1, 2, 4) x 128
HEADS = [(12, 64), (3, 64), (1, 64), (8, 80), (2, 96), (3, 128), (8, 128)]
MIB = 2**20


def model(folder: Path, kv_heads: int, head_dim: int, window: int | None = None) -> Model:
    file = folder / "small-heads.yaml"
    file.write_text(f"""
name: small-heads
dims: {{vocab: 5000, embed: 512, heads: {kv_heads * 2}, kv_heads: {kv_heads}, head_dim: {head_dim}, mlp: 1024}}
blocks:
  layer:
    body:
      - residual: [rms_norm, {{attention: {{position: rope, window: {window or "null"}}}}}]
      - residual: [rms_norm, {{mlp: {{gate: silu}}}}]
graph: [embed, {{repeat: {{times: 8, cycle: [layer]}}}}, rms_norm, {{unembed: {{tied: embed}}}}]
""")
    return load(file)


def measured(
    m: Model,
    target: str,
    phase: str,
    length: int,
    folder: Path,
    batch: int = 8,
    chunk: int | None = None,
    **mesh: str,
) -> Mapping[str, Any]:
    try:
        environment.check_installed(parse_target(target))
    except TargetError as e:
        pytest.skip(str(e))
    made = bg.compile(
        m,
        target,
        phase=phase,
        batch=batch,
        length=length,
        chunk=chunk,
        export=False,
        out=folder / target.replace(":", "-"),
        **mesh,
    )
    return made.result.memory


def test_the_cache_of_small_heads_is_not_padded(tmp_path: Path) -> None:
    for kv_heads, head_dim in HEADS:
        m = model(tmp_path, kv_heads, head_dim)
        plans = [simulate(m, place, phase="decode", batch=8, length=4096).memory for place in ("v5e", "h100")]
        found = [p.state_by_kind["cache"] for p in plans]
        assert found == [8 * 8 * 4096 * kv_heads * head_dim * 2 * 2] * 2
        few = simulate(m, "v5e", phase="decode", batch=8, length=100).memory.state_by_kind["cache"]
        assert few <= 8 * 8 * 256 * kv_heads * head_dim * 2 * 2  # whole tiles of rows


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:1x1", "tpu:v5p:1x1x1"])
@pytest.mark.parametrize(("kv_heads", "head_dim"), HEADS)
def test_decode_has_no_second_copy(kv_heads: int, head_dim: int, target: str, tmp_path: Path) -> None:
    m = model(tmp_path, kv_heads, head_dim)
    memory = measured(m, target, "decode", 4096, tmp_path)
    plan = simulate(m, "v5e", phase="decode", batch=8, length=4096).memory
    cache = plan.state_by_kind["cache"]
    assert memory["temp_bytes"] < SHARE * cache
    assert memory["argument_bytes"] == pytest.approx(plan.parameters + cache, abs=2 * MIB)
    assert memory["alias_bytes"] == pytest.approx(cache, abs=MIB)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads", [12, 4])  # three heads a device, and one
def test_a_device_of_a_mesh_packs_its_own_heads(kv_heads: int, tmp_path: Path) -> None:
    m, cache = model(tmp_path, kv_heads, 64), 8 * 8 * 4096 * kv_heads * 64 * 2 * 2 / 4
    memory = measured(m, "tpu:v5e:2x2", "decode", 4096, tmp_path, parallel="tensor", mesh="model=4")
    assert memory["temp_bytes"] < SHARE * cache
    assert memory["alias_bytes"] == pytest.approx(cache, abs=MIB)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "chunk"), [("verify", 8), ("prefill", 512)])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(12, 64), (3, 64)])
def test_more_tokens_have_no_second_copy(kv_heads: int, head_dim: int, phase: str, chunk: int, tmp_path: Path) -> None:
    m, length = model(tmp_path, kv_heads, head_dim), 16384
    memory = measured(m, "tpu:v5e:1x1", phase, length, tmp_path, batch=2, chunk=chunk)
    cache = simulate(m, "v5e", phase="decode", batch=2, length=length).memory.state_by_kind["cache"]
    assert memory["temp_bytes"] < SHARE * cache


@pytest.mark.slow
@pytest.mark.parametrize("length", [4096, 4097])  # also where the last row of slots is not full
def test_a_ring_has_no_second_copy(length: int, tmp_path: Path) -> None:
    m = model(tmp_path, 3, 64, window=length - 2048)
    memory = measured(m, "tpu:v5e:1x1", "decode", length, tmp_path)
    ring = simulate(m, "v5e", phase="decode", batch=8, length=length).memory.state_by_kind["ring"]
    assert memory["temp_bytes"] < SHARE * ring
