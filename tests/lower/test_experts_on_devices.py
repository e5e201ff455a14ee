"""Sparse experts on several devices equal one device; the compiled program holds exactly the graph's collectives."""

from __future__ import annotations

from typing import Any

import pytest

from tests.children import rows
from tests.lower.experts_on_devices import CASES, Case

EXCHANGES = {"forward": 2, "train": 7, "decode": 2}  # there and back; and, recomputed and on the way back, five


def results(which: str) -> dict[str, dict[str, Any]]:
    return rows("tests.lower.experts_on_devices", which, devices=8)


def check(case: Case, found: dict[str, Any]) -> None:
    assert found["worst"] < 1e-5
    assert found["emitted"] == found["planned"]
    travel = case.strategy.split()[-1] in ("expert", "tensor", "2") and "expert" in case.strategy
    expected = EXCHANGES[case.phase] if travel and not case.dense and not case.many else 0
    expected = 0 if case.kind and case.kind != "terms" else expected  # seats have an axis: it is gathered as others
    assert found["exchanges"] == expected


@pytest.mark.parametrize("case", CASES["fast"], ids=str)
def test_devices_equal_one(case: Case) -> None:
    check(case, results("fast")[str(case)])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES["slow"], ids=str)
def test_more_devices_equal_one(case: Case) -> None:
    check(case, results("slow")[str(case)])
