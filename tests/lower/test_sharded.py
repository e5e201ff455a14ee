"""A partitioned graph on two devices equals one device, and the compiled program holds exactly its collectives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("mlp", "mlp training", "mlp data-parallel training", "mlp sharded width", "experts",
         "experts training", "gemma2", "gemma2 training",
         "gemma training, one key head", "griffin training", "gemma2 decode", "griffin decode")  # fmt: skip
PLANNED = {"mlp": {"all-reduce": 1}, "gemma2": {"all-reduce": 5}, "gemma2 training": {"all-reduce": 17}}


@cache
def results() -> dict[str, dict[str, Any]]:
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.lower.two_devices"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {r["case"]: r for r in map(json.loads, done.stdout.splitlines())}


pytestmark = pytest.mark.slow  # whole models: test_strategies_on_devices has a few of each kind in the fast run


@pytest.mark.parametrize("case", CASES)
def test_two_devices_equal_one(case: str) -> None:
    assert results()[case]["worst"] < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_program_holds_the_graph_s_collectives(case: str) -> None:
    found = results()[case]
    assert found["emitted"] == found["planned"]
    assert found["planned"] == PLANNED.get(case, found["planned"])
