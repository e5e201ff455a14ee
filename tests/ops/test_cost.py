"""Costs against formulas written out by hand."""

from __future__ import annotations

from typing import Any

from compiler.graph.ir import Node
from compiler.graph.sizes import Size
from compiler.ops.attention import BLOCK, Attend, AttendCached
from compiler.ops.contract import Cost
from compiler.ops.experts import Dispatch, ExpertDot
from compiler.ops.lookup import Lookup
from tests.ops.build import Case, tensor

B, T = Size.symbol("b"), Size.symbol("t")


def node(build: Any, **inputs: str) -> Node:
    return Case("cost", inputs, build).graph().nodes[-1]


def cost(build: Any, **inputs: str) -> Cost:
    made = node(build, **inputs)
    return made.op.cost([v.type for v in made.operands], [v.type for v in made.results])


def test_dot() -> None:
    found = cost(lambda b, x, w: b.dot(x, w, ("embed",)), x="batch=b seq=t embed=8", w="embed=8 mlp=32")
    assert found.matrix == B * T * (2 * 8 * 32)
    assert found.read == B * T * 8 * 4 + 8 * 32 * 4 and found.written == B * T * 32 * 4
    assert found.vector == 0


def test_gradient_of_a_dot_is_twice_its_work() -> None:
    case = Case("dot", {"x": "batch=4 embed=8", "w": "embed=8 mlp=32"}, lambda b, x, w: b.dot(x, w, ("embed",)))
    dots = [n for n in case.gradient_graph().nodes if n.op.name == "dot"]
    work = [n.op.cost([v.type for v in n.operands], [v.type for v in n.results]).matrix for n in dots]
    assert work == [2 * 4 * 8 * 32] * 3


def test_elementwise_counts_the_broadcast_result() -> None:
    found = cost(lambda b, x, y: b.add(x, y), x="batch=b embed=8", y="embed=8")
    assert found.vector == B * 8 and found.transcendental == 0
    assert cost(lambda b, x: b.gelu_tanh(x), x="batch=b").transcendental == B
    assert cost(lambda b, x: b.norm(x, "rms", "embed"), x="batch=b embed=8").vector == B * 24


def test_lookup_reads_its_rows_only() -> None:
    found = cost(lambda b, t, i: b.one(Lookup("vocab"), t, i), t="vocab=1000 embed=8", i="batch=b:int32")
    assert found.read == B * 8 * 4 + B * 4 and found.written == B * 8 * 4


def attention(op: Any, t: str = "t", slots: str = "") -> Cost:
    q, k = tensor(f"batch=b seq={t} heads=4 head_dim=16"), tensor(f"batch=b seq={t} kv_heads=2 head_dim=16")
    cache = [tensor(f"batch=b kv_heads=2 slots={slots} head_dim=16")] * 2 if slots else []
    ins = [q, k, k, *cache, *([tensor("batch=b", "int32")] if slots else [])]
    return op.cost(ins, op.infer(*ins))


def test_plain_attention_scores_every_pair() -> None:
    assert attention(Attend()).matrix == B * T * T * (4 * (16 + 16) * 2)
    own_and_cached = attention(AttendCached(), slots="s")
    assert own_and_cached.matrix == B * T * (T + Size.symbol("s")) * (4 * (16 + 16) * 2)


def test_diagonal_attention_meets_every_lane_of_a_row() -> None:
    q, k = tensor("batch=b seq=t heads=4 head_dim=16"), tensor("batch=b seq=t kv_heads=2 head_dim=16")
    cache, start = tensor("batch=b slot_rows=s lanes=64"), tensor("batch=b", "int32")  # a row holds two slots
    op = AttendCached(implementation="diagonal")
    found = op.cost([q, k, k, cache, cache, start], op.infer(q, k, k, cache, cache, start))
    own, rows = B * T * T * (4 * (16 + 16) * 2), B * T * Size.symbol("s") * 2 * (4 * (64 + 64) * 2)
    assert found.matrix == own + rows
    assert found.vector == B * T * (T + Size.symbol("s") * 2) * (4 * 5)


def test_blocked_attention_scores_the_tiles_it_runs() -> None:
    length, blocks = 4 * BLOCK, 4
    whole, half = blocks * blocks, blocks * (blocks + 1) // 2
    tile = BLOCK * BLOCK * 4 * (16 + 16) * 2
    blocked = Attend(implementation="blocked")
    assert attention(blocked, str(length)).matrix == B * tile * half
    assert attention(Attend(implementation="blocked", causal=False), str(length)).matrix == B * tile * whole
    window = Attend(implementation="blocked", window=BLOCK)
    assert attention(window, str(length)).matrix == B * tile * (2 * blocks - 1)


def test_dense_experts_run_all_and_ragged_ones_the_chosen() -> None:
    def product(kind: str) -> Any:
        def build(b: Any, x: Any, chosen: Any, w: Any) -> Any:
            rows, _, groups = b.apply(Dispatch(Size.of(8), implementation=kind), x, chosen)
            return b.one(ExpertDot(("embed",), kind, Size.of(8)), rows, w, groups)

        return build

    inputs = {"x": "batch=b seq=t embed=16", "chosen": "batch=b seq=t active=2:int32", "w": "experts=8 embed=16 mlp=4"}
    assert cost(product("dense"), **inputs).matrix == B * T * (8 * 2 * 16 * 4)
    assert cost(product("ragged"), **inputs).matrix == B * T * (2 * 2 * 16 * 4)


def test_the_way_back_of_attention_is_five_products() -> None:
    case = Case("attend", {"q": "batch=2 seq=6 heads=4 head_dim=16", "k": "batch=2 seq=6 kv_heads=2 head_dim=16",
                           "v": "batch=2 seq=6 kv_heads=2 value_dim=8"},
                lambda b, *xs: b.apply(Attend(), *xs)[0])  # fmt: skip
    back = next(n for n in case.gradient_graph().nodes if n.op.name == "attend_gradient")
    found = back.op.cost([v.type for v in back.operands], [v.type for v in back.results])
    assert found.matrix == 2 * (2 * 6 * 4 * 6) * (3 * 16 + 2 * 8)
