"""Caches that a TPU packs, divided by heads over a mesh: the same logits as one device with caches that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_packed_caches_on_a_mesh_equal_one_device() -> None:
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.lower.packed_on_devices"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {r["case"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 4
    for name, r in found.items():
        assert r["worst"] < 1e-5, name
        assert all(c.endswith("slot_rows lanes") for c in r["caches"]), name
    divided = [name for name, r in found.items() if all("kv_heads" in c for c in r["caches"])]
    assert divided == ["windows, 2 of 4 key heads", "1 of 2 key heads, twice"]
