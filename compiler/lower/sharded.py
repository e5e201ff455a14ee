"""Runs a partitioned graph: one shard_map over a mesh, with exactly the collectives that are nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from compiler.graph.ir import Value
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.leaves import Input, Parameter, State
from compiler.passes.partition import Partitioned, check_sizes

Leaves = dict[str, Any]


def sharded(made: Partitioned, sizes: Mapping[str, int], mesh: Mesh) -> Callable[[Leaves], Leaves]:
    """A function from leaves by label to outputs by name, on whole arrays; each device sees its shard of them.
    Raises SpecError where a size does not divide."""
    check_sizes(made, sizes)
    leaves = {n.op.label: n.result for n in made.graph.nodes if isinstance(n.op, (Input, Parameter, State))}

    def spec(value: Value) -> PartitionSpec:
        return PartitionSpec(*(made.of(value).get(a) for a in value.axes))

    def local(values: Leaves) -> Leaves:
        return run(made.graph, Context(sizes, values, mesh=made.mesh, placements=made.placements))

    inside = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=({label: spec(v) for label, v in leaves.items()},),
        out_specs={name: spec(v) for name, v in made.graph.outputs},
        check_vma=False,
    )
    return lambda values: inside({label: values[label] for label in leaves})
