"""1F1B: the gradient of a pipeline with one forward and one backward in each tick.

The plain pipeline (compiler/passes/stages.py) runs all micro-batches forward before the first goes back, and keeps what
entered each stage for all of them. Here a micro-batch goes back as soon as it has left the last stage, so that a stage
keeps at most 2 x stages - 1 of them, however many the batch has (PipeDream-flush, arXiv:2006.09503; 1F1B in
arXiv:2104.04473). One program runs on all devices, so in every tick each stage runs its layers forward on one
micro-batch and backward on another: stage s has micro-batch t - s forward and t - 2 (stages - 1) + s backward. Of
micro-batches + 2 (stages - 1) ticks, 2 (stages - 1) are idle on each device: more than of the plain pipeline, of ticks
that cost as much.

A tick is: what comes before the layers, on the micro-batch that enters; the stages forward; what comes after the layers
with its gradient, on the micro-batch that left; the stages backward, from what each kept; the gradient of what comes
before the layers. Everything is replayed from the graph of one micro-batch and differentiated by the same rules as any
graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.errors import Problem, SpecError
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, Size
from compiler.graph.types import DTYPE_BITS, TensorType
from compiler.ops.control import Repeat
from compiler.ops.elementwise import widened
from compiler.ops.leaves import Input
from compiler.ops.lookup import Lookup, Put
from compiler.ops.recurrence import Shift
from compiler.ops.shape import Merge, Pad, Split, zeros
from compiler.passes.accumulate import WEIGHT
from compiler.passes.differentiate import Backward, Keep, is_float, parameters, recompute, spread
from compiler.passes.micro import STAGES, TICKS, Resized, micro_batches, micro_rows, numbers, resized, staged
from compiler.passes.prune import prune
from compiler.passes.stages import LAYERS, Stages, check, check_micro, pipelined

HELD = "held"  # what a stage keeps of the micro-batches between their forward and their backward


def one_f_one_b(
    graph: Graph,
    asked: Stages,
    sizes: Mapping[str, int],
    loss: str = "loss",
    wrt: Iterable[str] | None = None,
    keep: Keep = recompute,
) -> Graph:
    """The graph of loss, ``loss_weight`` and gradients (float32) of a batch, through one pipeline. Raises SpecError
    where there is none."""
    check_micro(asked, sizes)
    found = [n for n in graph.nodes if pipelined(n)]
    if len(found) != 1:
        message = f"1f1b takes a model with one stack of repeated layers, found {len(found)}"
        raise SpecError(Problem("cannot-pipeline", message, None, (), "--schedule gpipe takes several"))
    (node,) = found
    assert isinstance(node.op, Repeat)
    check(node, node.op, node.operands, asked)
    if asked.rounds != 1:
        raise SpecError(Problem("cannot-pipeline", "1f1b passes the stages once: a circular pipeline is no 1f1b"))
    return prune(_Schedule(graph, node, node.op, asked, parameters(graph, loss, wrt), keep).run(loss))


@dataclass
class _Tick:
    """The region of one tick, and what it carries."""

    region: Region
    outer: Builder
    ends: list[Value] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def carry(self, t: TensorType, label: str = "") -> tuple[int, Value]:
        """A value that begins as zeros, and its number, under which ``ends`` gets what it becomes."""
        before = self.region.carry(zeros(self.outer, t))
        self.ends.append(before)
        self.labels.append(label)
        return len(self.ends) - 1, before

    def add(self, label: str, term: Value) -> None:
        """One more term of a sum over ticks, in float32 or wider."""
        t, r = term.type, self.region
        if label not in self.labels:
            wide = t if DTYPE_BITS[t.dtype] >= DTYPE_BITS["float32"] else t.with_dtype("float32")
            self.carry(wide, label)
        at = self.labels.index(label)
        self.ends[at] = r.add(self.ends[at], r.arrange(widened(r, term, self.ends[at].type.dtype), self.ends[at].axes))


class _Schedule:
    def __init__(
        self, graph: Graph, node: Node, op: Repeat, asked: Stages, wanted: Mapping[str, Value], keep: Keep
    ) -> None:
        self.graph, self.node, self.op, self.asked, self.wanted, self.keep = graph, node, op, asked, wanted, keep
        self.b, self.last = Builder(), asked.stages - 1
        self.env = {"batch": BATCH // asked.micro}
        self.known: dict[int, Value] = {}  # of the old graph: what no micro-batch changes, as made outside the ticks
        self.inputs: dict[int, Value] = {}  # of the old graph: micro-batches [ticks, …], not yet padded
        self.active = {v.id for v in wanted.values()}
        spread(graph.nodes, self.active)
        carried, captured, self.stacked, _ = op.parts(list(zip(op.arguments, node.operands, strict=True)))
        self.carried = len(carried)
        self.flowing = [*carried, *((a, v) for a, v in captured if "batch" in v.axes)]
        self.shared = [(a, v) for a, v in captured if "batch" not in v.axes]
        self.once: list[Node] = []  # nodes that do not depend on rows, before the layers, behind them
        self.before: list[Node] = []
        self.behind: list[Node] = []
        rows: set[int] = set()
        after: set[int] = set()
        for n in graph.nodes:
            if n is node or any(v.id in after for v in n.operands):
                after.update(v.id for v in n.results)
                self.behind += [] if n is node else [n]
            elif any(v.id in rows for v in n.operands) or self.has_rows(n):
                rows.update(v.id for v in n.results)
                self.before.append(n)
            else:
                self.once.append(n)
        known = {v.id for n in self.once for v in n.results}
        read = {v.id for n in (*self.before, node, *self.behind) for v in n.operands}
        self.sources = sorted(known & read & self.active)  # what ticks give gradients of

    def has_rows(self, node: Node) -> bool:
        """Whether a node names the batch, in its types or itself."""
        sizes = [s for v in node.results for s in v.type.sizes]
        return any("batch" in s.symbols for s in sizes) or resized(node.op, self.env) != node.op

    # -- outside the ticks
    def run(self, loss: str) -> Graph:
        b, asked, last = self.b, self.asked, self.last
        whole, start = Replay(b), len(b.nodes)
        for n in self.once:
            whole.node(n)
        once = b.nodes[start:]
        self.known = dict(whole.map)
        counted = self.graph.output(WEIGHT)
        for n in prune(dataclasses.replace(self.graph, outputs=((WEIGHT, counted),))).nodes:
            if n.results[0].id not in whole.map:
                whole.node(n)
        for n in self.before:
            if isinstance(n.op, Input):
                if n.result.id not in whole.map:
                    whole.node(n)
                with b.at("pipeline"):
                    parts = micro_batches(b, whole.map[n.result.id], asked.micro)
                    self.inputs[n.result.id] = b.rename(parts, micro=TICKS)
        self.known[counted.id] = whole.map[counted.id]  # the loss of each micro-batch divides by the whole's number
        with b.at("pipeline"):
            per = (Size.of(asked.stages), Size.of(self.op.trips // asked.stages))
            split = Split(LAYERS, (STAGES, LAYERS), per)
            weights = [(a, b.one(split, self.known[v.id])) for a, v in self.stacked]
            cells = [(t, s) for t in range(asked.ticks) for s in range(asked.stages)]
            reads = numbers(b, [(t - 2 * (last - s)) % self.slots for t, s in cells], TICKS, "int32")
            reads = b.one(Split(TICKS, (TICKS, STAGES), (Size.of(asked.ticks), Size.of(asked.stages))), reads)
            writes = numbers(b, [t % self.slots for t in range(asked.ticks)], TICKS, "int32")
            valid = numbers(b, [float(last <= t < last + asked.micro) for t in range(asked.ticks)], TICKS, "float32")
            tick = _Tick(Region(b, asked.ticks, TICKS), b)
            self.tick(tick, weights, reads, writes, valid, loss)
            sums = dict(zip(tick.labels, tick.region.close(tick.ends)[0], strict=True))
        totals = [(name, sums[name]) for name, _ in self.graph.outputs if name != WEIGHT]
        found = [*totals, (WEIGHT, self.known[counted.id])]
        return b.finish([*found, *self.gradients(sums, once)])

    def gradients(self, sums: Mapping[str, Value], once: Sequence[Node]) -> list[tuple[str, Value]]:
        """Of the parameters, from the sums over ticks: those of values made of parameters go on to these."""
        b = self.b
        back = Backward(b, {self.known[i].id for i in self.active if i in self.known}, self.keep)
        direct: dict[int, list[Value]] = {}
        given = {v.id for v in self.wanted.values()}
        for i in self.sources:
            parts = [sums[str(i)]] if str(i) in sums else []
            if f"{STAGES}{i}" in sums:
                merged = b.one(Merge((STAGES, LAYERS), LAYERS), sums[f"{STAGES}{i}"])
                parts.append(b.arrange(merged, self.known[i].axes))
            if i in given:  # in float32, as it is
                direct[i] = parts
            else:
                for part in parts:
                    back.add(self.known[i], part)
        back.walk(once)
        found = []
        for label, v in self.wanted.items():
            terms, rest = direct.get(v.id, []), back.grads.get(self.known[v.id].id)
            if rest is not None:
                terms = [*terms, b.cast(rest, terms[0].type.dtype) if terms else rest]
            total = terms[0] if terms else zeros(b, v.type)
            for term in terms[1:]:
                total = b.add(total, term)
            found.append((f"gradient:{label}", total))
        return found

    @property
    def slots(self) -> int:
        return 2 * self.asked.stages - 1

    def delayed(self, late: int) -> dict[int, Value]:
        """Inputs [ticks, …], micro-batch m in tick m + late; zeros in other ticks."""
        rest = self.asked.ticks - self.asked.micro - late
        return {i: self.b.one(Pad(TICKS, Size.of(late), Size.of(rest)), v) for i, v in self.inputs.items()}

    # -- one tick
    def tick(
        self, tick: _Tick, weights: Sequence[tuple[int, Value]], reads: Value, writes: Value, valid: Value, loss: str
    ) -> None:
        r, asked, last = tick.region, self.asked, self.last
        types = [staged(micro_rows(v.type, asked.micro), asked.stages) for _, v in self.flowing]
        flows = [is_float(v) and (i < self.carried or v.id in self.active) for i, (_, v) in enumerate(self.flowing)]
        moving = [i for i, flow in enumerate(flows) if flow]
        forward = [tick.carry(t) for t in types]
        backward = {i: tick.carry(types[i]) for i in moving}
        kept = [tick.carry(TensorType.make([t.pairs[0], (HELD, self.slots), *t.pairs[1:]], t.dtype)) for t in types]
        first = numbers(r, [s == 0 for s in range(asked.stages)], STAGES, "bool")
        end = numbers(r, [s == last for s in range(asked.stages)], STAGES, "bool")

        # forward
        entering, _ = self.replay(r, self.before, self.delayed(0), {})
        taken, held, slot = [], [], r.stacked(writes)
        for (_, new), (_, old), (at, stack) in zip(self.flowing, forward, kept, strict=True):
            moved = r.one(Shift(STAGES, 1), old)
            x = r.arrange(r.select(first, entering[new.id], moved), old.axes)
            taken.append(x)
            tick.ends[at] = r.one(Put(HELD), stack, x, slot)
            held.append(tick.ends[at])
        made = self.stage(r, weights, taken)
        for i, (at, _) in enumerate(forward):
            tick.ends[at] = made[i] if i < self.carried else taken[i]

        # what comes after the layers, and its gradient
        left = [self.only(r, end, y) for y in made]
        extra = {v.id: y for v, y in zip(self.node.results, left, strict=True)}
        found, nodes = self.replay(r, [*self.before, *self.behind], self.delayed(last), extra)
        back = self.backward(r, nodes, left)
        share = r.stacked(valid)
        value = found[self.graph.output(loss).id]
        back.add(value, r.cast(share, value.type.dtype))
        back.walk(nodes)
        for name, v in self.graph.outputs:
            if name != WEIGHT:
                tick.add(name, r.mul(found[v.id], r.cast(share, v.type.dtype)))
        self.collect(tick, back)

        # backward
        cotangents = {}
        for i in moving:
            at, old = backward[i]
            moved = r.one(Shift(STAGES, -1), old)
            if i < self.carried:
                g = back.grads.get(left[i].id) or zeros(r, left[i].type)
                moved = r.arrange(r.select(end, g, moved), old.axes)
            cotangents[i] = moved
        for i, g in self.stage_back(tick, weights, held, cotangents, reads).items():
            tick.ends[backward[i][0]] = g

        # the gradient of what comes before the layers
        if any(self.flowing[i][1].id in self.active for i in moving):
            found, nodes = self.replay(r, self.before, self.delayed(2 * last), {})
            back = self.backward(r, nodes, ())
            for i in moving:
                back.add(found[self.flowing[i][1].id], self.only(r, first, tick.ends[backward[i][0]]))
            back.walk(nodes)
            self.collect(tick, back)

    def only(self, r: Region, stage: Value, x: Value) -> Value:
        """One stage's value, on all."""
        own = r.select(stage, x, r.constant(0.0, x.type.dtype))
        return r.reduce(r.arrange(own, x.axes), "sum", (STAGES,))

    def replay(
        self, r: Region, nodes: Sequence[Node], inputs: Mapping[int, Value], extra: Mapping[int, Value]
    ) -> tuple[dict[int, Value], list[Node]]:
        """Nodes of the old graph on one micro-batch: new values by old ids, and the nodes made."""
        made, start = Resized(self.env, r), len(r.nodes)
        made.map = {**self.known, **extra, **{i: r.stacked(v) for i, v in inputs.items()}}
        for n in nodes:
            if not all(v.id in made.map for v in n.results):
                made.node(n)
        return made.map, r.nodes[start:]

    def backward(self, r: Region, nodes: Sequence[Node], also: Iterable[Value]) -> Backward:
        active = {r.use(self.known[i]).id for i in self.sources} | {v.id for v in also if is_float(v)}
        spread(nodes, active)
        return Backward(r, active, self.keep)

    def collect(self, tick: _Tick, back: Backward) -> None:
        for i in self.sources:
            g = back.grads.get(tick.region.use(self.known[i]).id)
            if g is not None:
                tick.add(str(i), g)

    # -- the stages
    def stage(self, r: Region, weights: Sequence[tuple[int, Value]], taken: Sequence[Value]) -> list[Value]:
        """Every stage's layers on what it has taken."""
        each = Region(r, self.asked.stages, STAGES, parallel=True)
        outs, _, _ = self.layers(each, weights, [each.stacked(v) for v in taken])
        return each.close([], [(f"out{i}", v) for i, v in enumerate(outs)])[1]

    def layers(
        self, each: Region, weights: Sequence[tuple[int, Value]], taken: Sequence[Value]
    ) -> tuple[list[Value], dict[int, Value], list[Node]]:
        """The layers of one stage: what they carry, their operands by argument, the nodes made."""
        body, start = Resized(self.env, each), len(each.nodes)
        found = {a: v for (a, _), v in zip(self.flowing, taken, strict=True)}
        found |= {a: self.known[v.id] for a, v in self.shared}
        found |= {a: each.stacked(stack) for a, stack in weights}
        trips = dataclasses.replace(self.op, trips=self.op.trips // self.asked.stages)
        outs = body.repeat(trips, [found[a] for a in self.op.arguments])
        return outs[: self.carried], found, each.nodes[start:]

    def stage_back(
        self,
        tick: _Tick,
        weights: Sequence[tuple[int, Value]],
        held: Sequence[Value],
        cotangents: Mapping[int, Value],
        reads: Value,
    ) -> dict[int, Value]:
        """Every stage's way back, from what it kept: cotangents of what entered it. Adds up those of its weights."""
        r = tick.region
        each = Region(r, self.asked.stages, STAGES, parallel=True)
        slot = each.stacked(r.stacked(reads))
        taken = [each.one(Lookup(HELD), each.stacked(v), slot) for v in held]
        outs, operands, nodes = self.layers(each, weights, taken)
        own = {f"{STAGES}{v.id}": operands[a] for a, v in self.stacked if v.id in self.sources}
        common = {str(v.id): each.use(operands[a]) for a, v in self.shared if v.id in self.sources}
        active = {v.id for v in (*own.values(), *common.values(), *(taken[i] for i in cotangents))}
        spread(nodes, active)
        back = Backward(each, active, self.keep)
        for i, g in cotangents.items():
            back.add(outs[i] if i < self.carried else taken[i], each.stacked(g))
        back.walk(nodes)
        made = [(f"entered{i}", back.grads.get(taken[i].id) or zeros(each, taken[i].type)) for i in cotangents]
        terms = [(label, back.grads[v.id]) for label, v in (own | common).items() if v.id in back.grads]
        ends = each.close([], [*made, *terms])[1]
        for (label, _), term in zip(terms, ends[len(made) :], strict=True):
            tick.add(label, term if label in own else r.reduce(term, "sum", (STAGES,)))
        return dict(zip(cotangents, ends, strict=False))
