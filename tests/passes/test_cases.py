"""Before and after each pass, as texts. ``REGENERATE=1 pytest tests/passes/test_cases.py`` writes them anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph
from compiler.graph.region import Region
from compiler.ops.leaves import Input
from compiler.parallel.plan import Plan
from compiler.passes.accumulate import accumulate
from compiler.passes.differentiate import differentiate, keep_all
from compiler.passes.loss import Chunk, next_token_loss
from compiler.passes.optimise import SGD, AdamW, optimise
from compiler.passes.partition import Partitioned, partition
from compiler.passes.phase import phase_graph
from compiler.passes.prune import prune
from compiler.passes.select import Choice, select
from compiler.passes.stages import Stages, stage
from compiler.passes.verify import verify
from tests.ops.build import tensor
from tests.passes.specs import spec

CASES = Path(__file__).parent / "cases"
SIZES = {"batch": 64, "seq": 128, "capacity": 128}
Change = Callable[[], tuple[Graph, Graph | Partitioned]]


def phase(name: str, to: str) -> Change:
    model = spec(name)
    return lambda: (model.graph, phase_graph(model, to).graph)


def forward(name: str) -> Graph:
    return phase_graph(spec(name), "forward").graph


def scalar(name: str) -> Graph:
    """The forward graph with the sum of its logits squared as the loss: shorter to read than a cross-entropy."""
    b = Builder()
    graph = forward(name)
    b.nodes, b.names, b.known = list(graph.nodes), dict(graph.names), {v.id for n in graph.nodes for v in n.results}
    b._ids = iter(range(1000, 2000))
    logits = graph.output("logits")
    return b.finish([("loss", b.reduce(b.square(logits), "sum", logits.axes))])


def of(graph: Graph, change: Callable[[Graph], Graph | Partitioned]) -> tuple[Graph, Graph | Partitioned]:
    return graph, change(graph)


def split(graph: Graph, **axes: str) -> Partitioned:
    mesh = {m: n for m, n in {"data": 4, "model": 2}.items() if m in axes.values()}
    return partition(graph, Plan.of(axes, mesh), SIZES)


def dead() -> Graph:
    """A value nobody reads, and a repeat with a dead node, a dead stacked output, and what only these read."""
    b = Builder()
    x = b.append(Input("x"), (), (tensor("batch=2 embed=4"),))[0]
    unread, only_dead = b.exp(x), b.tanh(x)
    region = Region(b, 3)
    h = region.carry(x)
    wasted = region.mul(h, only_dead)
    (out,), _, _ = region.close([region.neg(h)], [("wasted", wasted)])
    b.square(unread)
    return b.finish([("out", out)])


CHANGES: dict[str, Change] = {
    "phase/attention_decode": phase("attention", "decode"),
    "phase/attention_verify": phase("attention", "verify"),
    "phase/convolution_prefill": phase("shift", "prefill"),
    "phase/repeat_forward": phase("repeat", "forward"),
    "loss/next_token": lambda: of(forward("mlp"), next_token_loss),
    "loss/chunks": lambda: of(
        forward("mlp"), lambda g: next_token_loss(g, sizes={"batch": 2, "seq": 7}, chunk=Chunk(positions=3))
    ),
    "select/long_attention": lambda: of(forward("attention"), lambda g: select(g, {"batch": 1, "seq": 4096})),
    "select/few_tokens": lambda: of(forward("experts"), lambda g: select(g, {"batch": 1, "seq": 2}, Choice())),
    "prune/dead_values": lambda: of(dead(), prune),
    "differentiate/mlp": lambda: of(scalar("mlp"), differentiate),
    "differentiate/frozen": lambda: of(scalar("frozen"), differentiate),
    "differentiate/repeat": lambda: of(scalar("repeat"), differentiate),
    "differentiate/repeat_kept": lambda: of(scalar("repeat"), lambda g: differentiate(g, keep=keep_all)),
    "accumulate/mlp": lambda: of(differentiate(next_token_loss(forward("mlp"))), lambda g: accumulate(g, 2)),
    "optimise/adamw": lambda: of(differentiate(scalar("frozen")), lambda g: optimise(g, AdamW(clip=1.0))),
    "optimise/sgd": lambda: of(differentiate(scalar("frozen")), lambda g: optimise(g, SGD())),
    "stage/repeat": lambda: of(forward("repeat"), lambda g: stage(g, Stages(3, 2), SIZES)),
    "partition/stages": lambda: of(
        stage(forward("repeat"), Stages(3, 2), SIZES),
        lambda g: partition(g, Plan.of({"stages": "stage", "layers": "stage"}, {"stage": 3}), SIZES),
    ),
    "partition/mlp": lambda: of(forward("mlp"), lambda g: split(g, mlp="model")),
    "partition/vocab": lambda: of(forward("mlp"), lambda g: split(g, vocab="model")),
    "partition/mlp_gradient": lambda: of(differentiate(scalar("mlp")), lambda g: split(g, mlp="model")),
    "partition/heads": lambda: of(
        forward("attention"),
        lambda g: split(g, heads="model", kv_heads="model", batch="data"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_before_and_after(name: str) -> None:
    before, after = CHANGES[name]()
    verify(before, after=f"{name}, before")
    verify(after.graph if isinstance(after, Partitioned) else after, after=name)
    for graph, side in ((before, "before"), (after, "after")):
        path = CASES / f"{name}.{side}.txt"
        if os.environ.get("REGENERATE"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{graph}\n")
        assert path.read_text() == f"{graph}\n"


def test_no_case_file_is_left_over() -> None:
    files = {str(p.relative_to(CASES)) for p in CASES.rglob("*.txt")}
    assert files == {f"{name}.{side}.txt" for name in CHANGES for side in ("before", "after")}
