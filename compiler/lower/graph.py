"""Runs a graph under JAX: node by node at trace time, a repeat as one scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Graph, Node
from compiler.graph.sizes import Size
from compiler.lower import (  # noqa: F401  (register)
    attention,
    attention_gradient,
    basic,
    cached,
    collective,
    conv,
    defined,
    dropout,
    experts,
    latest,
    linear_attend,
    loss,
    ordinal,
    packed,
    recurrence,
    rotate,
    rows,
    seats,
    sinusoid,
    state,
)
from compiler.lower.registry import LOWERINGS, Context, StackSlot, lowers, read
from compiler.ops.control import Repeat
from compiler.ops.leaves import Argument, Constant, Input, Parameter, State


def run(graph: Graph, ctx: Context) -> dict[str, Any]:
    """The graph's outputs by name; leaves come from ``ctx.leaves`` by label."""
    env: dict[int, Any] = {}
    for node in graph.nodes:
        if isinstance(node.op, (Input, Parameter, State)):
            env[node.result.id] = ctx.leaves[node.op.label]
        else:
            step(node, env, ctx)
    return {name: env[v.id] for name, v in graph.outputs}


def step(node: Node, env: dict[int, Any], ctx: Context) -> None:
    with jax.named_scope(node.path.replace(".", "/") or node.op.name):
        results = LOWERINGS[type(node.op)](ctx, node, *(env[v.id] for v in node.operands))
    for v, r in zip(node.results, results, strict=True):
        env[v.id] = r
    if ctx.watch is not None:
        ctx.watch(node, results)


@lowers(Constant)
def _constant(ctx: Context, node: Node) -> tuple[Any, ...]:
    numbers = node.op.values  # type: ignore[attr-defined]
    values = np.asarray([ctx.size(v) if isinstance(v, Size) else v for v in numbers])
    t = node.result.type
    return (jnp.asarray(values[0] if not t.axes else values, t.dtype),)


@lowers(Argument, Input, Parameter, State)
def _leaf(ctx: Context, node: Node) -> tuple[Any, ...]:
    raise AssertionError("leaves are bound before nodes run")


@lowers(Repeat)
def _repeat(ctx: Context, node: Node, *operands: Any) -> tuple[Any, ...]:
    op = node.op
    assert isinstance(op, Repeat)
    carried, captured, stacked, states = op.parts(operands)
    names = op.parts(op.arguments)
    arguments = set(op.arguments)
    around = [s.index if isinstance(s, StackSlot) else () for s in states]  # a repeat inside a repeat
    states = [s.stack if isinstance(s, StackSlot) else s for s in states]
    body = [n for n in op.body.nodes if not (isinstance(n.op, Argument) and n.result.id in arguments)]

    def trip(carry: Any, xs: Any) -> Any:
        index, values, stacks = carry
        env = dict(zip(names[0], values, strict=True)) | dict(zip(names[1], captured, strict=True))
        env |= dict(zip(names[2], xs, strict=True))
        slots = zip(names[3], stacks, around, strict=True)
        env |= {a: StackSlot(s, (*outer, index)) for a, s, outer in slots}
        for n in body:
            step(n, env, ctx)
        outs = [env[v.id] for _, v in op.body.outputs]
        ys = [read(y) for y in outs[op.carried : len(outs) - op.states]]
        new = [s.stack for s in outs[len(outs) - op.states :]]
        return (index + step_by, outs[: op.carried], new), ys

    step_by = -1 if op.reverse else 1
    start = (jnp.asarray(op.trips - 1 if op.reverse else 0, jnp.int32), carried, states)
    here = op.trips // op.shards
    if op.parallel and here == 1:  # one trip on each shard: no loop
        (_, values, stacks), ys = trip(start, [x[0] for x in stacked])
        return (*values, *(y[None] for y in ys))
    (_, values, stacks), ys = jax.lax.scan(trip, start, stacked, length=here, reverse=op.reverse)
    slots = [StackSlot(s, outer) if outer else s for s, outer in zip(stacks, around, strict=True)]
    return (*values, *ys, *slots)
