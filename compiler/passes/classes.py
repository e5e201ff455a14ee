"""Classes: which values are gradients and optimiser state, by what the graph's outputs say of them."""

from __future__ import annotations

from compiler.graph.ir import Graph, Value
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Cast, Map, StopGradient
from compiler.ops.leaves import State
from compiler.ops.shape import Arrange

ELEMENTWISE = (Map, Cast, StopGradient, Arrange)


def state_class(op: State) -> str:
    return "optimiser" if op.kind == "optimiser" else "state"


def classes(graph: Graph) -> dict[int, str]:
    """Value id -> class, for values that are not activations: optimiser updates element by element, and the
    gradients that flow into them or out of the graph."""
    found: dict[int, str] = {}
    states = {n.op.label: state_class(n.op) for n in graph.leaves(State) if isinstance(n.op, State)}
    for name, value in graph.outputs:
        group, _, label = name.partition(":")
        if group == "gradient":
            found[value.id] = "gradients"
        elif group == "parameter" or states.get(label) == "optimiser":
            found[value.id] = "optimiser"
    _spread(graph, found)
    return found


def _spread(graph: Graph, found: dict[int, str]) -> None:
    """From results to operands of the same axes; what else than an element-wise op makes is a gradient."""
    for node in reversed(graph.nodes):
        kinds = [found.get(v.id) for v in node.results]
        if not any(kinds):
            continue
        if isinstance(node.op, Repeat):
            _into(node.op, node.operands, kinds, found)
            continue
        if not isinstance(node.op, ELEMENTWISE):
            for v, kind in zip(node.results, kinds, strict=True):
                if kind:
                    found[v.id] = "gradients"
            continue
        (result,) = node.results
        for v in node.operands:
            if sorted(v.axes) == sorted(result.axes) and v.axes:
                found.setdefault(v.id, kinds[0] or "")


def _into(op: Repeat, operands: tuple[Value, ...], kinds: list[str | None], found: dict[int, str]) -> None:
    for i, ((_, out), kind) in enumerate(zip(op.body.outputs, kinds, strict=True)):
        if kind is None:
            continue
        found[out.id] = "gradients"
        if i < op.carried:
            found[op.arguments[i]] = "gradients"
            found.setdefault(operands[i].id, "gradients")
    _spread(op.body, found)
