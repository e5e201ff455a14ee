"""Stage: the layers of a repeat become the stages of a pipeline, through which micro-batches follow each other.

A repeat over layers becomes a repeat over ticks. In each tick every stage runs its layers on the micro-batch that it
has (a parallel repeat over ``stages``), and hands the result to the next. With ``rounds`` above 1 the pipeline is
circular: a stage holds several groups of layers that lie ``stages`` groups apart, and what leaves the last stage
enters the first again until all layers are done (Narayanan et al., arXiv:2104.04473, section 2.2, the interleaved
schedule). Micro-batches enter in groups of as many as there are stages, each group after the last round of the one
before, so that a result comes round in the very tick in which it is needed.

Nothing here knows a mesh: a plan that sends ``stages`` to a mesh axis puts each stage on its own devices, and the hand
over becomes a permute. Stages that have nothing to do yet, or no more, work on zeros: of rounds x micro-batches +
stages - 1 ticks, stages - 1 are idle on each device. The gradient is that of the graph: all forward ticks, then all
backward ones (GPipe, arXiv:1811.06965), of which only what enters a stage in each tick is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.errors import Problem, SpecError
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, Size
from compiler.ops.control import Repeat
from compiler.ops.lookup import Lookup
from compiler.ops.recurrence import Shift
from compiler.ops.shape import Merge, Pad, Slice, Split, zeros
from compiler.passes.micro import MICRO, STAGES, TICKS, Resized, micro_batches, micro_rows, numbers, staged

LAYERS, ROUNDS = "layers", "rounds"


@dataclass(frozen=True)
class Stages:
    """``stages`` x ``rounds`` groups of layers; a batch in ``micro`` micro-batches. ``at_once``: 1F1B, each goes back
    as soon as it has passed (compiler/passes/one_f_one_b.py)."""

    stages: int
    micro: int
    rounds: int = 1
    at_once: bool = False

    @property
    def idle(self) -> int:
        """Ticks in which a device has no work, in each direction."""
        return (2 if self.at_once else 1) * (self.stages - 1)

    @property
    def ticks(self) -> int:
        return self.rounds * self.micro + self.idle

    @property
    def bubble(self) -> float:
        """Of a step's time in the pipeline, what a device spends without work."""
        return self.idle / self.ticks

    def told(self, training: bool) -> str:
        """In a sentence, for people."""
        rounds = f" {self.rounds} times through them" if self.rounds > 1 else ""
        way = "" if not training else ", each forward and backward" if self.at_once else " forward, as many backward"
        idle = f"{self.idle} of them ({self.bubble:.1%}) without work"
        return f"pipeline of {self.stages} stages, {self.micro} micro-batches{rounds}: {self.ticks} ticks{way}, {idle}"

    def round(self, tick: int, stage: int) -> int:
        """Which of its groups of layers a stage runs."""
        return max(tick - stage, 0) // self.stages % self.rounds

    def enters(self, tick: int) -> bool:
        """Whether the first stage takes a new micro-batch."""
        return tick < self.rounds * self.micro and tick // self.stages % self.rounds == 0


def stage(graph: Graph, asked: Stages, sizes: Mapping[str, int]) -> Graph:
    """The graph whose repeats over layers are pipelines. Raises SpecError where they cannot be."""
    check_micro(asked, sizes)
    return _Stage(dataclasses.replace(asked, at_once=False)).run(graph)


def check_micro(asked: Stages, sizes: Mapping[str, int]) -> None:
    """Raises SpecError where the batch does not divide into so many micro-batches."""
    batch = sizes["batch"]
    if asked.micro < 1 or batch % asked.micro:
        fitting = tuple(str(n) for n in range(1, batch + 1) if batch % n == 0)
        message = f"batch = {batch} does not divide into {asked.micro} micro-batches of a pipeline"
        raise SpecError(Problem("indivisible", message, None, fitting))
    if asked.rounds > 1 and asked.micro % asked.stages:
        message = f"a circular pipeline of {asked.stages} stages takes micro-batches {asked.stages} at a time"
        fitting = tuple(str(n) for n in range(asked.stages, batch + 1, asked.stages) if batch % n == 0)
        raise SpecError(Problem("indivisible", f"{message}, not {asked.micro}", None, fitting))


def pipelined(node: Node) -> bool:
    """Whether a node is a repeat over layers that a pipeline takes."""
    return isinstance(node.op, Repeat) and node.op.axis == LAYERS


def check(node: Node, op: Repeat, ins: Sequence[Value], asked: Stages) -> None:
    """Raises SpecError where a repeat is no pipeline."""
    groups = asked.stages * asked.rounds
    carried, _, stacked, states = op.parts(ins)
    problem: str | None = None
    allowed: tuple[str, ...] = ()
    if op.trips % groups:
        problem = f"{op.trips} layers do not divide into {groups} stages"
        if asked.rounds > 1:
            problem += f" ({asked.stages} devices x {asked.rounds} rounds)"
        allowed = tuple(str(n) for n in range(2, op.trips + 1) if op.trips % n == 0)
    elif states:
        problem = "layers that hold caches or other state are no pipeline here: use it to train, or for forward"
    elif len(op.body.outputs) > op.carried:
        problem = "layers that hand values out one by one are no pipeline here"
    elif any("batch" in v.axes for v in stacked):
        problem = "layers that each take a part of another input are no pipeline here"
    elif any("batch" not in v.axes for v in carried):
        problem = "layers that hand on a value of the whole batch are no pipeline here"
    if problem:
        where = f"{node.path}: " if node.path else ""
        raise SpecError(Problem("cannot-pipeline", where + problem, node.position, allowed))


class _Stage(Replay):
    def __init__(self, asked: Stages) -> None:
        super().__init__()
        self.asked = asked

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        return self.pipeline(node, ins) if pipelined(node) else None

    def pipeline(self, node: Node, ins: Sequence[Value]) -> list[Value]:
        op, b, asked = node.op, self.b, self.asked
        assert isinstance(op, Repeat)
        check(node, op, ins, asked)
        carried, captured, stacked, _ = op.parts(list(zip(op.arguments, ins, strict=True)))
        flowing = [*carried, *((a, v) for a, v in captured if "batch" in v.axes)]
        shared = [(a, v) for a, v in captured if "batch" not in v.axes]
        per = op.trips // (asked.stages * asked.rounds)
        with b.at("pipeline"):
            waiting = [self.enter(v) for _, v in flowing]
            weights = [(a, self.groups(v, per)) for a, v in stacked]
            rounds, entry = self.schedule(b)
            tick = Region(b, asked.ticks, TICKS)
            held = [tick.carry(zeros(b, staged(micro_rows(v.type, asked.micro), asked.stages))) for _, v in flowing]
            fresh = [tick.stacked(v) for v in waiting]
            enters = tick.stacked(entry)
            turn = tick.stacked(rounds)
            taken = []
            for old, new in zip(held, fresh, strict=True):
                moved = tick.one(Shift(STAGES, 1, wrap=asked.rounds > 1), old)
                taken.append(tick.arrange(tick.select(enters, new, moved), old.axes))
            each = Region(tick, asked.stages, STAGES, parallel=True)
            done = self.layers(each, op, per, flowing, shared, weights, taken, turn, len(carried))
            after = each.close([], [(f"out{i}", v) for i, v in enumerate(done)])[1]
            last = numbers(tick, [s == asked.stages - 1 for s in range(asked.stages)], STAGES, "bool")
            outs = []
            for i, v in enumerate(after):
                own = tick.select(last, v, tick.constant(0.0, v.type.dtype))
                outs.append((f"left{i}", tick.reduce(tick.arrange(own, v.axes), "sum", (STAGES,))))
            ends = tick.close([*after, *taken[len(carried) :]], outs)[1]
            return [self.leave(v, like) for v, (_, like) in zip(ends, carried, strict=True)]

    # -- micro-batches, groups of layers
    def enter(self, v: Value) -> Value:
        """[.., batch, ..] as [ticks, .., batch, ..]: zeros where no micro-batch enters."""
        b, asked = self.b, self.asked
        x = micro_batches(b, v, asked.micro)
        if asked.rounds > 1:
            group = (Size.of(asked.micro // asked.stages), Size.of(asked.stages))
            x = b.one(Split(MICRO, ("groups", MICRO), group), x)
            x = b.one(Pad(ROUNDS, Size.of(0), Size.of(asked.rounds - 1)), b.expand(x, [(ROUNDS, 1)]))
            x = b.merge(b.arrange(x, ("groups", ROUNDS, MICRO, *v.axes)), ("groups", ROUNDS, MICRO), TICKS)
        else:
            x = b.rename(x, **{MICRO: TICKS})
        return b.one(Pad(TICKS, Size.of(0), Size.of(asked.stages - 1)), x)

    def leave(self, ends: Value, like: Value) -> Value:
        """What left the last stage in each tick, as the whole batch."""
        b, asked = self.b, self.asked
        x = b.one(Slice(TICKS, Size.of(asked.stages - 1), Size.of(asked.rounds * asked.micro)), ends)
        if asked.rounds > 1:
            group = (Size.of(asked.micro // asked.stages), Size.of(asked.rounds), Size.of(asked.stages))
            x = b.one(Split(TICKS, ("groups", ROUNDS, MICRO), group), x)
            x = b.take(x, **{ROUNDS: asked.rounds - 1})
            x = b.merge(x, ("groups", MICRO), MICRO)
        else:
            x = b.rename(x, **{TICKS: MICRO})
        order = [a for axis in like.axes for a in ((axis, MICRO) if axis == "batch" else (axis,))]
        return b.one(Merge(("batch", MICRO), "batch", BATCH), b.arrange(x, order))

    def groups(self, stack: Value, per: int) -> Value:
        """[layers, ..] as [stages, .., layers, ..]: layer (round * stages + stage) * per + i."""
        b, asked = self.b, self.asked
        rest = stack.axes[1:]
        if asked.rounds == 1:
            return b.one(Split(LAYERS, (STAGES, LAYERS), (Size.of(asked.stages), Size.of(per))), stack)
        parts = (Size.of(asked.rounds), Size.of(asked.stages), Size.of(per))
        x = b.one(Split(LAYERS, (ROUNDS, STAGES, LAYERS), parts), stack)
        return b.arrange(x, (STAGES, ROUNDS, LAYERS, *rest))

    def schedule(self, b: Builder) -> tuple[Value, Value]:
        """[ticks, stages]: the group of layers that each stage runs, and whether it takes a new micro-batch."""
        asked = self.asked
        cells = [(t, s) for t in range(asked.ticks) for s in range(asked.stages)]
        made = []
        for values, dtype in (
            ([asked.round(t, s) for t, s in cells], "int32"),
            ([s == 0 and asked.enters(t) for t, s in cells], "bool"),
        ):
            flat = numbers(b, values, TICKS, dtype)
            made.append(b.one(Split(TICKS, (TICKS, STAGES), (Size.of(asked.ticks), Size.of(asked.stages))), flat))
        return made[0], made[1]

    # -- one stage
    def layers(
        self,
        each: Region,
        op: Repeat,
        per: int,
        flowing: Sequence[tuple[int, Value]],
        shared: Sequence[tuple[int, Value]],
        weights: Sequence[tuple[int, Value]],
        taken: Sequence[Value],
        turn: Value,
        carried: int,
    ) -> list[Value]:
        """The layers of one stage on what it has taken; what they carry."""
        body = Resized({"batch": BATCH // self.asked.micro}, each)
        found = {a: each.stacked(v) for (a, _), v in zip(flowing, taken, strict=True)} | dict(shared)
        for argument, stack in weights:
            own = each.stacked(stack)
            if self.asked.rounds > 1:
                own = each.one(Lookup(ROUNDS), own, each.stacked(turn))
            found[argument] = own
        trips = dataclasses.replace(op, trips=per)
        ins = [found[a] for a in op.arguments]
        return body.repeat(trips, ins)[:carried]
