"""Streaming: the graph of one call that extends a state by its positions. Every op that looks back says with which
state (``Op.stream``); regions carry the state of what is inside them, however deeply they nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.errors import PhaseError, Problems
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, Size
from compiler.graph.types import TensorType
from compiler.ops.contract import Along, Op
from compiler.ops.control import Repeat
from compiler.ops.leaves import Input, Positions, State
from compiler.ops.state import HEADS_FIRST, After, CacheLayout, written
from compiler.passes.dependence import Dependence

STREAM = "seq"


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
    """Ops use ``b``, ``start``, ``fresh``, ``caches``, ``state`` and ``write``. ``deferred``: nothing is written,
    ``pendings`` tells what would have been."""

    def __init__(
        self, flows: Dependence, deferred: bool, fresh: bool = False, caches: CacheLayout = HEADS_FIRST
    ) -> None:
        super().__init__()
        self.flows, self.deferred, self.fresh, self.caches = flows, deferred, fresh, caches
        self.problems = Problems()
        rows = TensorType.make([("batch", BATCH)], "int32")
        self.start = self.b.append(State("length", "length"), (), (rows,))[0]
        self.valid = self.b.append(Input("valid"), (), (rows,))[0]
        self.pendings: list[Pending] = []
        self.results: list[tuple[str, Value]] = []
        self._labels: dict[str, int] = {}
        self._states: dict[int, tuple[str, str, TensorType]] = {}  # argument or leaf -> label, kind, type of one layer
        self._open: dict[int, _Open] = {}  # by id of the region builder

    # -- what ops use
    def state(self, name: str, kind: str, t: TensorType) -> Value:
        """A state of this op, as it was before this call."""
        base = f"{self.b.path}:{name}"  # a colon: never the name of a parameter or an input
        self._labels[base] = self._labels.get(base, 0) + 1
        label = base if self._labels[base] == 1 else f"{base}@{self._labels[base]}"
        value = self._leaf(self.b, label, kind, t)
        self._states[value.id] = (label, kind, t)
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
        if after is not None:
            values = [self.b.one(After(), v, after) for v in values]
        made = written(self.b, how, STREAM, state, values, (self.start, self.valid))
        if isinstance(self.b, Region):
            self.b.set_state(state, made)
        else:
            self.results.append((f"state:{label}", made))

    def _hand_out(self, b: Builder, name: str, value: Value) -> None:
        (self._open[id(b)].pending if isinstance(b, Region) else self.results).append((name, value))

    # -- the pass
    def run(self, graph: Graph) -> Graph:
        for node in graph.nodes:
            self.node(node)
        self.problems.raise_if_any(PhaseError)
        if not self.deferred:
            self.results.append(("state:length", self.b.add(self.start, self.valid)))
        self.b.names.update({n: self.map[v.id] for n, v in graph.names.items() if v.id in self.map})
        return self.b.finish([*((n, self.map[v.id]) for n, v in graph.outputs), *self.results])

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
        if isinstance(op, Positions) and op.axis == STREAM:
            return self.b.append(op, (self.b.use(self.start),), (node.result.type,))
        if isinstance(op, Repeat) or not any(STREAM in v.axes for v in ins):
            return None
        along = op.along(STREAM, [v.type for v in ins])
        if along is Along.STATEFUL:
            return op.stream(self, ins)
        if along is Along.LOOKAHEAD:
            who = f"{node.path or op.name} looks ahead in the sequence ({op.name})"
            text = f"{who}, so this model has no prefill or decode"
            if not any(p.position == node.position for p in self.problems.items):  # of one block one is enough
                self.problems.add("looks-ahead", text, node.position, allowed=("forward",))
        return None

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
