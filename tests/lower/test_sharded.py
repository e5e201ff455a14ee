"""A partitioned graph on two devices equals one device, and the compiled program holds exactly its collectives."""

from __future__ import annotations

from typing import Any

import pytest

from tests.children import rows

CASES = ("mlp", "mlp training", "mlp data-parallel training", "mlp sharded width", "experts",
         "experts training", "gemma2", "gemma2 training",
         "gemma training, one key head", "griffin training", "gemma2 decode", "griffin decode")  # fmt: skip
PLANNED = {"mlp": {"all-reduce": 1}, "gemma2": {"all-reduce": 5}, "gemma2 training": {"all-reduce": 17}}


def results() -> dict[str, dict[str, Any]]:
    return rows("tests.lower.two_devices", devices=2)


pytestmark = pytest.mark.slow  # whole models: test_strategies_on_devices has a few of each kind in the fast run


@pytest.mark.parametrize("case", CASES)
def test_two_devices_equal_one(case: str) -> None:
    assert results()[case]["worst"] < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_program_holds_the_graph_s_collectives(case: str) -> None:
    found = results()[case]
    assert found["emitted"] == found["planned"]
    assert found["planned"] == PLANNED.get(case, found["planned"])
