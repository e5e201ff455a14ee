"""The same call in the automatic style: one device's program under jit, which XLA's partitioner divides.

``build`` is an entry of a compile job like ``compiler.lower.entry:build``. Leaves lie as ours do, and every activation
is held by the strategy's rules (a sharding constraint on each value that has rows of the batch), as libraries with
logical axis rules do it. Collectives are the partitioner's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from compiler.graph.ir import Node, Value
from compiler.language.model import load
from compiler.lower.entry import Built, program_of
from compiler.lower.program import bind
from compiler.lower.registry import LOWERINGS, Lowering
from compiler.lower.train import TrainingStep
from compiler.parallel import build as building
from compiler.parallel.plan import Plan
from compiler.parallel.request import Request, Wires
from compiler.passes.call import TRAIN


def build(
    devices: list[Any],
    target: Any,
    *,
    spec: str,
    overrides: str = "{}",
    request: Mapping[str, Any],
    wires: Mapping[str, Any] | None = None,
    export: bool = False,
) -> Built:
    model, asked = load(spec, json.loads(overrides)), Request.from_json(request)
    graphs: dict[str, Any] = {}
    found = building.build(model, asked, target, Wires.from_json(wires) if wires else None, graphs.__setitem__)
    assert found.meshed is not None
    ours = program_of(found, asked.phase, devices)
    *_, whole = (graph for name, graph in graphs.items() if name != "partition")
    made = bind(asked.phase, whole, found.sizes, found.choice)
    if asked.phase == TRAIN:
        made = TrainingStep(**vars(made))
    for op, lower in list(LOWERINGS.items()):  # this process makes nothing else
        LOWERINGS[op] = _constrained(lower, found.meshed.plan, ours.mesh)
    args = ours.arguments()
    where = [{label: x.sharding for label, x in group.items()} for group in args]
    training = asked.phase == TRAIN
    out = (None, where[0], where[1]) if training else (None, where[1])
    jitted = jax.jit(made.function(), donate_argnums=(0, 1) if training else 1, out_shardings=out)
    return Built(jitted, args, export, {})


def _constrained(lower: Lowering, plan: Plan, mesh: Any) -> Lowering:
    def inner(ctx: Any, node: Node, *ins: Any) -> tuple[Any, ...]:
        outs = lower(ctx, node, *ins)
        return tuple(_held(v, x, plan, mesh) for v, x in zip(node.results, outs, strict=True))

    return inner


def _held(value: Value, x: Any, plan: Plan, mesh: Any) -> Any:
    """The value divided by the plan's rules for activations, where it has rows of the batch."""
    if not hasattr(x, "shape") or "batch" not in value.axes:
        return x
    over: dict[str, tuple[str, ...]] = {}
    left = dict(zip(value.axes, x.shape, strict=True))
    for m, n in plan.mesh.items():
        axis = next((a for a in plan.axes("activations", m) if left.get(a, 1) % n == 0 and left.get(a, 1) >= n), None)
        if axis is not None and n > 1:
            over[axis] = (*over.get(axis, ()), m)
            left[axis] //= n
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*(over.get(a) for a in value.axes))))
