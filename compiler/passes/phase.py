"""Phase: the phase-free graph becomes the program of one phase.

``forward`` is the graph as it stands. ``prefill``, ``decode`` and ``verify`` extend a state by the positions of one
call: every op that looks back says with which state (``Op.stream``); what does not depend on the streaming input
(an encoder, cross-attention keys) is computed once by ``encode`` and kept as context. ``verify`` leaves the state as
it was and hands out what it would have written; ``commit`` writes the accepted part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.errors import PhaseError, Problem, Problems, nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, Size
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.ops.contract import Along
from compiler.ops.control import Repeat
from compiler.ops.leaves import Input, Parameter, Positions, State
from compiler.ops.state import WRITES, After, LastValid
from compiler.passes.dependence import Dependence, dependence
from compiler.passes.prune import prune

PHASES = ("forward", "encode", "prefill", "decode", "verify", "commit")
STREAM = "seq"


@dataclass
class _Pending:
    label: str
    kind: str  # which write op
    value: TensorType  # of one layer
    state: TensorType
    state_kind: str
    trips: int | None


@dataclass(frozen=True)
class PhaseGraph:
    """A phase's graph. Its leaves are parameters, inputs and states; its outputs are the model's outputs,
    ``state:<label>`` for each state that changes, and in verify ``pending:<label>``."""

    phase: str
    graph: Graph
    pendings: tuple[_Pending, ...] = field(default=())

    def states(self) -> dict[str, tuple[State, TensorType]]:
        return {n.op.label: (n.op, n.result.type) for n in self.graph.leaves(State) if isinstance(n.op, State)}

    def inputs(self) -> dict[str, TensorType]:
        return {n.op.label: n.result.type for n in self.graph.leaves(Input) if isinstance(n.op, Input)}

    def parameters(self) -> dict[str, TensorType]:
        return {n.op.label: n.result.type for n in self.graph.leaves(Parameter) if isinstance(n.op, Parameter)}


def phase_graph(model: Model, phase: str, logits: str | None = None, fresh: bool = False, heads_first: bool = True
) -> PhaseGraph:
    """The graph of ``phase``. ``logits``: "last" (each row's last valid position; the default of prefill) or "all".
    ``fresh``: the state is empty (a prompt's first call), so caches are written and not read.
    ``heads_first``: caches are [batch, kv_heads, slots, …] rather than [batch, slots, kv_heads, …]. Raises PhaseError for an unknown phase, and where a block looks ahead in a streaming phase."""
    if phase not in PHASES:
        raise PhaseError(Problem("unknown-phase", f"no phase is called {phase}", None, PHASES, nearest(phase, PHASES)))
    if phase == "forward":
        return PhaseGraph(phase, prune(model.graph))
    if model.streaming_input is None:
        raise PhaseError(
            Problem(
                "no-stream",
                f"{model.name} has no token input: it has only a forward phase",
                None,
                ("forward",),
            )
        )
    flows = dependence(model.graph, model.streaming_input)
    if phase == "encode":
        return PhaseGraph(phase, prune(Encode(flows).run(model.graph)))
    streaming = Streaming(flows, deferred=phase in ("verify", "commit"), fresh=fresh, heads_first=heads_first)
    graph = streaming.run(model.graph)
    streaming.problems.raise_if_any(PhaseError)
    if phase == "commit":
        return PhaseGraph(phase, commit(streaming.pendings))
    if (logits or ("last" if phase == "prefill" else "all")) == "last":
        graph = keep_last(graph)
    return PhaseGraph(phase, prune(graph), tuple(streaming.pendings))


class Streaming(Replay):
    """Rewrites a graph so that it extends a state by the positions of one call. Ops use ``b``, ``start``,
    ``fresh``, ``state`` and ``write``."""

    def __init__(self, flows: Dependence, deferred: bool, fresh: bool = False, heads_first: bool = True) -> None:
        super().__init__()
        self.flows, self.deferred, self.fresh, self.heads_first = flows, deferred, fresh, heads_first
        self.problems = Problems()
        rows = TensorType.make([("batch", BATCH)], "int32")
        self.start = self.b.append(State("length", "length"), (), (rows,))[0]
        self.valid = self.b.append(Input("valid"), (), (rows,))[0]
        self.labels: dict[str, int] = {}
        self.pendings: list[_Pending] = []
        self.results: list[tuple[str, Value]] = []
        self.open: list[tuple[str, Value]] = []  # states of the region being replayed: (label, argument)
        self.region_pending: list[tuple[str, Value]] = []
        self.slot = ("", "")

    # -- what ops use
    def state(self, name: str, kind: str, t: TensorType) -> Value:
        """A state of this op, as it was before this call."""
        base = f"{self.b.path}.{name}" if self.b.path else name
        self.labels[base] = self.labels.get(base, 0) + 1
        label = base if self.labels[base] == 1 else f"{base}@{self.labels[base]}"
        self.last = (label, kind, t)
        if isinstance(self.b, Region):
            region, root = self.b, self.b.parent
            assert root is not None
            if root.parent is not None:
                raise PhaseError(
                    Problem(
                        "nested-state",
                        f"{self.b.path}: state inside a repeat inside a repeat",
                        self.b.position,
                    )
                )
            above = TensorType((region.axis, *t.axes), (Size.of(region.trips), *t.sizes), t.dtype)
            leaf = root.append(State(label, kind), (), (above,))[0]
            argument = region.stacked(leaf) if self.deferred else region.state(leaf)
            if not self.deferred:
                self.open.append((label, argument))
            self.kinds[argument.id] = (label, kind, t)
            return argument
        leaf = self.b.append(State(label, kind), (), (t,))[0]
        self.kinds[leaf.id] = (label, kind, t)
        return leaf

    kinds: dict[int, tuple[str, str, TensorType]] = {}

    def write(self, name: str, state: Value, new: Value, how: str, after: Value | None = None) -> None:
        """What the call adds to a state: written now, or handed out in verify. ``after``: the value that was read
        from the state as it was."""
        label, kind, t = self.kinds[state.id]
        region = self.b if isinstance(self.b, Region) else None
        if self.deferred:
            trips = region.trips if region else None
            self.pendings.append(_Pending(label, how, new.type, t, kind, trips))
            (self.region_pending if region else self.results).append((f"pending:{label}", new))
            return
        if after is not None:
            new = self.b.one(After(), new, after)
        written = self.b.one(WRITES[how](STREAM), state, new, self.start, self.valid)
        if region:
            region.set_state(state, written)
        else:
            self.results.append((f"state:{label}", written))

    # -- the pass
    def run(self, graph: Graph) -> Graph:
        self.kinds = {}
        for node in graph.nodes:
            self.node(node)
        self.problems.raise_if_any(PhaseError)
        if not self.deferred:
            self.results.append(("state:length", self.b.add(self.start, self.valid)))
        outputs = [(n, self.map[v.id]) for n, v in graph.outputs]
        for name, value in graph.names.items():
            if value.id in self.map:
                self.b.names[name] = self.map[value.id]
        return self.b.finish([*outputs, *self.results])

    def node(self, node: Node) -> None:
        if self.flows.is_static(node):
            return  # computed once by encode; used values come back as context
        for v in node.operands:
            if v.id not in self.map:
                self.map[v.id] = self.context(v)
        super().node(node)

    def context(self, v: Value) -> Value:
        """A value that encode computed."""
        label = self.flows.label(v)
        if isinstance(self.b, Region) and self.flows.inside(v):
            above = TensorType((self.b.axis, *v.type.axes), (Size.of(self.b.trips), *v.type.sizes), v.type.dtype)
            assert self.b.parent is not None
            return self.b.stacked(self.b.parent.append(State(label, "context"), (), (above,))[0])
        root = self.b
        while root.parent is not None:
            root = root.parent
        return root.append(State(label, "context"), (), (v.type,))[0]

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
            self.problems.add(
                "looks-ahead",
                f"{node.path or op.name} looks ahead in the sequence ({op.name}), so this model "
                "has no prefill or decode",
                node.position,
                allowed=("forward",),
            )
        return None

    def repeat(self, op: Repeat, ins: Sequence[Value]) -> list[Value]:
        saved, self.open, self.region_pending = (self.open, self.region_pending), [], []
        ins = list(ins)
        # static carried or captured values were replaced by context in ``node``
        results = super().repeat(op, ins)
        self.open, self.region_pending = saved
        return results

    def region_closing(self, region: Region) -> list[tuple[str, Value]]:
        return self.region_pending

    def region_closed(self, region: Region, extra: list[Value], states: list[Value]) -> None:
        self.results += [(name, stack) for (name, _), stack in zip(self.region_pending, extra, strict=True)]
        self.results += [(f"state:{label}", stack) for (label, _), stack in zip(self.open, states, strict=True)]


class Encode(Replay):
    """Keeps what depends on the other inputs alone, and hands out what the streaming part uses of it."""

    def __init__(self, flows: Dependence) -> None:
        super().__init__()
        self.flows = flows

    def run(self, graph: Graph) -> Graph:
        outputs: list[tuple[str, Value]] = []
        for node in graph.nodes:
            if self.flows.is_static(node) or self.flows.is_free(node):
                self.node(node)
            elif isinstance(node.op, Repeat):
                outputs += self.partial(node)
        outputs += [
            (f"state:{self.flows.label(v)}", self.map[v.id]) for v in self.flows.boundary if not self.flows.inside(v)
        ]
        return self.b.finish(outputs)

    def partial(self, node: Node) -> list[tuple[str, Value]]:
        """The static part of a streaming repeat, its used values stacked over the layers."""
        op = node.op
        assert isinstance(op, Repeat)
        used = [v for v in self.flows.boundary if self.flows.region_of(v) is op.body]
        if not used:
            return []
        outer, region = self.b, Region(self.b, op.trips, op.axis)
        self.b = region
        _, captured, stacked, _ = op.parts(list(zip(op.arguments, node.operands, strict=True)))
        for old, v in captured:
            if v.id in self.map:
                self.map[old] = self.map[v.id]
        for old, v in stacked:
            if v.id in self.map:
                self.map[old] = region.stacked(self.map[v.id])
        for inner in op.body.nodes:
            if (
                inner.operands
                and all(v.id in self.map for v in inner.operands)
                and (self.flows.is_static(inner) or self.flows.is_free(inner))
            ):
                self.node(inner)
        self.b = outer
        _, stacks, _ = region.close([], [(self.flows.label(v), self.map[v.id]) for v in used])
        return [(f"state:{self.flows.label(v)}", s) for v, s in zip(used, stacks, strict=True)]


def keep_last(graph: Graph) -> Graph:
    """Takes each row's last valid position as early as possible, so that only its logits are computed."""
    producers = graph.producers()
    cuts: dict[int, None] = {}
    for name, value in graph.outputs:
        if name.startswith(("state:", "pending:")) or STREAM not in value.axes:
            continue
        while True:
            node = producers[value.id]
            streams = [v for v in node.operands if STREAM in v.axes]
            pointwise = (
                node.op.region is None
                and streams
                and node.op.along(STREAM, [v.type for v in node.operands]) is Along.POINTWISE
            )
            if not pointwise or len({v.id for v in streams}) != 1:
                break
            value = streams[0]
        cuts[value.id] = None

    class Cut(Replay):
        def node(self, node: Node) -> None:
            super().node(node)
            if isinstance(node.op, Input) and node.op.label == "valid":
                self.valid = node.result
            for v in node.results:
                if v.id in cuts:
                    last[v.id] = self.b.one(LastValid(STREAM), self.map[v.id], self.map[self.valid.id])

    last: dict[int, Value] = {}
    cut = Cut()
    tail = _after(graph, cuts)
    for node in graph.nodes:
        if any(v.id in tail for v in node.results):
            saved = dict(cut.map)
            cut.map.update(last)
            cut.node(node)
            for v in node.operands:
                if v.id in last:
                    cut.map[v.id] = saved[v.id]
        else:
            cut.node(node)
    outputs = [
        (n, last.get(v.id, cut.map[v.id])) if not n.startswith(("state:", "pending:")) else (n, cut.map[v.id])
        for n, v in graph.outputs
    ]
    cut.b.names.update({n: cut.map[v.id] for n, v in graph.names.items() if v.id in cut.map})
    return cut.b.finish(outputs)


def _after(graph: Graph, cuts: dict[int, None]) -> set[int]:
    """Values computed from a cut by the output's own pointwise tail."""
    found: set[int] = set()
    wanted = {v.id for n, v in graph.outputs if not n.startswith(("state:", "pending:"))}
    for node in reversed(graph.nodes):
        if any(v.id in wanted and v.id not in cuts for v in node.results):
            found |= {v.id for v in node.results}
            wanted |= {v.id for v in node.operands if STREAM in v.axes}
    return found


def commit(pendings: Sequence[_Pending]) -> Graph:
    """Writes the first ``valid`` positions of what verify handed out, and moves the length on."""
    b = Builder()
    rows = TensorType.make([("batch", BATCH)], "int32")
    start = b.append(State("length", "length"), (), (rows,))[0]
    valid = b.append(Input("valid"), (), (rows,))[0]
    outputs: list[tuple[str, Value]] = []
    for p in pendings:
        if p.trips is None:
            state = b.append(State(p.label, p.state_kind), (), (p.state,))[0]
            new = b.append(Input(f"pending:{p.label}"), (), (p.value,))[0]
            outputs.append((f"state:{p.label}", b.one(WRITES[p.kind](STREAM), state, new, start, valid)))
            continue

        def stacked(t: TensorType, trips: int = p.trips) -> TensorType:
            return TensorType(("layers", *t.axes), (Size.of(trips), *t.sizes), t.dtype)

        state = b.append(State(p.label, p.state_kind), (), (stacked(p.state),))[0]
        new = b.append(Input(f"pending:{p.label}"), (), (stacked(p.value),))[0]
        region = Region(b, p.trips)
        old, fresh = region.state(state), region.stacked(new)
        region.set_state(old, region.one(WRITES[p.kind](STREAM), old, fresh, start, valid))
        _, _, states = region.close([])
        outputs.append((f"state:{p.label}", states[0]))
    outputs.append(("state:length", b.add(start, valid)))
    return b.finish(outputs)
