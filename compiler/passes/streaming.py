"""Streaming: the graph of one call that extends a state by its positions. Every op that looks back says with which
state (``Op.stream``); regions carry the state of what is inside them, however deeply they nest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.errors import PhaseError, Problems
from compiler.graph.axes import RECENT, STREAM
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, CAPACITY, SEQ, Size
from compiler.graph.types import TensorType
from compiler.ops.contract import Along, Op
from compiler.ops.control import Repeat
from compiler.ops.latest import Latest, LatestCount
from compiler.ops.leaves import Input, Positions, State
from compiler.ops.state import HEADS_FIRST, After, CacheLayout, written
from compiler.passes.dependence import Dependence


@dataclass(frozen=True)
class Flow:
    """The positions of one call along an axis, of each row [batch]: how many there were before, how many there are now
    (``valid``), and the position of the first. ``fresh``: none were before; ``capacity``: room for them."""

    axis: str
    start: Value
    valid: Value
    first: Value
    fresh: bool
    capacity: Size


@dataclass(frozen=True)
class Pending:
    """What verify hands out instead of writing it: for one op of one layer, and the repeats around it."""

    label: str
    write: str | Op  # what takes it: compiler/ops/state.py, ``written``
    kind: str  # of the state
    values: tuple[TensorType, ...]
    state: TensorType
    trips: tuple[tuple[str, int], ...]  # (axis, trips) of the repeats around, outermost first

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is handed out, one for each value."""
        first = f"pending:{self.label}"
        return (first, *(f"{first}+{i}" for i in range(1, len(self.values))))


@dataclass
class _Open:
    """A region being replayed: its states (label, the argument here, the value in the parent), what it hands out."""

    states: list[tuple[str, Value, Value]] = field(default_factory=list)
    pending: list[tuple[str, Value]] = field(default_factory=list)


def stacked(t: TensorType, trips: Sequence[tuple[str, int]]) -> TensorType:
    """The type with the axes of the repeats around in front."""
    axes, sizes = tuple(a for a, _ in trips), tuple(Size.of(n) for _, n in trips)
    return TensorType((*axes, *t.axes), (*sizes, *t.sizes), t.dtype)


class Streaming(Replay):
    """Ops use ``b``, ``start``, ``valid``, ``fresh``, ``capacity`` (of the axis that they look back along), ``first``,
    ``full``, ``caches``, ``state`` and ``write``. ``deferred``: nothing is written, ``pendings`` tells what would have
    been. ``latest``: which the last positions are, where a model has an axis of them; ``full``: they are made anew.
    ``silent``: nothing but the state is wanted of the call."""

    def __init__(
        self, flows: Dependence, deferred: bool, fresh: bool = False, caches: CacheLayout = HEADS_FIRST, *,
        latest: Latest | None = None, full: bool = False, silent: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.flows, self.deferred, self.caches, self.full, self.silent = flows, deferred, caches, full, silent
        self.problems = Problems()
        rows = TensorType.make([("batch", BATCH)], "int32")
        start = self.b.append(State("length", "length"), (), (rows,))[0]
        valid = self.b.append(Input("valid"), (), (rows,))[0]
        self.along = {STREAM: Flow(STREAM, start, valid, start, fresh, CAPACITY)}
        self.flow = self.along[STREAM]
        if latest is not None:
            self.along[RECENT], self.anew = self._recent(latest, start, valid, rows), latest.keep
        self.pendings: list[Pending] = []
        self.results: list[tuple[str, Value]] = []
        self._labels: dict[str, int] = {}
        self._states: dict[int, tuple[str, str, TensorType]] = {}  # argument or leaf -> label, kind, type of one layer
        self._axis: dict[str, str] = {"length": STREAM, RECENT: RECENT}  # of what each state holds, by label
        self._open: dict[int, _Open] = {}  # by id of the region builder

    def _recent(self, latest: Latest, start: Value, valid: Value, rows: TensorType) -> Flow:
        """The last positions: all of them anew, or behind those that were made before."""
        held = self.b.append(State(RECENT, "length"), (), (rows,))[0]
        if not self.full:
            return Flow(RECENT, held, valid, start, False, latest.count)
        first, count = self.b.apply(LatestCount(latest.keep), start, valid)
        none = self.b.sub(held, held)
        return Flow(RECENT, none, count, first, True, latest.count)

    # -- what ops use
    @property
    def start(self) -> Value:
        return self.flow.start

    @property
    def valid(self) -> Value:
        return self.flow.valid

    @property
    def fresh(self) -> bool:
        return self.flow.fresh

    @property
    def capacity(self) -> Size:
        return self.flow.capacity

    def first(self, axis: str) -> Value | None:
        """The position of a row's first entry along an axis, where it is not that of the call's first token."""
        return self.along[axis].first if self.full and axis == RECENT else None

    def state(self, name: str, kind: str, t: TensorType) -> Value:
        """A state of this op, as it was before this call."""
        base = f"{self.b.path}:{name}"  # a colon: never the name of a parameter or an input
        self._labels[base] = self._labels.get(base, 0) + 1
        label = base if self._labels[base] == 1 else f"{base}@{self._labels[base]}"
        value = self._leaf(self.b, label, kind, t)
        self._states[value.id] = (label, kind, t)
        self._axis[label] = self.flow.axis
        return value

    def _leaf(self, b: Builder, label: str, kind: str, t: TensorType) -> Value:
        if not isinstance(b, Region):
            return b.append(State(label, kind), (), (t,))[0]
        assert b.parent is not None
        above = self._leaf(b.parent, label, kind, stacked(t, [(b.axis, b.trips)]))
        if self.deferred:
            return b.stacked(above)
        argument = b.state(above)
        self._open[id(b)].states.append((label, argument, above))
        return argument

    def write(
        self, name: str, state: Value, new: Value | Sequence[Value], how: str | Op, after: Value | None = None
    ) -> None:
        """What the call adds to a state: written now, or handed out in verify. ``how``: compiler/ops/state.py,
        ``written``. ``after``: the value that was read from the state as it was."""
        label, kind, t = self._states[state.id]
        values = [new] if isinstance(new, Value) else list(new)
        if self.deferred:
            trips: list[tuple[str, int]] = []
            b: Builder = self.b
            while isinstance(b, Region):
                trips.insert(0, (b.axis, b.trips))
                assert b.parent is not None
                b = b.parent
            pending = Pending(label, how, kind, tuple(v.type for v in values), t, tuple(trips))
            self.pendings.append(pending)
            for name, value in zip(pending.names, values, strict=True):
                self._hand_out(self.b, name, value)
            return
        if after is not None and not self.silent:
            values = [self.b.one(After(), v, after) for v in values]
        made = written(self.b, how, self.flow.axis, state, values, (self.start, self.valid))
        if isinstance(self.b, Region):
            self.b.set_state(state, made)
        else:
            self.results.append((f"state:{label}", made))

    def _hand_out(self, b: Builder, name: str, value: Value) -> None:
        (self._open[id(b)].pending if isinstance(b, Region) else self.results).append((name, value))

    def before(self, axis: str) -> list[tuple[str, Value]]:
        """The results that are states, without those along ``axis``."""
        states = [(name, v) for name, v in self.results if name.startswith("state:")]
        return [(name, v) for name, v in states if self._axis[name.removeprefix("state:")] != axis]

    # -- the pass
    def run(self, graph: Graph) -> Graph:
        for node in graph.nodes:
            self.node(node)
        self.problems.raise_if_any(PhaseError)
        if not self.deferred:
            for axis, flow in self.along.items():
                label = "length" if axis == STREAM else axis
                self.results.append((f"state:{label}", self._moved_on(flow, label)))
        self.b.names.update({n: self.map[v.id] for n, v in graph.names.items() if v.id in self.map})
        return self.b.finish([*((n, self.map[v.id]) for n, v in graph.outputs), *self.results])

    def _moved_on(self, flow: Flow, label: str) -> Value:
        """How many positions there are after the call."""
        if not (self.full and flow.axis == RECENT):
            return self.b.add(flow.start, flow.valid)
        old = next(n.result for n in self.b.nodes if isinstance(n.op, State) and n.op.label == label)
        return self.b.select(self.b.greater(flow.valid, self.b.constant(0, "int32")), flow.valid, old)

    def node(self, node: Node) -> None:
        if self.flows.is_static(node):
            return  # computed once by encode; what is used of it comes back as context
        for v in node.operands:
            if v.id not in self.map:
                self.map[v.id] = self._context(v)
        super().node(node)

    def _context(self, v: Value) -> Value:
        """A value that encode computed."""
        label, b = self.flows.label(v), self.b
        while not self.flows.inside(v) and b.parent is not None:
            b = b.parent
        return self._kept(b, label, v.type)

    def _kept(self, b: Builder, label: str, t: TensorType) -> Value:
        """What encode kept of one trip, or of all where there is no repeat around."""
        if not isinstance(b, Region):
            return b.append(State(label, "context"), (), (t,))[0]
        assert b.parent is not None
        return b.stacked(self._kept(b.parent, label, stacked(t, [(b.axis, b.trips)])))

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        op = node.op
        if isinstance(op, Positions) and op.axis in self.along:
            return self._positions(op, self.along[op.axis])
        if isinstance(op, Repeat):
            return None
        for axis, flow in self.along.items():
            if not any(axis in v.axes for v in ins):
                continue
            along = op.along(axis, [v.type for v in ins])
            if along is Along.STATEFUL:
                self.flow = flow
                return op.stream(self, ins)
            if along is Along.LOOKAHEAD:
                who = f"{node.path or op.name} looks ahead in the sequence ({op.name})"
                text = f"{who}, so this model has no prefill or decode"
                if not any(p.position == node.position for p in self.problems.items):  # of one block one is enough
                    self.problems.add("looks-ahead", text, node.position, allowed=("forward",))
        return None

    def _positions(self, op: Positions, flow: Flow) -> Sequence[Value]:
        """As many as the call has along the axis."""
        size = op.size
        if flow.axis == RECENT:
            size = self.anew if self.full else SEQ
        made = dataclasses.replace(op, size=size)
        return self.b.apply(made, self.b.use(flow.first))

    def region_opened(self, region: Region) -> None:
        self._open[id(region)] = _Open()

    def region_closing(self, region: Region) -> list[tuple[str, Value]]:
        return self._open[id(region)].pending

    def region_closed(self, region: Region, extra: list[Value], states: list[Value]) -> None:
        done, parent = self._open.pop(id(region)), region.parent
        assert parent is not None
        for (name, _), stack in zip(done.pending, extra, strict=True):
            self._hand_out(parent, name, stack)
        for (label, _, above), stack in zip(done.states, states, strict=True):
            if isinstance(parent, Region):
                parent.set_state(above, stack)
            else:
                self.results.append((f"state:{label}", stack))
