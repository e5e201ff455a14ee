"""Ops that a program defines: the program's own lowerings, one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

from compiler.graph.ir import Node
from compiler.lower.registry import LOWERINGS, Array, Context, lowers
from compiler.ops.latent import AttendLatent
from compiler.ops.leaves import Input


@lowers(AttendLatent)
def _written_out(ctx: Context, node: Node, *xs: Array) -> tuple[Array, ...]:
    op: Any = node.op
    graph = op.written_out([v.type for v in node.operands])
    here, env = dataclasses.replace(ctx, watch=None), {}
    for inner in graph.nodes:
        if isinstance(inner.op, Input):
            env[inner.result.id] = xs[int(inner.op.label)]
        else:
            made = LOWERINGS[type(inner.op)](here, inner, *(env[v.id] for v in inner.operands))
            env.update((v.id, x) for v, x in zip(inner.results, made, strict=True))
    return tuple(env[v.id] for _, v in graph.outputs)
