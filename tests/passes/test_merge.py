"""Merge: the way back of attention shares the scores of its forward op exactly where both stand in one body."""

from __future__ import annotations

import pytest

from compiler.language.model import load
from compiler.ops.attention import AttendGradient
from compiler.parallel.plan import Plan
from compiler.passes.partition import partition
from compiler.passes.pipeline import training_pipeline
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.select import Choice

SMALL = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "head_dim": 8, "layers": 4}


@pytest.mark.parametrize(
    ("policy", "seq", "mesh", "shared"),
    [
        ("full", 64, {}, True),  # the layer is computed again, attention too
        ("dots", 64, {}, False),  # its output was kept
        ("full", 4096, {}, False),  # tiles, each in a loop of its own
        ("full", 64, {"model": 2}, True),
        ("full", 64, {"context": 4}, None),  # a ring: its first part, not what its loops do
    ],
)
def test_scores_are_shared_where_both_are(policy: str, seq: int, mesh: dict[str, int], shared: bool | None) -> None:
    sizes = {"batch": 4, "seq": seq}
    made = load("gemma2-9b", SMALL | {"window": 16})
    graph = training_pipeline(made, sizes, remat=Rematerialise(policy), choice=Choice()).run(made.graph)
    if mesh:
        axes = {"heads": "model", "kv_heads": "model"} if "model" in mesh else {"seq": "context"}
        graph = partition(graph, Plan.of(axes, mesh), sizes).graph
    found = {n.op.shared for n, _ in graph.walk() if isinstance(n.op, AttendGradient) and n.op.window is None}
    assert found == ({True, False} if shared is None else {shared})
