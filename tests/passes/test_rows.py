"""Rows of experts on a mesh: what is sent where, what a device works out, and that no order leaves its shard."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from compiler.language.model import load
from compiler.ops.collective import Collective, Exchange
from compiler.ops.contract import LOCAL
from compiler.parallel.plan import Plan
from compiler.passes.partition import Partitioned, partition
from compiler.passes.pipeline import phase_pipeline, training_pipeline
from tests.lower.experts_on_devices import STRATEGIES

SIZES = {"batch": 32, "seq": 1024, "capacity": 1024}
PRODUCTS = ("dot", "expert_dot", "expert_outer")
TOKENS, WIDTH, ACTIVE, LAYERS = 32 * 1024, 4096, 2, 32


@cache
def placed(strategy: str, phase: str = "forward", active: int = ACTIVE, shards: int = 0) -> Partitioned:
    model = load("mixtral-8x7b", {"active": active})
    mesh, rules = STRATEGIES[strategy]
    mesh = {m: shards or n for m, n in mesh.items()}
    sizes = SIZES | ({"seq": 1} if phase == "decode" else {})
    pipeline = training_pipeline(model, sizes) if phase == "train" else phase_pipeline(model, phase, sizes)
    return partition(pipeline.run(model.graph), Plan(mesh, rules), sizes)


def sent(made: Partitioned, name: str) -> float:
    """Bytes that one device sends, every trip counted."""
    total = 0.0
    for node, times in made.graph.walk():
        if isinstance(node.op, Collective) and node.op.name == name:
            cost = node.op.cost([made.local(v) for v in node.operands], [made.local(v) for v in node.results])
            total += float(cost.sent.constant) * times
    return total


def products(made: Partitioned) -> float:
    """FLOPs of matrix products on one device."""
    total = 0.0
    for node, times in made.graph.walk():
        if node.op.name in PRODUCTS:
            cost = node.op.cost([made.local(v) for v in node.operands], [made.local(v) for v in node.results])
            total += float(cost.matrix.constant) * times
    return total


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("phase", ["forward", "train"])
def test_no_collective_moves_an_order_of_one_shard(strategy: str, phase: str) -> None:
    made = placed(strategy, phase)
    for node, _ in made.graph.walk():
        if isinstance(node.op, Collective) and node.op.name not in ("exchange", "gather_counts", "own_shard"):
            moved = {getattr(node.op, a, "") for a in ("axis", "scattered", "gathered")}
            assert not moved & set(LOCAL)
            assert all(made.placements[v.id].get(m) == made.placements[node.results[0].id].get(m)
                       for v in node.operands for m in made.mesh
                       if v.axes[:1] == ("rows",) and made.placements[v.id].get(m) in LOCAL["rows"])  # fmt: skip


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s not in ("sequence", "experts alone")])
def test_the_work_is_divided(strategy: str) -> None:
    """Rows at their experts count as many as come when tokens go to all experts alike."""
    made, whole = placed(strategy), placed(strategy, shards=1)
    assert products(made) == pytest.approx(products(whole) / Plan(made.mesh).devices, rel=2e-3)


def test_data_parallel_experts_send_nothing_forward() -> None:
    assert not [n for n, _ in placed("data").graph.walk() if isinstance(n.op, Collective)]


def test_tensor_parallel_experts_are_summed_once_a_layer() -> None:
    """By token, after rows are added up: attention and experts each one all-reduce."""
    one = TOKENS * WIDTH * 2
    assert sent(placed("tensor"), "all_reduce") == 2 * LAYERS * one * 2 * (1 / 2)


def test_expert_parallel_rows_travel_there_and_back() -> None:
    made = placed("expert")
    assert sum(isinstance(n.op, Exchange) for n, _ in made.graph.walk()) == 2
    own = TOKENS / 4 * ACTIVE * WIDTH * 2
    assert sent(made, "exchange") == 2 * LAYERS * own * (3 / 4)


def test_with_many_active_experts_tokens_are_gathered_instead() -> None:
    """An exchange sends each token ``active`` times to one of n shards; a gather once to each other one."""
    for active, shards, exchanged in [(2, 8, True), (2, 4, True), (4, 2, False)]:
        made = placed("expert", active=active, shards=shards)
        names = Counter(n.op.name for n, _ in made.graph.walk())
        assert (names["exchange"] == 2) is exchanged
        assert (names["reduce_scatter"] == 1) is not exchanged


def test_few_tokens_go_to_the_experts() -> None:
    """A decode gathers its tokens rather than weights: in all layers it sends less than one layer's weights."""
    made, weights = placed("expert", "decode"), 8 * 3 * WIDTH * 14336 * 2
    names = {n.op.name for n, _ in made.graph.walk() if isinstance(n.op, Collective)}
    assert sum(sent(made, name) for name in names) < weights / 100


def test_partial_sums_of_a_tensor_parallel_expert_are_added_by_token() -> None:
    """Not by row: at the experts there is room for every row."""
    made = placed("expert tensor", "train")
    assert not [n for n, _ in made.graph.walk() if n.op.name == "all_reduce" and "rows" in n.results[0].axes]
