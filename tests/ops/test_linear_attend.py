"""Linear attention gives one answer, whichever way it runs; what it costs is what the compiler makes of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiler.check.flops import flops
from compiler.graph.ir import Graph
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.linear_attend import LinearAttend
from compiler.passes.merge import merge
from tests.ops.build import Case, close
from tests.ops.linear_cases import case, inputs, values


def slow(*values: Any) -> list[Any]:
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


@pytest.mark.parametrize("speed", [1e-4, 20.0])
@pytest.mark.parametrize("layer", ["rwkv6", "gated_delta", *slow("ssd", "gla", "rwkv7")])
def test_from_hardly_any_decay_to_forgetting_at_once(layer: str, speed: float) -> None:
    """Long chunks: decays by channel are split in parts, and the delta rule's inverse is joined by products."""
    for seq, chunk in ((70, 32), (40, 64)):
        made = case(layer, "chunked", seq, chunk, state=True, ends=True, speed=speed)
        arrays = made.arrays()
        assert made.expect is not None
        for found, want in zip(made.run(made.graph(), arrays), made.expect(*arrays.values()), strict=True):
            close(found, want, 2e-5)


@pytest.mark.parametrize("layer", ["rwkv6", *slow("gated_delta")])
def test_the_way_back_of_long_chunks(layer: str) -> None:
    made = case(layer, "chunked", 40, 32, speed=20.0)
    for ours, theirs in zip(*made.gradients(), strict=True):
        assert np.isfinite(ours).all()
        close(ours, theirs, 2e-5)


def compiled(graph: Graph, arrays: dict[str, Any]) -> int:
    shapes = {k: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype) for k, x in arrays.items()}
    text = jax.jit(lambda a: list(run(graph, Context({}, a)).values())).lower(shapes).compile().as_text()
    found = flops(text)
    assert found.exact
    return found.total


def priced(graph: Graph) -> int:
    nodes = [n for n in graph.nodes if n.op.name.startswith("linear_attend")]
    costs = [n.op.cost([v.type for v in n.operands], [v.type for v in n.results]) for n in nodes]
    return sum(int(c.matrix.constant) for c in costs)


def large(layer: str, chunks: int) -> Case:
    """Axes that are not so small that the compiler makes sums of products."""
    sizes = {"batch=2": "batch=2", "heads=2": "heads=3", "key_dim=3": "key_dim=24", "head_dim=2": "head_dim=20"}
    given = inputs(layer, 64 * chunks)
    for small, size in sizes.items():
        given = {n: axes.replace(small, size) for n, axes in given.items()}
    op = LinearAttend(tuple(given), chunk=64)
    return Case(layer, given, lambda b, *xs: b.apply(op, *xs), values=values(given))


def way_back(made: Case, without: str = "") -> tuple[Graph, dict[str, Any]]:
    """The gradient program alone, and what it is given; ``without`` the cotangent of an operand."""
    back = made.gradient_graph()
    outputs = [o for o, name in zip(back.outputs, made.inputs, strict=True) if name != without]
    alone = Graph(tuple(n for n in back.nodes if n.op.name != "linear_attend"), tuple(outputs))
    g = jnp.zeros([int(s.constant) for s in made.graph().outputs[0][1].type.sizes])
    return merge(alone), made.arrays() | {"g0": g}


@pytest.mark.parametrize(
    ("layer", "chunks"),
    [
        *(("gla", 2), ("gated_delta", 1)),
        *slow(*(("ssd", n) for n in (1, 2, 3)), ("gla", 1), ("gla", 3), ("gated_delta", 2), ("gated_delta", 3)),
        *slow(*(("rwkv7", n) for n in (1, 2, 3))),
    ],
)
def test_products_are_those_of_the_compiler(layer: str, chunks: int) -> None:
    made = large(layer, chunks)
    assert compiled(made.graph(), made.arrays()) == priced(made.graph())
    back, arrays = way_back(made)
    assert compiled(back, arrays) == priced(back)


def test_products_that_only_decays_need_are_not_counted_where_decays_are_fixed() -> None:
    made = large("retention", 2)
    found = [priced(way_back(made, without)[0]) for without in ("", "log_decay")]
    assert found[1] < found[0]
    assert compiled(*way_back(made, "log_decay")) == found[1]
