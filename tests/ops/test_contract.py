"""No op without its whole contract."""

from __future__ import annotations

import dataclasses

import pytest

import compiler.lower.graph  # noqa: F401  (registers every lowering)
from compiler.lower.basic import FUNCTIONS as LOWERED_FUNCTIONS
from compiler.lower.registry import LOWERINGS
from compiler.ops.contract import OPS, Op, all_ops
from compiler.ops.elementwise import TABLE
from compiler.passes.verify import ADDED_BY

# Ops whose cost is that of moving data (every operand read, every result written): the base's rule says it.
MOVES = {
    "arrange", "cast", "concat", "expand", "pad", "pick_experts", "shift", "slice",
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute", "positions", "distances", "index",
}  # fmt: skip


def own(cls: type[Op], method: str) -> bool:
    """Whether the class, or a base of its own family, says it."""
    return getattr(cls, method) is not getattr(Op, method)


def missing(cls: type[Op]) -> list[str]:
    """What an op's contract lacks."""
    gaps = [m for m in ("infer", "cost") if not own(cls, m) and not (m == "cost" and cls.name in MOVES)]
    if cls.differentiable and not own(cls, "gradient"):
        gaps.append("gradient, or differentiable = False")
    if cls not in LOWERINGS:
        gaps.append("lowering")
    doc = cls.__dict__.get("__doc__") or ""
    if not doc or doc.startswith(f"{cls.__name__}("):  # dataclasses write one of their own
        gaps.append("docstring")
    if sum(cls.name in ops for ops in ADDED_BY.values()) != 1:
        gaps.append("the pass that adds it, in compiler/passes/verify.py")
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        gaps.append("a frozen dataclass")
    return gaps


@pytest.mark.parametrize("cls", list(all_ops()), ids=lambda c: c.name)
def test_contract_is_whole(cls: type[Op]) -> None:
    assert missing(cls) == []


def test_an_op_without_a_contract_is_refused() -> None:
    class Bare(Op):
        name = "bare"

    assert missing(Bare) == [
        "infer", "cost", "gradient, or differentiable = False", "lowering", "docstring",
        "the pass that adds it, in compiler/passes/verify.py",
    ]  # fmt: skip


def test_every_function_is_lowered_and_differentiated() -> None:
    assert set(TABLE) == set(LOWERED_FUNCTIONS)
    assert all(rule.derivative is not None for rule in TABLE.values())


def test_the_table_of_legal_ops_names_ops_only() -> None:
    assert {name for ops in ADDED_BY.values() for name in ops} <= set(OPS)
