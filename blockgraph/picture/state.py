"""Which op keeps which state: asked of the phase pass itself, op by op."""

from __future__ import annotations

from collections.abc import Sequence

from compiler.errors import PhaseError
from compiler.graph.ir import Node, Value
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.passes.dependence import dependence
from compiler.passes.streaming import Streaming

Kept = dict[int, list[tuple[str, TensorType]]]


class _Watch(Streaming):
    """The streaming rewrite, noting for each node of the original graph what it keeps."""

    kept: Kept
    node_now = -1

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        self.node_now = node.results[0].id if node.results else -1
        return super().rewrite(node, ins)

    def state(self, name: str, kind: str, t: TensorType) -> Value:
        self.kept.setdefault(self.node_now, []).append((kind, t))
        return super().state(name, kind, t)

    def node(self, node: Node) -> None:
        if node.results and not self.flows.is_static(node):
            for v in node.operands:
                if v.id not in self.map and node.op.region is None and len(v.axes) > 1:  # lengths apart
                    self.kept.setdefault(node.results[0].id, []).append(("context", v.type))
        super().node(node)


def states(model: Model) -> Kept:
    """State by the number of a node's first result, types of one layer. A model without phases keeps none."""
    if model.streaming_input is None:
        return {}
    watch = _Watch(dependence(model.graph, model.streaming_input), deferred=False)
    watch.kept = {}
    try:
        watch.run(model.graph)
    except PhaseError:
        return {}
    return watch.kept
