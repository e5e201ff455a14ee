"""The verifier refuses every kind of illegal graph, naming pass, node, path and place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from compiler.errors import BlockgraphError
from compiler.graph.ir import Graph, Node, Value
from compiler.ops.collective import AllReduce
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Map
from compiler.ops.leaves import Argument
from compiler.passes.differentiate import differentiate
from compiler.passes.loss import next_token_loss
from compiler.passes.optimise import SGD, optimise
from compiler.passes.phase import phase_graph
from compiler.passes.verify import IllegalGraph, verify
from tests.ops.build import tensor
from tests.passes.specs import spec

ELSEWHERE = Value(999, tensor("seq=3"))


def change(graph: Graph, at: int, **fields: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[at] = dataclasses.replace(nodes[at], **fields)
    return graph.with_nodes(nodes)


def mlp() -> Graph:
    return phase_graph(spec("mlp"), "forward").graph


def repeat(**fields: Any) -> Graph:
    """The repeat's own record changed."""
    graph = phase_graph(spec("repeat"), "forward").graph
    at = next(i for i, n in enumerate(graph.nodes) if isinstance(n.op, Repeat))
    op: Any = graph.nodes[at].op
    return change(graph, at, op=dataclasses.replace(op, **fields))


def body() -> Graph:
    return next(n.op.body for n in phase_graph(spec("repeat"), "forward").graph.nodes if isinstance(n.op, Repeat))


def relu(graph: Graph) -> int:
    return next(i for i, n in enumerate(graph.nodes) if n.op == Map("relu"))


def undefined() -> Graph:
    graph = mlp()
    return change(graph, relu(graph), operands=(ELSEWHERE,))


def out_of_order() -> Graph:
    graph = mlp()
    nodes, i = list(graph.nodes), relu(graph)
    nodes[i - 1], nodes[i] = nodes[i], nodes[i - 1]
    return graph.with_nodes(nodes)


def twice() -> Graph:
    graph = mlp()
    return graph.with_nodes([*graph.nodes, graph.nodes[relu(graph)]])


def mistyped() -> Graph:
    graph = mlp()
    i = relu(graph)
    wrong = Value(graph.nodes[i].result.id, graph.nodes[i].result.type.with_dtype("bfloat16"))
    return change(graph, i, results=(wrong,))


def misread() -> Graph:
    """An operand that says another type than the value was made with."""
    graph = mlp()
    i = relu(graph)
    operand = graph.nodes[i].operands[0]
    return change(graph, i, operands=(Value(operand.id, operand.type.with_dtype("bfloat16")),))


def unfitting() -> Graph:
    graph = mlp()
    i = relu(graph)
    return change(graph, i, op=Map("add"))


def collective() -> Graph:
    graph = mlp()
    last = graph.output("logits")
    return graph.with_nodes([*graph.nodes, Node(AllReduce("model"), (last,), (Value(999, last.type),))])


def stray_argument() -> Graph:
    graph = mlp()
    return graph.with_nodes([*graph.nodes, Node(Argument(), (), (ELSEWHERE,))])


def outside_value_in_a_region() -> Graph:
    inner = body()
    outside = phase_graph(spec("repeat"), "forward").graph.nodes[0].result
    at = next(i for i, n in enumerate(inner.nodes) if n.op.name == "tanh" or n.op == Map("tanh"))
    return repeat(body=change(inner, at, operands=(outside,)))


def missing_argument() -> Graph:
    inner = body()
    first = next(i for i, n in enumerate(inner.nodes) if isinstance(n.op, Argument))
    return repeat(body=inner.with_nodes([n for i, n in enumerate(inner.nodes) if i != first]))


def wrong_slice() -> Graph:
    """The stack's slice typed as another."""
    inner = body()
    at = max(i for i, n in enumerate(inner.nodes) if isinstance(n.op, Argument))
    old = inner.nodes[at].result
    new = Value(old.id, old.type.with_dtype("bfloat16"))
    nodes = [
        dataclasses.replace(
            n,
            results=tuple(new if v.id == old.id else v for v in n.results),
            operands=tuple(new if v.id == old.id else v for v in n.operands),
        )
        for n in inner.nodes
    ]
    return repeat(body=inner.with_nodes(nodes))


def carried_changes_type() -> Graph:
    inner = body()
    weight = next(n.result for n in inner.nodes if n.op.name == "argument" and "embed_out" in n.result.axes)
    return repeat(body=dataclasses.replace(inner, outputs=(("carry0", weight),)))


def narrowed() -> Graph:
    """A new parameter that is not typed as the old one."""
    graph = optimise(differentiate(next_token_loss(mlp())), SGD())
    return dataclasses.replace(graph, outputs=(("parameter:mlp.up", graph.output("loss")),))


BROKEN: dict[str, tuple[Callable[[], Graph], str]] = {
    "operand never made": (undefined, "operand 0 is %999, which nothing before it"),
    "operand made later": (out_of_order, "which nothing before it"),
    "id made twice": (twice, "is made twice"),
    "result type": (mistyped, "the op says float32"),
    "operand type": (misread, "made as float32"),
    "operands do not fit": (unfitting, "add takes 2 values, found 1"),
    "collective before partition": (collective, "all_reduce is not legal at this stage"),
    "output": (lambda: dataclasses.replace(mlp(), outputs=(("logits", ELSEWHERE),)), "output or name logits"),
    "name": (lambda: dataclasses.replace(mlp(), names={"x": ELSEWHERE}), "output or name x"),
    "outputs of one name": (lambda: dataclasses.replace(mlp(), outputs=mlp().outputs * 2), "two outputs have one name"),
    "argument of no repeat": (stray_argument, "an argument that no repeat gives"),
    "argument not in the region": (missing_argument, "is not in its region"),
    "groups of arguments": (lambda: repeat(carried=0), "in groups of"),
    "region reads past its arguments": (outside_value_in_a_region, "which nothing before it"),
    "slice of a stack": (wrong_slice, "its stack float32"),
    "trips": (lambda: repeat(trips=4), "does not have layers=4 in front"),
    "new parameter": (narrowed, "parameter:mlp.up becomes float32[], and was float32[embed=8 mlp=16]"),
    "carried value": (carried_changes_type, "a repeated layer turns"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs_are_refused(name: str) -> None:
    build, text = BROKEN[name]
    with pytest.raises(IllegalGraph) as error:
        verify(build(), ("elaborate", "phase", "loss", "differentiate", "optimise"), after="select")
    assert text in str(error.value) and str(error.value).startswith("after select")
    assert not isinstance(error.value, BlockgraphError)  # a bug of ours, never the user's


def test_the_message_names_node_path_and_place() -> None:
    with pytest.raises(IllegalGraph) as error:
        verify(undefined(), after="phase")
    assert error.value.path == "mlp" and str(error.value.position) == "mlp.yaml:5:17"
    assert str(error.value).startswith("after phase, node %6 = relu, path mlp, mlp.yaml:5:17: operand 0 is %999")


@pytest.mark.parametrize(("phase", "legal"), [("forward", True), ("decode", False)])
def test_state_is_legal_only_after_phase(phase: str, legal: bool) -> None:
    graph = phase_graph(spec("attention"), phase).graph
    verify(graph, ("elaborate", "phase"))
    if legal:
        verify(graph, ("elaborate",))
    else:
        with pytest.raises(IllegalGraph, match="not legal at this stage"):
            verify(graph, ("elaborate",))
