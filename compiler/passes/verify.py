"""Verify: a graph between two passes is legal. What is found here is a fault of a pass, never of a spec."""

from __future__ import annotations

from collections.abc import Collection

from compiler.errors import Position
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.control import Repeat, stack, unstack
from compiler.ops.leaves import Argument, Leaf, Parameter, State

# Which ops a pass may bring in. An op is legal once the pass that adds it has run; other passes add none.
ADDED_BY: dict[str, frozenset[str]] = {
    "elaborate": frozenset({
        "input", "parameter", "argument", "constant", "positions", "distances", "index", "repeat",
        "map", "cast", "stop_gradient", "dot", "norm", "softmax", "lookup", "rotate", "sinusoid", "attend",
        "arrange", "rename", "split", "merge", "reduce", "expand", "concat", "slice", "pad", "shift",
        "recur", "linear_attend", "short_conv", "conv", "pool", "choose", "pick_experts", "dispatch", "expert_dot",
        "collect", "attend_latent", "ordinal", "one_hot", "seats", "choose_tokens", "to_seats", "from_seats",
        "latest", "kept",
    }),
    "phase": frozenset({
        "state", "append", "keep_last", "keep_tail", "replace", "last_valid", "after", "attend_cached",
        "latest_held", "latest_count",
    }),
    "loss": frozenset({"pick"}),
    "pack": frozenset({"unpack", "dot_packed"}),
    "differentiate": frozenset({
        "attend_gradient", "linear_attend_gradient", "put", "scatter_add", "place", "expert_outer",
        "to_rows", "from_rows", "conv_input", "conv_kernel", "pool_gradient",
    }),
    "optimise": frozenset(),  # element-wise ops over the state that a phase may bring in
    "partition": frozenset({
        "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute", "own_shard", "once",
        "tally", "gather_counts", "exchange",
    }),
}  # fmt: skip


class IllegalGraph(Exception):
    """A pass left a graph that is not legal: a bug of the pass ``after``."""

    def __init__(self, after: str, message: str, node: Node | None = None) -> None:
        self.after, self.node = after, node
        self.path: str = node.path if node else ""
        self.position: Position | None = node.position if node else None
        at = f", node {', '.join(map(str, node.results))} = {node.op.text()}" if node else ""
        path = f", path {self.path}" if self.path else ""
        place = f", {self.position}" if self.position else ""
        super().__init__(f"after {after}{at}{path}{place}: {message}")


def legal_ops(passes: Collection[str]) -> frozenset[str]:
    """Names of the ops that may stand in a graph after these passes."""
    return frozenset().union(*(ADDED_BY.get(name, frozenset()) for name in passes))


def verify(graph: Graph, passes: Collection[str] = tuple(ADDED_BY), after: str = "?") -> None:
    """Raises IllegalGraph naming the pass, the node, its path and its place in the spec."""
    _Verifier(legal_ops(passes), after).whole(graph)


class _Verifier:
    def __init__(self, legal: frozenset[str], after: str) -> None:
        self.legal, self.after = legal, after
        self.seen: set[int] = set()  # ids of the whole graph, regions included

    def fail(self, message: str, node: Node | None = None) -> IllegalGraph:
        return IllegalGraph(self.after, message, node)

    def whole(self, graph: Graph) -> None:
        """A graph that is no region: what leaves as a state or a parameter takes the old one's place."""
        self.graph(graph, (), "")
        for kind, leaf in (("state", State), ("parameter", Parameter)):
            old = {f"{kind}:{n.op.label}": n for n in graph.nodes if isinstance(n.op, leaf)}
            for name, value in graph.outputs:
                if name in old and old[name].result.type != value.type:
                    raise self.fail(f"{name} becomes {value.type}, and was {old[name].result.type}", old[name])

    def graph(self, graph: Graph, arguments: Collection[int], where: str) -> None:
        defined: dict[int, TensorType] = {}
        declared = {n.result.id for n in graph.nodes if isinstance(n.op, Argument)}
        for missing in set(arguments) - declared:
            raise self.fail(f"the repeat's argument %{missing} is not in its region{where}")
        for node in graph.nodes:
            if isinstance(node.op, Argument) and node.result.id not in arguments:
                raise self.fail("an argument that no repeat gives a value", node)
            self.node(node, defined)
        names = [name for name, _ in graph.outputs]
        if len(set(names)) != len(names):
            raise self.fail(f"two outputs have one name: {', '.join(names)}{where}")
        for name, value in (*graph.outputs, *graph.names.items()):
            self.known(value, defined, f"output or name {name}{where}")

    def known(self, value: Value, defined: dict[int, TensorType], what: str, node: Node | None = None) -> None:
        if value.id not in defined:
            raise self.fail(f"{what} is {value}, which nothing before it in this graph makes", node)
        if defined[value.id] != value.type:
            raise self.fail(f"{what} is {value} as {value.type}, made as {defined[value.id]}", node)

    def node(self, node: Node, defined: dict[int, TensorType]) -> None:
        op = node.op
        if op.name not in self.legal:
            raise self.fail(f"{op.name} is not legal at this stage", node)
        for i, value in enumerate(node.operands):
            self.known(value, defined, f"operand {i}", node)
        if isinstance(op, Repeat):
            self.repeat(op, node)
        if isinstance(op, Leaf):
            if node.operands or len(node.results) != 1:
                raise self.fail("a leaf takes nothing and makes one value", node)
        else:
            try:
                types = op.infer(*(v.type for v in node.operands))
            except (TypeProblem, ValueError, TypeError, IndexError) as e:
                raise self.fail(f"its operands do not fit: {e}", node) from e
            found = tuple(v.type for v in node.results)
            if types != found:
                want, has = (", ".join(map(str, t)) for t in (types, found))
                raise self.fail(f"its results are typed {has}, the op says {want}", node)
        for value in node.results:
            if value.id in self.seen:
                raise self.fail(f"{value} is made twice", node)
            self.seen.add(value.id)
            defined[value.id] = value.type

    def repeat(self, op: Repeat, node: Node) -> None:
        groups = (op.carried, op.captured, op.stacked, op.states)
        if sum(groups) != len(op.arguments) or len(op.arguments) != len(node.operands):
            raise self.fail(
                f"{len(node.operands)} operands and {len(op.arguments)} arguments in groups of {groups}", node
            )
        if len(op.body.outputs) < op.carried + op.states:
            raise self.fail(f"{len(op.body.outputs)} outputs for {op.carried} carried and {op.states} states", node)
        self.graph(op.body, op.arguments, f" of the region in {node.path or node.result}")
        made = {v.id: v.type for inner in op.body.nodes for v in inner.results}
        carried, captured, stacked, states = op.parts(list(zip(op.arguments, node.operands, strict=True)))
        for argument, value in (*carried, *captured):
            if made[argument] != value.type:
                raise self.fail(f"argument %{argument} is {made[argument]}, its operand {value.type}", node)
        for argument, value in (*stacked, *states):
            if not value.axes or made[argument] != unstack(value.type):
                raise self.fail(f"argument %{argument} is {made[argument]}, its stack {value.type}", node)
        written = op.body.outputs[len(op.body.outputs) - op.states :]
        for (argument, value), (_, new) in zip(states, written, strict=True):
            if stack(new.type, op.trips, op.axis) != value.type:
                raise self.fail(f"state %{argument} of {value.type} becomes {new.type}", node)
