"""Partition: axis names go to mesh axes; every value gets a placement and every collective becomes a node.

The rule of each op is its ``role`` for each sharded axis. This first version is greedy: what is partial is completed
where it is made, what must be whole is gathered where it is used, and a value is sharded whenever its axes are asked
to be. Choosing the cheapest placement, and attention or recurrences over a sharded sequence, come on top of this form.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.errors import Position, Problem, SpecError, nearest
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.ops.collective import AllGather, AllReduce, OwnShard
from compiler.ops.contract import Role
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Map
from compiler.ops.leaves import Constant, Leaf
from compiler.passes.prune import prune

Placement = Mapping[str, str]  # axis -> mesh axis; an axis that is not there is whole on every shard


@dataclass(frozen=True)
class Partitioned:
    """A graph whose values are placed: ``placements`` by value id, regions included. Types stay those of the whole."""

    graph: Graph
    placements: Mapping[int, Placement]
    axes: Mapping[str, str]
    mesh: Mapping[str, int]

    def of(self, value: Value) -> Placement:
        return self.placements.get(value.id, {})

    def __str__(self) -> str:
        """The graph's text, each sharded axis with its mesh axis: ``mlp=16/model``."""

        def placed(found: re.Match[str]) -> str:
            over = self.placements.get(int(found[1]), {})
            each = re.compile(r"(\w+)=[^=\]]*?(?= \w+=|$)")
            axes = each.sub(lambda a: f"{a[0]}/{over[a[1]]}" if a[1] in over else a[0], found[3])
            return f"%{found[1]}: {found[2]}[{axes}]"

        return re.sub(r"%(\d+): (\w+)\[([^\]]*)\]", placed, str(self.graph))


def partition(graph: Graph, axes: Mapping[str, str], mesh: Mapping[str, int]) -> Partitioned:
    """Shards every value that has an axis in ``axes`` (axis name -> mesh axis) over ``mesh`` (mesh axis -> size).
    Raises SpecError naming the axis, the numbers and what would fit."""
    _check_names(graph, axes, mesh)
    pass_ = Partition({a: m for a, m in axes.items() if mesh[m] > 1}, mesh)
    made = prune(pass_.run(graph))
    return Partitioned(made, pass_.place, dict(axes), dict(mesh))


def check_sizes(made: Partitioned, sizes: Mapping[str, int]) -> None:
    """Divisibility of the axes whose sizes are known only now (batch, lengths). Raises SpecError."""
    for node in made.graph.nodes:
        for value in node.results:
            for axis, mesh_axis in made.of(value).items():
                _check_divides(axis, int(value.type.size(axis).evaluate(sizes)), mesh_axis, made.mesh[mesh_axis], node)


def _check_names(graph: Graph, axes: Mapping[str, str], mesh: Mapping[str, int]) -> None:
    known = sorted({a for n, _ in graph.walk() for v in n.results for a in v.axes})
    for axis, mesh_axis in axes.items():
        if axis not in known:
            problem = Problem("unknown-axis", f"no axis is called {axis}", None, tuple(known), nearest(axis, known))
            raise SpecError(problem)
        if mesh_axis not in mesh:
            message = f"{axis} goes to {mesh_axis}, which is no axis of the mesh"
            raise SpecError(Problem("unknown-mesh-axis", message, None, tuple(mesh), nearest(mesh_axis, mesh)))


def _check_divides(axis: str, size: int, mesh_axis: str, shards: int, node: Node | None) -> None:
    if size % shards == 0:
        return
    fitting = [n for n in range(1, size + 1) if size % n == 0]
    near = sorted({max(n for n in fitting if n <= shards), min((n for n in fitting if n > shards), default=size)})
    message = f"{axis} = {size} does not divide by mesh axis {mesh_axis} = {shards}"
    where: Position | None = None
    if node is not None:
        message, where = f"{node.path or node.op.text()}: {message}", node.position
    raise SpecError(Problem("indivisible", message, where, tuple(f"{mesh_axis}={n}" for n in near)))


def _uses(graph: Graph) -> Counter[int]:
    uses = Counter(v.id for node in graph.nodes for v in node.operands) + Counter(v.id for _, v in graph.outputs)
    for node in graph.nodes:
        if node.op.region is not None:
            uses += _uses(node.op.region)
    return uses


class Partition(Replay):
    """``place`` holds the placement of each value of the new graph."""

    def __init__(self, axes: Mapping[str, str], mesh: Mapping[str, int]) -> None:
        super().__init__()
        self.axes, self.mesh = axes, mesh
        self.place: dict[int, dict[str, str]] = {}
        self.leaving: list[list[dict[str, str]]] = []  # placements of the outputs of the regions just replayed
        self.partial: dict[int, tuple[Value, tuple[AllReduce, ...]]] = {}  # completed values as they were before
        self.uses: Counter[int] = Counter()  # of the old graph's values

    # -- placements
    def given(self, value: Value) -> dict[str, str]:
        return {a: self.axes[a] for a in value.axes if a in self.axes}

    def put(self, value: Value, placement: Mapping[str, str], node: Node) -> None:
        """Records a placement that is legal: no mesh axis twice, every axis divided without a rest."""
        by_mesh: dict[str, str] = {}
        for axis, mesh_axis in placement.items():
            if mesh_axis in by_mesh:
                label = getattr(node.op, "label", "") or node.path or node.op.text()
                message = f"{label}: {by_mesh[mesh_axis]} and {axis} of {value.type} both go to mesh axis {mesh_axis}"
                raise SpecError(Problem("mesh-axis-twice", message, node.position, tuple(self.mesh)))
            by_mesh[mesh_axis] = axis
            size = value.type.size(axis)
            if size.is_constant:
                _check_divides(axis, int(size.constant), mesh_axis, self.mesh[mesh_axis], node)
        self.place[value.id] = dict(placement)

    def lacks(self, value: Value, axis: str) -> bool:
        """Whether the value has the axis, whole on every shard."""
        return axis in value.axes and axis not in self.place[value.id]

    def gather(self, value: Value, axis: str) -> Value:
        made = self.b.one(AllGather(self.place[value.id][axis], axis), value)
        self.place[made.id] = {a: m for a, m in self.place[value.id].items() if a != axis}
        return made

    def own(self, value: Value, axis: str, mesh_axis: str, node: Node) -> Value:
        made = self.b.one(OwnShard(mesh_axis, axis), value)
        self.put(made, {**self.place[value.id], axis: mesh_axis}, node)
        return made

    def match(self, value: Value, placement: Mapping[str, str], node: Node) -> Value:
        """The value placed as asked."""
        for axis in [a for a, m in self.place[value.id].items() if placement.get(a) != m]:
            value = self.gather(value, axis)
        for axis, mesh_axis in placement.items():
            if axis not in self.place[value.id]:
                value = self.own(value, axis, mesh_axis, node)
        return value

    # -- nodes
    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        if isinstance(node.op, Repeat):
            return None
        if isinstance(node.op, Leaf):
            (made,) = self.b.append(node.op, (), tuple(v.type for v in node.results))
            self.put(made, {} if isinstance(node.op, Constant) else self.given(made), node)
            return (made,)
        added = self.add_before_reducing(node, ins)
        if added is not None:
            return added
        op, types = node.op, [v.type for v in ins]
        outs = [v.type for v in node.results]
        ins, sharded, completed = list(ins), {}, []
        for axis, mesh_axis in self.present(node, ins).items():
            role = op.role(axis, types, outs)
            if role in (Role.RING, Role.CARRY):
                message = f"{node.path or op.name}: cannot shard {axis} here yet ({op.name})"
                raise SpecError(Problem("cannot-shard", message, node.position))
            if role is Role.WHOLE:
                ins = [self.gather(v, axis) if axis in self.place[v.id] else v for v in ins]
                continue
            ins = [self.own(v, axis, mesh_axis, node) if self.lacks(v, axis) else v for v in ins]
            sharded[axis] = mesh_axis
            if role is Role.LOOKUP:
                op = dataclasses.replace(op, shard=mesh_axis)  # type: ignore[call-arg]
            if role in (Role.SUM, Role.LOOKUP):
                completed.append((axis, mesh_axis, op.partial() if role is Role.SUM else "sum"))
        reason = op.conflict(sharded, types)
        if reason is not None:
            raise SpecError(Problem("cannot-shard", f"{node.path or op.name}: {reason}", node.position))
        return self.complete(node, self.b.apply(op, *ins), sharded, completed)

    def present(self, node: Node, ins: Sequence[Value]) -> dict[str, str]:
        """Sharded axes of the operands, and axes that the op makes anew and that are to be sharded."""
        found: dict[str, str] = {}
        for value in ins:
            for axis, mesh_axis in self.place[value.id].items():
                if found.setdefault(axis, mesh_axis) != mesh_axis:
                    message = f"{node.path}: {axis} is sharded over {found[axis]} and over {mesh_axis}"
                    raise SpecError(Problem("cannot-shard", message, node.position))
        old = {a for v in ins for a in v.axes} | set(node.op.follows().values())
        for value in node.results:
            found |= {a: m for a, m in self.given(value).items() if a not in old}
        return found

    def complete(
        self, node: Node, made: Sequence[Value], sharded: Mapping[str, str], completed: Sequence[tuple[str, str, str]]
    ) -> list[Value]:
        """Places the results; those that lack a contracted axis are partial and get an all-reduce."""
        follows, results = node.op.follows(), []
        for value in made:
            placement = {follows.get(a, a): m for a, m in sharded.items() if follows.get(a, a) in value.axes}
            self.put(value, placement, node)
            missing = [AllReduce(m, kind) for axis, m, kind in completed if axis not in value.axes]
            results.append(self.reduce(value, missing))
        return results

    def reduce(self, value: Value, ops: Sequence[AllReduce]) -> Value:
        """A partial value completed."""
        whole = value
        for op in ops:
            whole = self.b.one(op, whole)
            self.place[whole.id] = self.place[value.id]
        if ops:
            self.partial[whole.id] = (value, tuple(ops))
        return whole

    def add_before_reducing(self, node: Node, ins: Sequence[Value]) -> list[Value] | None:
        """The sum of two values that were completed alike and are used only here: added first, completed once."""
        found = [self.partial.get(v.id) for v in ins]
        if not isinstance(node.op, Map) or node.op.fn != "add" or any(self.uses[v.id] > 1 for v in node.operands):
            return None
        if None in found or ins[0].type != ins[1].type or self.place[ins[0].id] != self.place[ins[1].id]:
            return None
        (x, ops), (y, others) = found  # type: ignore[misc]
        if ops != others or any(op.kind != "sum" for op in ops) or not {x.id, y.id} <= self.b.known:
            return None
        made = self.b.one(node.op, x, y)
        self.place[made.id] = self.place[x.id]
        return [self.reduce(made, ops)]

    def run(self, graph: Graph) -> Graph:
        self.uses = _uses(graph)
        return super().run(graph)

    # -- repeats
    def repeat(self, op: Repeat, ins: Sequence[Value]) -> list[Value]:
        if op.axis in self.axes:
            raise SpecError(Problem("cannot-shard", f"{self.b.path}: cannot shard {op.axis} here yet (repeat)"))
        results = super().repeat(op, ins)
        for value, placement in zip(results, self.leaving.pop(), strict=True):
            self.place[value.id] = placement
        return results

    def region_opened(self, region: Region) -> None:
        for value, argument in (*region._carried, *region._stacked, *region._states):
            self.place[argument.id] = dict(self.place[value.id])

    def region_outputs(self, region: Region, op: Repeat, outs: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
        entered = [argument for _, argument in region._carried]
        leaving = [argument for _, argument in region._states]
        wanted = [self.place[v.id] for v in entered]
        states = [self.place[v.id] for v in leaving]
        placed = []
        for i, (name, value) in enumerate(outs):
            node = Node(op, (), (value,), self.b.path, self.b.position)
            if i < op.carried:
                value = self.match(value, wanted[i], node)
            elif i >= len(outs) - op.states:
                value = self.match(value, states[i - len(outs) + op.states], node)
            placed.append((name, value))
        self.leaving.append([self.place[v.id] for _, v in placed])
        return placed

    def region_closing(self, region: Region) -> list[tuple[str, Value]]:
        for value in region.capture_order:
            self.place[region.captured[value.id].id] = self.place[value.id]
        return []
