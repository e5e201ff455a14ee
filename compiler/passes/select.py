"""Select: the implementation of each op for a target and the sizes at hand. What runs is what is priced."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.ops.attention import Attend, AttendCached, AttendGradient
from compiler.ops.experts import Collect, Dispatch, ExpertDot
from compiler.ops.linear_attend import CHUNK, LinearAttend, LinearAttendGradient
from compiler.ops.recurrence import Recur
from compiler.ops.state import HEADS_FIRST, CacheLayout

LONGEST_SCORES = 2048  # keys or queries above which no score matrix is made
FEW_QUERIES = 16  # of a decode or verify call
LONGEST_SCAN = 256  # positions above which a recurrence runs in blocks
TPU_LANES = 128
FLOPS_A_VECTOR_FLOP = 16  # of matrix products: 15 in bfloat16 on H100, 30 on TPU v5e, in round numbers
DENSE_TOKENS = 256  # tokens up to which every expert runs on every token


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is chosen for a platform. ``caches``: XLA for GPU and CPU runs the products of attention over whole
    [slots, head_dim] matrices and would transpose a cache that has slots first (half a cache of temporary memory
    in a decode of gemma2-2b on H100). XLA for TPU keeps slots first and would copy one that has heads first; where
    [kv_heads, head_dim] does not fill its tiles it takes the cache in an order that does, and copies it to one that
    does not (2.67 caches of temporary memory for 12 heads of 64), so there heads lie side by side."""

    scores: int = LONGEST_SCORES
    scan: int = LONGEST_SCAN
    dense_tokens: int = DENSE_TOKENS
    caches: CacheLayout = HEADS_FIRST
    doubled: bool = False  # XLA for GPU makes one query row a reduction, and transposes half the cache for it
    widen: bool = True  # products of narrow floats in float32
    streamed: bool = True  # XLA for CPU would copy a layer's slice of the cache to multiply with it

    @staticmethod
    def of(platform: str) -> Choice:
        return Choice(
            caches=CacheLayout(heads_first=False, lanes=TPU_LANES) if platform == "tpu" else HEADS_FIRST,
            streamed=platform == "cpu",
            widen=platform == "cpu",
            doubled=platform == "gpu",
        )


class Select(Replay):
    def __init__(self, sizes: Mapping[str, int], choice: Choice = Choice()) -> None:
        super().__init__()
        self.sizes, self.choice = sizes, choice

    def number(self, value: Value, axis: str) -> int:
        return int(value.type.size(axis).evaluate(self.sizes)) if axis in value.axes else 1

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        rule = RULES.get(type(node.op))
        if rule is None:
            return None
        op: Any = node.op
        chosen = rule(self, node)
        fields: Any = {"implementation": chosen} if isinstance(chosen, str) else chosen
        made = self.b.apply(dataclasses.replace(op, **fields), *ins)
        if isinstance(op, Dispatch) and made[0].type == ins[0].type:  # dense: tokens stay where they are
            return (ins[0], *made[1:])
        return made


def _attention(s: Select, node: Node) -> str:
    op = node.op
    assert isinstance(op, (Attend, AttendCached, AttendGradient))
    queries, keys = s.number(node.operands[0], op.queries), s.number(node.operands[1], op.keys)
    if isinstance(op, AttendCached):
        few = queries <= FEW_QUERIES and not op.placed  # queries that lie where the call's own keys do
        if "lanes" in node.operands[3].axes:
            return "diagonal" if few else "blocked"
        slots = s.number(node.operands[3], "slots")
        if s.choice.streamed and few:
            return "streamed"
        if s.choice.doubled and queries == 1 and _single(node):
            return "doubled"
        keys = max(keys, slots)
    return "blocked" if min(queries, keys) > 1 and max(queries, keys) > s.choice.scores else "plain"


def _single(node: Node) -> bool:
    """One query head a key head."""
    op = node.op
    assert isinstance(op, AttendCached)
    return node.operands[0].type.size(op.heads) == node.operands[1].type.size(op.kv_heads)


def _recurrence(s: Select, node: Node) -> str:
    op = node.op
    assert isinstance(op, Recur)
    length = s.number(node.operands[0], op.axis)
    return "step" if length == 1 else "associative" if length <= s.choice.scan else "blocked"


def _linear_attend(s: Select, node: Node) -> dict[str, Any]:
    """Of the forms that can run it the one that costs least; chunks no longer than the call."""
    op = node.op
    assert isinstance(op, (LinearAttend, LinearAttendGradient))
    length = s.number(node.operands[op.given.index("value")], op.axis)
    if length == 1:
        return {"implementation": "step", "chunk": 1}
    chunk = min(CHUNK, 1 << (length - 1).bit_length())
    forms = ["chunked"] if op.has("erase") else ["chunked", "scan"]
    choices = [{"implementation": form, "chunk": chunk} for form in forms]
    types = [[v.type for v in values] for values in (node.operands, node.results)]

    def work(choice: dict[str, Any]) -> float:
        cost = dataclasses.replace(op, **choice).cost(*types)
        return float((cost.matrix + (cost.vector + cost.transcendental) * FLOPS_A_VECTOR_FLOP).evaluate(s.sizes))

    return min(choices, key=work)


def _experts(s: Select, node: Node) -> str:
    tokens = s.sizes.get("batch", 1) * s.sizes.get("seq", 1)
    return "dense" if tokens <= s.choice.dense_tokens else "ragged"


RULES = {

    Attend: _attention, AttendCached: _attention, AttendGradient: _attention, Recur: _recurrence,
    LinearAttend: _linear_attend, LinearAttendGradient: _linear_attend,
    Dispatch: _experts, ExpertDot: _experts, Collect: _experts,
}  # fmt: skip


def select(graph: Graph, sizes: Mapping[str, int], choice: Choice = Choice()) -> Graph:
    """The graph with every ``implementation`` chosen."""
    return Select(sizes, choice).run(graph)
