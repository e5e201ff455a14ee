"""Differentiate: reverse-mode differentiation of a graph, by each op's own gradient program.

The result is a graph like any other: it is priced, partitioned and lowered by the same rules. Ids and names of the
forward part stay. A repeat becomes two: the forward one also stacks what its way back needs, and the backward one
runs from the last layer to the first. By default only the carried value that enters each trip is kept and the rest
of a layer is computed again (full rematerialisation); ``keep`` names values of the body that are stacked instead,
and the pass prunes what then need not be computed again. A rematerialise policy is nothing but such a function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

from compiler.errors import Problem, SpecError, nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.ops.control import Repeat, stack
from compiler.ops.leaves import Argument, Leaf, Parameter
from compiler.ops.shape import zeros
from compiler.passes.prune import prune

Keep = Callable[[Repeat], Collection[int]]  # ids of the body's values that the forward repeat stacks


def recompute(op: Repeat) -> Collection[int]:
    """Keeps nothing but what enters each trip: full rematerialisation."""
    return ()


def keep_all(op: Repeat) -> Collection[int]:
    """Keeps every value of the body: no rematerialisation."""
    return {v.id for n in op.body.nodes if not isinstance(n.op, (Leaf, Repeat)) for v in n.results}


def differentiate(graph: Graph, loss: str = "loss", wrt: Iterable[str] | None = None, keep: Keep = recompute) -> Graph:
    """The graph with an output ``gradient:<label>`` for each trainable parameter in ``wrt`` (default: all): the
    derivative of the scalar output ``loss``, typed as the parameter. Frozen parameters get none."""
    wanted = parameters(graph, loss, wrt)
    b = extend(graph)
    active = {v.id for v in wanted.values()}
    spread(graph.nodes, active)
    back = Backward(b, active, keep)
    with b.at("gradient"):
        back.add(graph.output(loss), b.constant(1.0, graph.output(loss).type.dtype))
    back.walk(graph.nodes)
    with b.at("gradient"):
        found = [(f"gradient:{label}", back.grads.get(v.id) or zeros(b, v.type)) for label, v in wanted.items()]
    return prune(b.finish([*graph.outputs, *found]))


def parameters(graph: Graph, loss: str = "loss", wrt: Iterable[str] | None = None) -> dict[str, Value]:
    """The parameters that get a gradient, by label. Raises SpecError for a loss or a parameter that does not exist."""
    outputs = dict(graph.outputs)
    if loss not in outputs:
        raise SpecError(
            Problem("unknown-name", f"no output is called {loss}", None, tuple(outputs), nearest(loss, outputs))
        )
    if outputs[loss].axes:
        raise SpecError(Problem("not-a-number", f"{loss} is {outputs[loss].type}: only a single number has gradients"))
    leaves = {n.op.label: n for n in graph.nodes if isinstance(n.op, Parameter)}
    for label in wrt or ():
        if label not in leaves:
            raise SpecError(
                Problem("unknown-name", f"no parameter is called {label}", None, tuple(leaves), nearest(label, leaves))
            )
    return {
        label: node.result
        for label, node in leaves.items()
        if node.op.trainable and (wrt is None or label in set(wrt))  # type: ignore[attr-defined]
    }


def extend(graph: Graph) -> Builder:
    """A builder that goes on where a graph ends; ids and names stay."""
    b = Builder(first_id=last_id(graph) + 1)
    b.nodes, b.names = list(graph.nodes), dict(graph.names)
    b.known = {v.id for n in graph.nodes for v in n.results}
    return b


def last_id(graph: Graph) -> int:
    ids = [v.id for n in graph.nodes for v in n.results]
    return max([-1, *ids, *(last_id(n.op.region) for n in graph.nodes if n.op.region is not None)])


def is_float(v: Value) -> bool:
    return v.type.dtype.startswith(("float", "bfloat"))


def spread(nodes: Sequence[Node], active: set[int]) -> None:
    """Adds to ``active`` every number that depends on an active one, regions included."""
    for node in nodes:
        if isinstance(node.op, Repeat):
            op, outs = node.op, [v.id for _, v in node.op.body.outputs]
            active.update(a for a, v in zip(op.arguments, node.operands, strict=True) if v.id in active)
            while True:  # what is carried is active as soon as one trip makes it so
                spread(op.body.nodes, active)
                fresh = {a for a, out in zip(op.arguments[: op.carried], outs, strict=False) if out in active} - active
                active |= fresh
                if not fresh:
                    break
            active.update(r.id for r, out in zip(node.results, outs, strict=True) if out in active)
        elif any(v.id in active for v in node.operands):
            active.update(v.id for v in node.results if is_float(v))


class Backward:
    """Walks nodes from last to first and adds up cotangents, building their programs with ``b``."""

    def __init__(self, b: Builder, active: set[int], keep: Keep) -> None:
        self.b, self.active, self.keep = b, active, keep
        self.grads: dict[int, Value] = {}

    def add(self, value: Value, g: Value) -> None:
        """One more cotangent of a value, in the value's own type."""
        if value.id not in self.active:
            return
        g = self.b.cast(self.b.arrange(g, value.axes), value.type.dtype)
        if g.type != value.type:
            raise AssertionError(f"{self.b.path}: a cotangent of {value.type} is {g.type}")
        known = self.grads.get(value.id)
        self.grads[value.id] = g if known is None else self.b.add(known, g)

    def walk(self, nodes: Sequence[Node]) -> None:
        b = self.b
        for node in reversed(nodes):
            grads = [self.grads.get(v.id) for v in node.results]
            if all(g is None for g in grads) or not any(v.id in self.active for v in node.operands):
                continue
            saved, (b.path, b.position) = (b.path, b.position), (node.path, node.position)
            found = self.operand_grads(node, grads)
            for value, g in zip(node.operands, found, strict=True):
                if g is not None:
                    self.add(value, g)
            b.path, b.position = saved

    def operand_grads(self, node: Node, grads: Sequence[Value | None]) -> Sequence[Value | None]:
        if isinstance(node.op, Repeat):
            return self.repeat(node.op, node.operands, node.results, grads)
        if not node.op.differentiable:
            problem = Problem("no-gradient", f"{node.path}: {node.op.name} has no gradient", node.position)
            raise SpecError(problem)
        return node.op.gradient(self.b, node.operands, node.results, grads)

    # -- repeats
    def repeat(
        self, op: Repeat, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> list[Value | None]:
        """The backward repeat: cotangents are carried from the last trip to the first, those of stacks come out as
        stacks, those of captured values as a sum carried along."""
        if op.states:
            raise SpecError(Problem("no-gradient", f"{self.b.path}: a repeat that writes state has no gradient"))
        b, inside = self.b, {v.id: v for n in op.body.nodes for v in n.results}
        carried, captured, stacked, _ = op.parts(list(zip(op.arguments, ins, strict=True)))
        chosen = set(self.keep(op))
        kept = [v for i, v in inside.items() if i in chosen and i not in op.arguments]
        stacks = self.save(op, outs, [*(inside[a] for a, _ in carried), *kept])

        region = Region(b, op.trips, op.axis, not op.reverse, op.parallel)
        inner = Backward(region, set(), self.keep)
        moving = [i for i, (a, _) in enumerate(carried) if a in self.active]
        cotangents = [region.carry(grads[i] or zeros(b, carried[i][1].type)) for i in moving]
        replay = Replay(region)
        entering = dict(zip((a for a, _ in carried), stacks, strict=False))
        replay.map |= {a: region.stacked(s) for a, s in (*entering.items(), *stacked)}
        replay.map |= dict(captured)
        held = {v.id: region.stacked(s) for v, s in zip(kept, stacks[len(carried) :], strict=True)}

        wanted = [a for a, v in (*carried, *captured, *stacked) if a in self.active and is_float(v)]
        inner.active = {region.use(replay.map[a]).id for a in wanted}
        nodes = self.replay(op, replay, held, region)
        spread(nodes, inner.active)
        results = [replay.map[v.id] for _, v in op.body.outputs]
        for i, cotangent in zip(moving, cotangents, strict=True):
            inner.add(region.use(results[i]), cotangent)
        for value, y in zip(results[op.carried :], grads[op.carried :], strict=True):
            if y is not None:
                inner.add(region.use(value), region.stacked(y))
        inner.walk(nodes)

        def gradient(argument: int) -> Value | None:
            return inner.grads.get(region.use(replay.map[argument]).id)

        after = [gradient(carried[i][0]) or zeros(region, carried[i][1].type) for i in moving]
        summed = [(i, v, g) for i, (a, v) in enumerate(captured) if a in self.active and (g := gradient(a))]
        for _, v, g in [] if op.parallel else summed:  # in float32: as many terms as layers
            total = region.carry(zeros(b, v.type.with_dtype(_wide(v.type.dtype))))
            after.append(region.add(total, region.cast(g, total.type.dtype)))
        pieces = [(i, g) for i, (a, _) in enumerate(stacked) if a in self.active and (g := gradient(a))]
        terms = [(f"term{i}", g) for i, _, g in summed] if op.parallel else []
        ends, slices, _ = region.close(after, [*((f"gradient{i}", g) for i, g in pieces), *terms])

        found: list[Value | None] = [None] * len(ins)
        for i, end in zip(moving, ends, strict=False):
            found[i] = end
        totals = [b.reduce(t, "sum", (op.axis,)) for t in slices[len(pieces) :]] if op.parallel else ends[len(moving) :]
        for (i, v, _), total in zip(summed, totals, strict=True):
            found[op.carried + i] = b.cast(total, v.type.dtype)
        for (i, _), piece in zip(pieces, slices, strict=False):
            found[op.carried + op.captured + i] = piece
        return found

    def save(self, op: Repeat, outs: Sequence[Value], values: Sequence[Value]) -> list[Value]:
        """Rewrites the forward repeat so that it stacks further values of its body; gives the stacks."""
        b = self.b
        at = next(i for i, n in enumerate(b.nodes) if n.results[: len(outs)] == tuple(outs))
        node = b.nodes[at]
        named = [(f"saved{i}", v) for i, v in enumerate(values)]
        body = dataclasses.replace(op.body, outputs=(*op.body.outputs, *named))
        made = tuple(Value(next(b._ids), stack(v.type, op.trips, op.axis)) for v in values)
        b.nodes[at] = dataclasses.replace(node, op=dataclasses.replace(op, body=body), results=(*node.results, *made))
        b.known.update(v.id for v in made)
        return list(made)

    def replay(self, op: Repeat, replay: Replay, held: dict[int, Value], region: Region) -> list[Node]:
        """The body once more, in the backward region. A node whose results were kept is not run again: it only
        stands in the list that is walked."""
        nodes: list[Node] = []
        for node in op.body.nodes:
            if isinstance(node.op, Argument):
                continue
            if all(v.id in held for v in node.results):
                ins = tuple(region.use(replay.map[v.id]) for v in node.operands)
                results = tuple(held[v.id] for v in node.results)
                replay.map.update((old.id, new) for old, new in zip(node.results, results, strict=True))
                nodes.append(dataclasses.replace(node, operands=ins, results=results))
                continue
            start = len(region.nodes)
            replay.node(node)
            nodes += region.nodes[start:]
        return nodes


def _wide(dtype: str) -> str:
    return dtype if dtype == "float64" else "float32"


def repeat_gradient(
    op: Repeat, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
) -> tuple[Value | None, ...]:
    """The gradient of a repeat with full rematerialisation, all floating operands taken as wanted."""
    active = {a for a, v in zip(op.arguments, ins, strict=True) if is_float(v)}
    spread(op.body.nodes, active)
    return tuple(Backward(b, active, recompute).repeat(op, ins, outs, grads))
