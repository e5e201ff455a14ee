"""Rematerialise: which values of a repeated body are kept for the way back, and which are computed again.

Each policy is a function of a repeat that says what its forward pass stacks (``differentiate.Keep``); it changes
memory and time, never a number. What enters each trip is always kept. A repeat of one trip keeps everything: XLA makes
straight code of it and merges what would be computed again with what was computed.

- ``none``: everything is kept; nothing is computed again
- ``full``: nothing is kept but what enters (Chen et al., arXiv:1604.06174, section 4)
- ``dots``: results of matrix products, attention among them, are kept
- ``names``: what the named blocks hand on is kept
- ``auto``: under a limit of bytes, what saves the most recomputed FLOPs for its bytes
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.errors import Problem, SpecError, nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.ops.contract import Cost
from compiler.ops.control import Repeat, stack
from compiler.ops.leaves import Input, Leaf
from compiler.passes.differentiate import Backward, Keep, is_float, keep_all, last_id, recompute, spread
from compiler.passes.loss import CHUNKS
from compiler.passes.micro import STAGES, TICKS
from compiler.passes.prune import prune

POLICIES = ("none", "full", "dots", "names", "auto")
AGAIN = (CHUNKS, TICKS, STAGES)  # of these repeats nothing is kept but what enters; inside them a policy holds again
Shards = Callable[[Value], int]  # over how many devices a value is divided


@dataclass(frozen=True)
class Rematerialise:
    """A policy by name. ``names``: of blocks ("attention", "layer.mlp"); ``limit``: bytes on each device that all
    kept values may take together; ``shards``: over how many devices a value is divided."""

    policy: str = "full"
    names: tuple[str, ...] = ()
    limit: float | None = None
    shards: Shards = lambda value: 1

    def keep(self, graph: Graph, sizes: Mapping[str, int]) -> Keep:
        """What the repeats of a forward graph keep. Raises SpecError for what does not exist."""
        policy = self._policy(graph, sizes)
        return lambda op: keep_all(op) if _straight(op) else policy(op)

    def _policy(self, graph: Graph, sizes: Mapping[str, int]) -> Keep:
        if self.policy == "auto":
            if self.limit is None:
                raise SpecError(Problem("missing-key", "the policy auto needs a limit of bytes", None, ("limit",)))
            return auto(graph, sizes, self.limit, self.shards)
        if self.policy == "names":
            _check_names(graph, self.names)
            return keep_names(self.names)
        simple: dict[str, Keep] = {"none": keep_everything, "full": recompute, "dots": keep_dots}
        if self.policy not in simple:
            message = f"no rematerialise policy is called {self.policy}"
            raise SpecError(Problem("unknown-name", message, None, POLICIES, nearest(self.policy, POLICIES)))
        return simple[self.policy]


def _straight(op: Repeat) -> bool:
    return op.trips == 1 and op.axis not in AGAIN


def keep_everything(op: Repeat) -> Collection[int]:
    """Every value, except the logits of a chunk: that repeat is there to have none of them at once."""
    return () if op.axis in AGAIN else keep_all(op)


def keep_dots(op: Repeat) -> Collection[int]:
    """Results of nodes that compute matrix products."""
    if op.axis in AGAIN:
        return ()
    return {v.id for n in _computed(op) if _cost(n).matrix != 0 for v in n.results}


def keep_names(names: Sequence[str]) -> Keep:
    """What blocks of these names hand on: values made inside one and read outside, or by the next trip."""

    def keep(op: Repeat) -> Collection[int]:
        if op.axis in AGAIN:
            return ()
        inside = {v.id: block for n in _computed(op) if (block := _block(n.path, names)) for v in n.results}
        uses = [(v.id, _block(n.path, names)) for n in op.body.nodes for v in n.operands]
        uses += [(v.id, "") for _, v in op.body.outputs]
        return {value for value, block in uses if value in inside and inside[value] != block}

    return keep


def _block(path: str, names: Sequence[str]) -> str:
    """The outermost block around a node that has one of the names; "" for none."""
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        head = ".".join(parts[:end])
        if any(head == name or head.endswith(f".{name}") for name in names):
            return head
    return ""


def _check_names(graph: Graph, names: Sequence[str]) -> None:
    paths = {n.path for op in repeats(graph) for n in op.body.nodes if n.path}
    known = sorted({part for path in paths for part in (path, *path.split("."))})
    for name in names:
        if not any(_block(path, [name]) for path in paths):
            message = f"no block inside a repeat is called {name}"
            raise SpecError(Problem("unknown-name", message, None, tuple(known), nearest(name, known)))


# -- auto
@dataclass
class _Body:
    """What ``auto`` knows of one repeat. Its computed nodes by their place in order: FLOPs of one run on one device,
    bytes of the stack; and which values the way back reads itself, and which places are kept."""

    nodes: list[Node]
    needed: set[int]
    flops: dict[int, float]
    bytes: dict[int, float]
    kept: set[int] = field(default_factory=set)

    def recomputed(self, kept: Collection[int]) -> float:
        """FLOPs of a trip's way back that compute values again."""
        wanted, total = set(self.needed), 0.0
        for place in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[place]
            inner = isinstance(node.op, Repeat)  # runs again in any case: its own way back needs its stacks
            if inner or (place not in kept and any(v.id in wanted for v in node.results)):
                total += self.flops.get(place, 0.0)
                wanted.update(v.id for v in node.operands)
        return total

    def gain(self, place: int) -> float:
        """Recomputed FLOPs saved for each byte, were this kept too."""
        saved = self.recomputed(self.kept) - self.recomputed(self.kept | {place})
        return saved / max(self.bytes[place], 1.0)


def auto(graph: Graph, sizes: Mapping[str, int], limit: float, shards: Shards = lambda value: 1) -> Keep:
    """Keeps, one after the other, the values that save the most recomputed FLOPs for each byte, while they and what
    enters the trips take ``limit`` bytes at most. ``sizes``: numbers of the symbols."""
    ops = [op for op in repeats(graph) if op.axis not in AGAIN and not _straight(op)]
    bodies = [_body(op, sizes, shards) for op in ops]
    alone = (_body(op, sizes, shards).bytes for op in repeats(graph) if _straight(op))
    room = limit - sum(_entering(op, sizes, shards) for op in ops) - sum(sum(b.values()) for b in alone)
    heap = [(-body.gain(place), i, place) for i, body in enumerate(bodies) for place in body.bytes]
    heapq.heapify(heap)
    while heap and heap[0][0] < 0:
        _, i, place = heapq.heappop(heap)
        if bodies[i].bytes[place] > room:
            continue
        gain = bodies[i].gain(place)  # less than it was, where what it stood for is kept by now
        if heap and -gain > heap[0][0]:
            heapq.heappush(heap, (-gain, i, place))
            continue
        bodies[i].kept.add(place)
        room -= bodies[i].bytes[place]
    chosen: dict[object, set[int]] = {}
    for op, body in zip(ops, bodies, strict=True):
        chosen.setdefault(_signature(op), set()).update(body.kept)

    def keep(op: Repeat) -> Collection[int]:
        places = chosen.get(_signature(op), set())
        return {v.id for place, n in enumerate(_computed(op)) if place in places for v in n.results}

    return keep


def _body(op: Repeat, sizes: Mapping[str, int], shards: Shards) -> _Body:
    nodes, flops, taken = _computed(op), {}, {}
    for place, node in enumerate(nodes):
        if isinstance(node.op, Repeat):
            continue
        cost = _cost(node)
        work = float((cost.matrix + cost.vector + cost.transcendental).evaluate(sizes))
        flops[place] = work / max(shards(v) for v in node.results)
        taken[place] = op.trips * sum(_bytes(v, sizes, shards) for v in node.results)
    return _Body(nodes, needed(op), flops, taken)


def _bytes(v: Value, sizes: Mapping[str, int], shards: Shards) -> float:
    return float(v.type.bytes.evaluate(sizes)) / shards(v)


def _entering(op: Repeat, sizes: Mapping[str, int], shards: Shards) -> float:
    """Bytes of what enters the trips, which is always kept."""
    carried = [_values(op)[a] for a in op.arguments[: op.carried]]
    return op.trips * sum(_bytes(v, sizes, shards) for v in carried)


def needed(op: Repeat) -> set[int]:
    """Values of the body that its gradient program reads itself, were all of them at hand."""
    b = Builder(first_id=last_id(op.body) + 1)
    made = _values(op)
    carried, captured, stacked, _ = op.parts([made[a].type for a in op.arguments])
    types = [*carried, *captured, *(stack(t, op.trips, op.axis) for t in stacked)]
    ins = [b.append(Input(f"x{i}"), (), (t,))[0] for i, t in enumerate(types)]
    outs = b.append(op, ins, op.infer(*types))
    active = {i for a, v in zip(op.arguments, ins, strict=True) if is_float(v) for i in (a, v.id)}
    spread(op.body.nodes, active)
    grads = [b.append(Input(f"g{i}"), (), (v.type,))[0] if is_float(v) else None for i, v in enumerate(outs)]
    found = Backward(b, active, keep_all).repeat(op, ins, outs, grads)
    graph = prune(b.finish([(f"d{i}", g) for i, g in enumerate(found) if g is not None]))
    bodies = [n.op.body for n in graph.nodes if isinstance(n.op, Repeat)]
    return {v.id for body in bodies for name, v in body.outputs if name.startswith("saved")}


# -- repeats
def repeats(graph: Graph) -> Iterator[Repeat]:
    """Every repeat, outer ones before those inside."""
    for node in graph.nodes:
        if isinstance(node.op, Repeat):
            yield node.op
            yield from repeats(node.op.body)


def _computed(op: Repeat) -> list[Node]:
    return [n for n in op.body.nodes if not isinstance(n.op, Leaf)]


def _values(op: Repeat) -> dict[int, Value]:
    return {v.id: v for n in op.body.nodes for v in n.results}


def _signature(op: Repeat) -> object:
    """What a repeat and its replay inside another's way back have in common."""
    return op.axis, op.trips, tuple((n.op.name, n.path, tuple(v.type for v in n.results)) for n in _computed(op))


def _cost(node: Node) -> Cost:
    return node.op.cost([v.type for v in node.operands], [v.type for v in node.results])
