"""The programs of a session on a mesh, over one process or many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from compiler.language.model import Model
from compiler.lower.entry import program_of
from compiler.lower.program import Program
from compiler.parallel.build import build
from compiler.parallel.request import Parallel, Request, Wires
from compiler.targets.types import Target
from runtime.weights import parts


@dataclass(frozen=True)
class Place:
    """A mesh, the machine that it lies on, and the machine's links where it has some."""

    parallel: Parallel
    target: Target
    wires: Wires | None = None


@dataclass(frozen=True)
class Meshed:
    """Prefill and decode on one mesh; parameters and state lie the same for both."""

    prefill: Program
    decode: Program

    def shardings(self) -> dict[str, Any]:
        """Where each leaf lies: parameters, state and inputs by label."""
        return {**self.prefill.shardings(), **self.decode.shardings()}

    def jitted(self, made: Program) -> Any:
        """``fn(params, state, inputs) -> (outputs, state)`` with outputs whole on every device."""
        where = self.shardings()
        assert made.mesh is not None
        whole = jax.sharding.NamedSharding(made.mesh, jax.sharding.PartitionSpec())
        state = {k: where[k] for k in made.states}
        return jax.jit(made.function(), donate_argnums=1, out_shardings=(whole, state))

    def put(self, made: Program, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs that every process has in full, laid out."""
        where = made.shardings()
        return {k: parts.replicated(np.asarray(x, made.inputs[k].dtype), where[k]) for k, x in inputs.items()}

    def params(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters on their devices: those that lie there stay. What an encoder alone reads is whole on each."""
        where, mesh = self.shardings(), self.prefill.mesh
        assert mesh is not None
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return {
            k: x if isinstance(x, jax.Array) else parts.replicated(x, where.get(k, whole)) for k, x in given.items()
        }


def meshed(
    model: Model, place: Place, *, batch: int, capacity: int, chunk: int, sizes: Mapping[str, int] | None = None
) -> Meshed:
    """The programs of a session on a mesh. Raises SpecError with every problem of strategy, mesh and sizes."""

    def of(phase: str, seq: int | None) -> Program:
        asked = Request(phase, batch, capacity, seq, dict(sizes or {}), parallel=place.parallel)
        return program_of(build(model, asked, place.target, place.wires), phase, jax.devices())

    # a prefill of all that the cache holds would begin with an empty state, and the state would not be read
    return Meshed(of("prefill", chunk), of("decode", None))
