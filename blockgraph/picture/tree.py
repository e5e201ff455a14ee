"""From the op graph to a tree of boxes: nodes are grouped by path down to the deepest block.

Ops that stand between blocks (the add of a residual, the product of two branches, an activation in a chain) become
joins and functions; casts and renames between blocks are seen through. A path that comes back after another block
was visited is the next layer of a repeat that was written out, or the next part of a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blockgraph.picture.items import BOX, GROUP, INPUT, JOIN, OUTPUT, PILL, REPEAT, Edge, Item
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.types import TensorType
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Map
from compiler.ops.leaves import Constant, Input, Leaf, Parameter
from compiler.ops.shape import Concat

SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}


class Tree:
    """``root`` and ``edges`` of a graph. ``states``: what each node keeps, by its first result's number."""

    def __init__(
        self, graph: Graph, states: Mapping[int, list[tuple[str, TensorType]]], depth: int | None = None
    ) -> None:
        self.root, self.states, self.depth = Item(GROUP, ""), states, depth
        self.edges: list[Edge] = []
        self.source: dict[int, Item] = {}  # value -> the box that it comes from
        self.weights: dict[int, dict[str, Parameter]] = {}  # value -> parameters that it is made of
        self.numbers: dict[int, float] = {}  # value -> the constant that it is
        self.sizes: dict[str, int] = {}
        self.owner: dict[str, Item] = {}
        self.prefixes = _prefixes(node.path for node, _ in graph.walk())
        self.graph(graph, self.root, "")
        for name, value in graph.outputs:
            if value.id in self.source:
                out = self.root.add(Item(OUTPUT, name, type=value.type))
                self.edges.append(Edge(self.source[value.id], out, value.type))
        used = {e.source for e in self.edges}
        self.root.children = [c for c in self.root.children if c.kind != INPUT or c in used]

    def graph(self, graph: Graph, level: Item, base: str) -> None:
        for node in graph.nodes:
            if isinstance(node.op, Leaf):
                self.leaf(node)
            elif isinstance(node.op, Repeat):
                self.repeat(node, node.op, level, base)
            else:
                self.op(node, level, base)

    # -- the kinds of node
    def leaf(self, node: Node) -> None:
        if isinstance(node.op, Parameter):
            self.weights[node.result.id] = {node.op.label: node.op}
            self.sizes[node.op.label] = int(node.result.type.elements.constant)
        elif isinstance(node.op, Constant) and isinstance(node.op.values[0], float) and len(node.op.values) == 1:
            self.numbers[node.result.id] = node.op.values[0]
        elif isinstance(node.op, Input) and not node.op.label.endswith("_lengths"):
            self.source[node.result.id] = self.root.add(Item(INPUT, node.op.label, type=node.result.type))

    def repeat(self, node: Node, op: Repeat, level: Item, base: str) -> None:
        for argument, operand in zip(op.arguments, node.operands, strict=True):
            self.same(argument, operand)
        place = self.place(node, level, base)
        if place.kind == BOX:  # deeper than asked for: the box takes it all
            self.swallow(op.body, place)
        else:
            cluster = place.add(Item(REPEAT, "", node.path, times=op.trips, scan=True))
            self.graph(op.body, cluster, node.path)
        outs = [v for _, v in op.body.outputs]
        for result, out in zip(node.results, outs, strict=True):
            self.same(result.id, out)

    def swallow(self, graph: Graph, box: Item) -> None:
        for node in graph.nodes:
            if isinstance(node.op, Leaf):
                self.leaf(node)
            elif isinstance(node.op, Repeat):
                for argument, operand in zip(node.op.arguments, node.operands, strict=True):
                    self.same(argument, operand)
                self.swallow(node.op.body, box)
                for result, (_, out) in zip(node.results, node.op.body.outputs, strict=True):
                    self.same(result.id, out)
            else:
                self.into(node, box)

    def same(self, new: int, old: Value) -> None:
        if old.id in self.source:
            self.source[new] = self.source[old.id]
        if old.id in self.weights:
            self.weights[new] = self.weights[old.id]

    def op(self, node: Node, level: Item, base: str) -> None:
        place = self.place(node, level, base)
        if place.kind == BOX:
            self.into(node, place)
            return
        data = [v for v in node.operands if v.id in self.source]
        made = {k: p for v in node.operands for k, p in self.weights.get(v.id, {}).items()}
        if not data:  # made of weights and numbers alone
            for v in node.results:
                self.weights[v.id] = made
            return
        sources = list(dict.fromkeys(self.source[v.id] for v in data))
        if len(sources) > 1:
            self.join(node, place, data)
        elif isinstance(node.op, Map):
            self.into(node, place.add(Item(PILL, node.op.fn, node.path)))
        else:
            for v in node.results:
                self.source[v.id] = sources[0]

    def join(self, node: Node, place: Item, data: list[Value]) -> None:
        """Branches that meet; a sum of three is one join."""
        fn = node.op.fn if isinstance(node.op, Map) else node.op.name
        sign = SIGNS.get(fn, f"concat {node.op.axis}" if isinstance(node.op, Concat) else fn)
        before = self.source[data[0].id]
        again = before.kind == JOIN and before.parent is place and before.last == (sign, node.position)
        item = before if again else place.add(Item(JOIN, sign, node.path, last=(sign, node.position)))
        self.into(node, item, data[1:] if again else None)

    def into(self, node: Node, item: Item, data: list[Value] | None = None) -> None:
        """The node becomes part of a box: its operands from elsewhere are edges."""
        item.ops.append(node)
        item.states += self.states.get(node.results[0].id, [])
        for v in node.operands if data is None else data:
            if v.id in self.source and self.source[v.id] is not item:
                self.connect(self.source[v.id], item, v.type)
            for label, parameter in self.weights.get(v.id, {}).items():
                self.weigh(item, label, parameter)
        item.numbers |= {v.id: self.numbers[v.id] for v in node.operands if v.id in self.numbers}
        for v in node.results:
            self.source[v.id] = item

    def connect(self, source: Item, target: Item, t: TensorType) -> None:
        arriving = [e for e in self.edges if e.target is target]
        if not any(e.source is source and e.type.pairs == t.pairs for e in arriving):
            side = target.kind == BOX and any(e.source is not source for e in arriving)
            self.edges.append(Edge(source, target, t, side))

    def weigh(self, item: Item, label: str, parameter: Parameter) -> None:
        """The first box that uses a parameter owns it; others borrow it (tied, shared)."""
        if self.owner.setdefault(label, item) is item:
            item.weights[label] = self.sizes[label]
            item.frozen = not parameter.trainable
            item.stacks |= {parameter.stack} if parameter.stack else set()
        else:
            item.borrowed[label] = self.owner[label].path

    # -- where a node belongs
    def place(self, node: Node, level: Item, base: str) -> Item:
        """The box that holds the node, or the cluster in whose chain it stands."""
        parts, outer = node.path.split(".") if node.path else [], base.split(".") if base else []
        start = len(outer) if parts[: len(outer)] == outer else 0
        end = len(parts) if self.depth is None else min(len(parts), max(self.depth, start))
        if end <= start:
            return level
        key = (node.path, node.position)
        top = level.open.get(parts[start])
        if top is not None and key in top.seen and key != top.last:
            top = None
        here, chain = level, parts[start:end]
        for i, part in enumerate(chain):
            path = ".".join(parts[: start + i + 1])
            child = top if i == 0 else here.open.get(part)
            if child is None:
                group = path in self.prefixes and (self.depth is None or start + i + 1 < self.depth)
                child = here.open[part] = here.add(Item(GROUP if group else BOX, part, path))
            if i == 0:
                child.seen.add(key)
                child.last = key
            here = child
            if here.kind == BOX:
                break
        return here


def _prefixes(paths: Iterable[str]) -> frozenset[str]:
    found = set()
    for path in set(paths):
        parts = path.split(".")
        found |= {".".join(parts[:i]) for i in range(1, len(parts))}
    return frozenset(found)
