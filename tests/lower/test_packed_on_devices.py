"""Caches that a TPU packs, divided by heads over a mesh: the same logits as one device with caches that are not."""

from __future__ import annotations

from tests.children import rows


def test_packed_caches_on_a_mesh_equal_one_device() -> None:
    found = rows("tests.lower.packed_on_devices", devices=8)
    assert len(found) == 4
    for name, r in found.items():
        assert r["worst"] < 1e-5, name
        assert all(c.endswith("slot_rows lanes") for c in r["caches"]), name
    divided = [name for name, r in found.items() if all("kv_heads" in c for c in r["caches"])]
    assert divided == ["windows, 2 of 4 key heads", "1 of 2 key heads, twice"]
