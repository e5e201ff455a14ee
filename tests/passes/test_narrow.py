"""Narrow: casts stand on the side of a collective where fewer bytes are sent."""

from __future__ import annotations

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph
from compiler.ops.collective import AllGather, Permute
from compiler.ops.leaves import Input
from compiler.passes.narrow import narrow
from compiler.passes.prune import prune
from compiler.passes.verify import verify
from tests.ops.build import tensor

GATHER = AllGather(("data",), 4, "batch")


def sent(b: Builder, **outputs: object) -> tuple[Graph, list[str]]:
    graph = b.finish(list(outputs.items()))  # type: ignore[arg-type]
    place = {v.id: {"data": "batch"} for n in graph.nodes for v in n.results}
    made = prune(narrow(graph, place, {}))
    verify(made, after="narrow")
    assert all(v.id in place for n in made.nodes for v in n.results)
    assert [v.type for _, v in made.outputs] == [v.type for _, v in graph.outputs]
    return made, [n.result.type.dtype for n in made.nodes if isinstance(n.op, (AllGather, Permute))]


def test_what_was_widened_is_sent_narrow() -> None:
    b = Builder()
    x = b.append(Input("x"), (), (tensor("batch=8 seq=4", "bool"),))[0]
    moved = b.one(Permute(("data",), 4), b.one(GATHER, b.cast(x, "float32")))
    made, dtypes = sent(b, out=b.mul(moved, moved))
    assert dtypes == ["bool", "bool"] and sum(n.op.name == "cast" for n in made.nodes) == 1


def test_what_will_be_narrowed_is_sent_narrow_through_views() -> None:
    b = Builder()
    x = b.append(Input("x"), (), (tensor("batch=8 seq=4"),))[0]
    moved = b.merge(b.one(Permute(("data",), 4), b.one(GATHER, x)), ("batch", "seq"), "rows")
    made, dtypes = sent(b, out=b.exp(b.cast(moved, "bfloat16")), other=b.neg(x))
    assert dtypes == ["bfloat16", "bfloat16"]
    assert [n.op.name for n in made.nodes].index("cast") < [n.op.name for n in made.nodes].index("all_gather")


def test_what_is_also_read_wide_stays() -> None:
    b = Builder()
    x = b.append(Input("x"), (), (tensor("batch=8 seq=4"),))[0]
    moved = b.one(GATHER, x)
    _, dtypes = sent(b, out=b.cast(moved, "bfloat16"), wide=b.exp(moved))
    assert dtypes == ["float32"]
