"""Accumulate: a batch in several micro-batches, one after the other, whose gradients add up in float32.

The graph of loss and gradients becomes the body of a repeat over ``micro``; in it the symbol ``batch`` is the rows of
one micro-batch. Rows go to micro-batches in turns, so a sharded batch stays where it is. The loss is a mean over
positions, of which micro-batches have unequal numbers: each divides by the number in the whole batch, which is
counted first, so that losses and gradients simply add up to those of the batch in one piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.sizes import BATCH, Size
from compiler.graph.types import DTYPE_BITS, TensorType
from compiler.ops.elementwise import widened
from compiler.ops.leaves import Input, Parameter, State
from compiler.ops.shape import Split, zeros
from compiler.passes.prune import prune

MICRO = "micro"
WEIGHT = "loss_weight"


def accumulate(graph: Graph, steps: int, weight: str = WEIGHT) -> Graph:
    """The graph over ``steps`` micro-batches: inputs with a batch axis are ``steps`` times as long, every output
    (scalars and gradients) is the sum over micro-batches, in float32 or wider. ``weight`` is the output that the loss
    is divided by."""
    if steps == 1:
        return graph
    b = Builder()
    leaves: dict[int, Value] = {}
    stacks: dict[int, Value] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input) and "batch" in node.result.axes:
            stacks[node.result.id] = _micro_batches(b, node, steps)
        elif isinstance(node.op, (Input, Parameter, State)):
            leaves[node.result.id] = b.append(node.op, (), (node.result.type,))[0]
    counted = graph.output(weight)
    count = _summed(b, prune(dataclasses.replace(graph, outputs=((weight, counted),))), steps, leaves, stacks)
    leaves[counted.id] = count[weight]
    rest = prune(dataclasses.replace(graph, outputs=tuple(o for o in graph.outputs if o[0] != weight)))
    sums = _summed(b, rest, steps, leaves, stacks) | count
    return prune(b.finish([(name, sums[name]) for name, _ in graph.outputs]))


def _micro_batches(b: Builder, node: Node, steps: int) -> Value:
    """An input of the whole batch as [micro, …]."""
    t = node.result.type
    whole = b.append(node.op, (), (t.resize("batch", t.size("batch") * steps),))[0]
    parts = b.one(Split("batch", ("batch", MICRO), (BATCH, Size.of(steps))), whole)
    return b.arrange(parts, (MICRO, *t.axes))


def _wide(t: TensorType) -> TensorType:
    return t if DTYPE_BITS[t.dtype] >= DTYPE_BITS["float32"] else t.with_dtype("float32")


def _summed(
    b: Builder, graph: Graph, steps: int, known: Mapping[int, Value], stacks: Mapping[int, Value]
) -> dict[str, Value]:
    """The graph's outputs, each the sum over the trips of one repeat."""
    region = Region(b, steps, MICRO)
    totals = [region.carry(zeros(b, _wide(v.type))) for _, v in graph.outputs]
    replay = Replay(region)
    replay.map = dict(known)
    for node in graph.nodes:
        if isinstance(node.op, Input) and node.result.id in stacks:
            replay.map[node.result.id] = region.stacked(stacks[node.result.id])
    for node in graph.nodes:
        if not all(v.id in replay.map for v in node.results):
            replay.node(node)
    added = []
    for total, (_, value) in zip(totals, graph.outputs, strict=True):
        added.append(region.add(total, widened(region, replay.map[value.id], total.type.dtype)))
    ends, _, _ = region.close(added)
    return {name: end for (name, _), end in zip(graph.outputs, ends, strict=True)}
