"""Loss: the mean cross-entropy of the next token becomes an output of the forward graph."""

from __future__ import annotations

from compiler.errors import Problem, SpecError, nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH
from compiler.graph.types import TensorType
from compiler.ops.leaves import Input
from compiler.ops.loss import cross_entropy, masked_mean

STREAM = "seq"


def next_token_loss(graph: Graph, tokens: str = "tokens", logits: str = "logits") -> Graph:
    """The graph with an output ``loss``: the mean over the positions of each row that have a next token. Rows are
    right-padded: the input ``seq_lengths`` [batch] says how many tokens each has."""
    names = [name for name, _ in graph.outputs]
    inputs = [node.op.label for node in graph.leaves(Input) if isinstance(node.op, Input)]
    for name, known, what in ((logits, names, "output"), (tokens, inputs, "input")):
        if name not in known:
            raise SpecError(
                Problem("unknown-name", f"no {what} is called {name}", None, tuple(known), nearest(name, known))
            )
    pass_ = _Loss(tokens, logits)
    return pass_.run(graph)


class _Loss(Replay):
    def __init__(self, tokens: str, logits: str) -> None:
        super().__init__()
        self.tokens, self.logits = tokens, logits

    def outputs(self, graph: Graph) -> list[tuple[str, Value]]:
        kept = super().outputs(graph)
        inputs = {n.op.label: n.result for n in graph.leaves(Input) if isinstance(n.op, Input)}
        b = self.b
        with b.at("loss"):
            tokens = self.map[inputs[self.tokens].id]
            if f"{STREAM}_lengths" in inputs:
                lengths = self.map[inputs[f"{STREAM}_lengths"].id]
            else:
                rows = TensorType.make([("batch", BATCH)], "int32")
                lengths = b.append(Input(f"{STREAM}_lengths"), (), (rows,))[0]
            loss = _mean_loss(b, self.map[graph.output(self.logits).id], tokens, lengths)
        made = Value(-1, loss.type)  # ``run`` maps the outputs: this one is ours already
        self.map[made.id] = loss
        return [*kept, ("loss", made)]


def _mean_loss(b: Builder, logits: Value, tokens: Value, lengths: Value) -> Value:
    targets = b.shift(tokens, STREAM, -1)
    losses = cross_entropy(b, logits, targets)
    next_position = b.add(b.positions(tokens, STREAM), b.constant(1, "int32"))
    mask = b.cast(b.greater(lengths, next_position), "float32")
    return masked_mean(b, losses, b.arrange(mask, losses.axes))
