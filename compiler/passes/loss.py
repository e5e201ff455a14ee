"""Loss: the mean cross-entropy of the next token becomes the output of the forward graph.

Logits of a large vocabulary are the largest value of a training step, so they are never whole. From the logits back,
through nodes that treat each position alone, lies a narrowest cut (the hidden state that the unembedding reads); what
follows it runs in a repeat over chunks of positions, which keeps only what enters it: its way back computes a chunk's
logits again. Positions go to chunks in turns (chunk c has c, c + n, c + 2n, …): a sharded sequence stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compiler.errors import Problem, SpecError, nearest
from compiler.graph.axes import RECENT, STREAM
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, Size
from compiler.graph.types import DTYPE_BITS, TensorType
from compiler.language.model import LOSS
from compiler.ops.contract import Along
from compiler.ops.latest import latest_of
from compiler.ops.leaves import Input
from compiler.ops.loss import cross_entropy
from compiler.ops.shape import Pad, Split, zeros
from compiler.passes.prune import prune

CROSS_ENTROPY = "cross_entropy"
CHUNKS = "chunks"  # the axis of the repeat over chunks: nothing of it is kept for the way back


@dataclass(frozen=True)
class Chunk:
    """How many positions of each row a chunk has: ``positions``, or as many as keep a chunk's float32 logits, of all
    rows, under ``logits_bytes`` (about a thousand positions of a vocabulary of 256k). Where rows or vocabulary are
    sharded, a device holds that much when ``logits_bytes`` is given as many times over."""

    positions: int | None = None
    logits_bytes: int = 1 << 30

    def split(self, logits: TensorType, sizes: Mapping[str, int]) -> tuple[int, int]:
        """(chunks, positions of each row in one). Chunks of one length where a number near enough divides."""
        axis = along(logits)
        seq = int(logits.size(axis).evaluate(sizes))
        width = int(logits.drop(axis).elements.evaluate(sizes)) * DTYPE_BITS["float32"] // 8
        most = max(1, min(seq, self.positions or self.logits_bytes // width))
        fewest = -(-seq // most)
        count = next((n for n in range(fewest, 2 * fewest) if seq % n == 0), fewest)
        return count, -(-seq // count)


def next_token_loss(
    graph: Graph,
    tokens: str = "tokens",
    logits: str = "logits",
    sizes: Mapping[str, int] | None = None,
    chunk: Chunk | None = None,
) -> Graph:
    """The graph whose outputs are ``loss``, the mean over the positions of each row that have a next token, and
    ``loss_weight``, their number. Where the graph has further terms of the loss (outputs ``loss:<name>``), ``loss`` is
    the sum, and ``cross_entropy`` and each term stand beside it. Rows are right-padded: the input ``seq_lengths``
    [batch] says how many tokens each has. With ``chunk`` (and ``sizes``) the logits are computed chunk by chunk."""
    names = [name for name, _ in graph.outputs]
    inputs = [node.op.label for node in graph.leaves(Input) if isinstance(node.op, Input)]
    for name, known, what in ((logits, names, "output"), (tokens, inputs, "input")):
        if name not in known:
            raise SpecError(
                Problem("unknown-name", f"no {what} is called {name}", None, tuple(known), nearest(name, known))
            )
    count, length = (1, 0)
    if chunk is not None and along(graph.output(logits).type) in graph.output(logits).axes:
        count, length = chunk.split(graph.output(logits).type, sizes or {})
    return prune(_Loss(tokens, logits, count, length, sizes or {}).run(graph))


class _Loss(Replay):
    def __init__(self, tokens: str, logits: str, count: int, length: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.tokens, self.logits, self.count, self.length, self.sizes = tokens, logits, count, length, sizes
        self.axis = STREAM

    def outputs(self, graph: Graph) -> list[tuple[str, Value]]:
        inputs = {n.op.label: n.result for n in graph.leaves(Input) if isinstance(n.op, Input)}
        b, logits = self.b, graph.output(self.logits)
        self.axis = along(logits.type)
        with b.at("loss"):
            tokens = self.map[inputs[self.tokens].id]
            if f"{STREAM}_lengths" in inputs:
                lengths = self.map[inputs[f"{STREAM}_lengths"].id]
            else:
                rows = TensorType.make([("batch", BATCH)], "int32")
                lengths = b.append(Input(f"{STREAM}_lengths"), (), (rows,))[0]
            targets = b.shift(tokens, STREAM, -1)
            following = b.add(b.positions(tokens, STREAM), b.constant(1, "int32"))
            mask = b.cast(b.greater(lengths, following), "float32")
            if self.axis == RECENT:  # what is predicted from the last positions alone
                latest = latest_of(graph)
                assert latest is not None
                targets, mask = b.one(latest, targets), b.one(latest, mask)
            if self.count > 1:
                total = self.chunked(graph, logits, targets, mask)
            else:
                total = _summed(b, self.map[logits.id], targets, mask)
            total = b.reduce(total, "sum", total.axes)
            weight = b.reduce(mask, "sum", mask.axes)
            made = {"loss": b.div(total, b.max(weight, 1.0)), **self.terms(graph, mask, weight), "loss_weight": weight}
            if len(made) > 2:
                made = {"loss": self.total(list(made.values())[:-1]), CROSS_ENTROPY: made.pop("loss"), **made}
        found = []
        for i, (name, value) in enumerate(made.items(), 1):  # ``run`` maps the outputs: these are ours already
            stand_in = Value(-i, value.type)
            self.map[stand_in.id] = value
            found.append((name, stand_in))
        return found

    def terms(self, graph: Graph, mask: Value, weight: Value) -> dict[str, Value]:
        """Further terms of the loss, each the mean over rows, which count by their positions with a next token: so
        those of micro-batches add up to the whole batch's, as the cross-entropies do."""
        b, found = self.b, {}
        targets = b.reduce(mask, "sum", (self.axis,))
        for name, v in graph.outputs:
            if name.startswith(LOSS):
                mean = b.reduce(b.mul(self.map[v.id], targets), "sum", ("batch",))
                found[name.removeprefix(LOSS)] = b.div(mean, b.max(weight, 1.0))
        return found

    def total(self, terms: list[Value]) -> Value:
        whole = terms[0]
        for term in terms[1:]:
            whole = self.b.add(whole, term)
        return whole

    def chunked(self, graph: Graph, logits: Value, targets: Value, mask: Value) -> Value:
        """Each row's summed losses [batch], chunk by chunk."""
        cut, tail = narrowest_cut(graph, logits, self.sizes)
        b, rows = self.b, mask.type.drop(self.axis)
        slices = {v.id: self.pieces(self.map[v.id]) for v in cut}
        pieces = [self.pieces(targets), self.pieces(mask)]
        region = Region(b, self.count, CHUNKS)
        before = region.carry(zeros(b, rows))
        replay = Replay(region)
        replay.map = self.map | {i: region.stacked(piece) for i, piece in slices.items()}
        for node in tail:
            replay.node(node)
        ids, kept = (region.stacked(piece) for piece in pieces)
        after = region.add(before, _summed(region, replay.map[logits.id], ids, kept))
        return region.close([region.arrange(after, before.axes)])[0][0]

    def pieces(self, x: Value) -> Value:
        """[…, seq, …] as [chunks, …, seq, …], zeros behind where the chunks are longer together."""
        b, whole = self.b, self.count * self.length
        padded = b.one(Pad(self.axis, Size.of(0), Size.of(whole) - x.type.size(self.axis)), x)
        parts = b.one(Split(self.axis, (self.axis, CHUNKS), (Size.of(self.length), Size.of(self.count))), padded)
        return b.arrange(parts, (CHUNKS, *x.axes))


def _summed(b: Builder, logits: Value, targets: Value, mask: Value) -> Value:
    """Each row's cross-entropy summed over the positions that the mask holds."""
    losses = cross_entropy(b, logits, b.arrange(targets, [a for a in logits.axes if a in targets.axes]))
    return b.reduce(b.mul(losses, b.arrange(mask, losses.axes)), "sum", (along(logits.type),))


def along(logits: TensorType) -> str:
    """The axis of the positions that logits are of."""
    return RECENT if RECENT in logits.axes else STREAM


def narrowest_cut(graph: Graph, logits: Value, sizes: Mapping[str, int]) -> tuple[list[Value], list[Node]]:
    """The values from which ``logits`` follow position by position, where they have the fewest elements a position,
    and the nodes between, in order. Of narrow places the one next to the logits."""

    axis = along(logits.type)

    def width(values: Iterable[Value]) -> int:
        return sum(int(v.type.drop(axis, "batch").elements.evaluate(sizes)) for v in values)

    alone = _alone(graph, axis)
    needed: dict[int, Value] = {logits.id: logits}
    passed: list[Node] = []
    best, between, least = dict(needed), 0, width(needed.values())
    for node in reversed(graph.nodes):
        if id(node) not in alone or not any(v.id in needed for v in node.results):
            continue  # what another node makes stays a value of the cut
        for v in node.results:
            needed.pop(v.id, None)
        needed |= {v.id: v for v in node.operands if axis in v.axes}
        passed.append(node)
        now = width(needed.values())
        if now < least:
            best, between, least = dict(needed), len(passed), now
        elif now > least and between:
            break  # past the narrow place: the way back would compute whole layers again
    return list(best.values()), passed[:between][::-1]


def _alone(graph: Graph, axis: str) -> set[int]:
    """Nodes (by identity) that treat each position alone: all that they take and give of the axis has it."""
    flows: set[int] = set()
    found: set[int] = set()
    for node in graph.nodes:
        taken = [v for v in node.operands if v.id in flows]
        if taken or any(axis in v.axes for v in node.results):
            flows.update(v.id for v in node.results)
        if taken and node.op.region is None and all(axis in v.axes for v in (*taken, *node.results)):
            types = [v.type for v in node.operands]
            if node.op.along(axis, types) is Along.POINTWISE:
                found.add(id(node))
    return found
