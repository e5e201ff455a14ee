"""The shipped strategies, alone and combined, equal one device; the compiled program holds the graph's collectives."""

from __future__ import annotations

from typing import Any

import pytest

from tests.children import rows
from tests.lower.strategies_on_devices import CASES, Case


def results(which: str) -> dict[str, dict[str, Any]]:
    return rows("tests.lower.strategies_on_devices", which, devices=8, timeout=1500)


def check(found: dict[str, Any]) -> None:
    assert found["worst"] < 1e-5
    planned, emitted = found["planned"], found["emitted"]
    # the compiler drops a collective whose equal is there already; it never adds one or makes another kind of it
    assert all(emitted.get(kind, 0) <= n for kind, n in planned.items())
    assert sum(emitted.values()) >= 0.9 * sum(planned.values()) and set(emitted) <= set(planned)


@pytest.mark.parametrize("case", CASES["fast"], ids=str)
def test_devices_equal_one(case: Case) -> None:
    check(results("fast")[str(case)])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES["slow"], ids=str)
def test_more_devices_equal_one(case: Case) -> None:
    check(results("slow")[str(case)])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES["random"], ids=str)
def test_random_meshes_equal_one(case: Case) -> None:
    check(results("random")[str(case)])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES["long"], ids=str)
def test_a_long_ring_equals_one_device(case: Case) -> None:
    """65,536 tokens, without a matrix of all scores on either side, and with as much work on each device."""
    found = results("long")[str(case)]
    check(found)
    assert found["planned"]["collective-permute"] > 8  # halves in and out, keys and values round the ring
