"""Runs a partitioned graph: one shard_map over a mesh, with exactly the collectives that are nodes of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from compiler.graph.ir import Value
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.leaves import Input, Parameter, State
from compiler.passes.partition import Partitioned, check_sizes

Leaves = dict[str, Any]


@dataclass(frozen=True)
class Sharded:
    """A partitioned graph on devices: leaves by label in, outputs by name out, as whole (global) arrays.
    ``sizes`` are those of the whole; each device runs the graph on its shards."""

    made: Partitioned
    sizes: Mapping[str, int]
    mesh: Mesh

    def leaves(self) -> dict[str, Value]:
        return {n.op.label: n.result for n in self.made.graph.nodes if isinstance(n.op, (Input, Parameter, State))}

    def spec(self, value: Value) -> PartitionSpec:
        return PartitionSpec(*(self.made.of(value).get(a) for a in value.axes))

    def shardings(self) -> dict[str, NamedSharding]:
        """Where each leaf lies."""
        return {label: NamedSharding(self.mesh, self.spec(v)) for label, v in self.leaves().items()}

    def function(self, leaves: Leaves) -> Leaves:
        """The whole program as one shard_map."""

        def local(values: Leaves) -> Leaves:
            placed = Context(self.sizes, values, mesh=self.made.mesh, placements=self.made.placements)
            return run(self.made.graph, placed)

        inside = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=({label: self.spec(v) for label, v in self.leaves().items()},),
            out_specs={name: self.spec(v) for name, v in self.made.graph.outputs},
            check_vma=False,
        )
        return inside(leaves)

    def put(self, leaves: Leaves) -> Leaves:
        """Whole arrays laid on the devices as the program wants them."""
        return {label: jax.device_put(leaves[label], sharding) for label, sharding in self.shardings().items()}

    def jitted(self) -> Any:
        return jax.jit(self.function)


def sharded(made: Partitioned, sizes: Mapping[str, int], mesh: Mesh) -> Sharded:
    """Binds a partitioned graph to sizes and devices. Raises SpecError where a size does not divide."""
    check_sizes(made, sizes)
    return Sharded(made, sizes, mesh)
