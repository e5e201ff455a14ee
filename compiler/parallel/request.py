"""What a user asks of a mesh and of a training step, as plain data: a child process gets it as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Topology:
    """How the chips of a machine are joined; shape of a whole pod, in chips."""

    kind: str
    pod_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wires:
    """The part of a machine file that a layout needs. Bytes/s one way, of a chip."""

    name: str
    links: int
    link_bytes_per_s: float
    topology: Topology
    dcn_bytes_per_s: float | None = None

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Wires:
        net = data["topology"]
        return Wires(**{**data, "topology": Topology(net["kind"], tuple(net["pod_shape"]))})


SCHEDULES = ("gpipe", "1f1b", "circular")


@dataclass(frozen=True)
class Parallel:
    """``strategy``: files of specs/parallelism joined by +. ``mesh``: "data=64,model=4", where one size may be -1;
    empty: all devices on the strategy's one mesh axis. ``schedule``: of a pipeline (``SCHEDULES``);
    ``microbatches``: into how many it divides the batch (None: as many as there should be); ``rounds``: how often each
    passes through all stages of a circular one."""

    strategy: str
    mesh: str = ""
    shard: tuple[str, ...] = ()
    replicate: tuple[str, ...] = ()
    slices: int = 1
    schedule: str = "gpipe"
    microbatches: int | None = None
    rounds: int = 1

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Parallel:
        return Parallel(**{**data, "shard": tuple(data["shard"]), "replicate": tuple(data["replicate"])})


@dataclass(frozen=True)
class Training:
    """How a training step is made. ``optimiser``: "adamw", "sgd"; ``moments``: dtype of the optimiser's moments;
    ``remat``: "full", "none", "dots", "auto" under ``remat_limit`` bytes a device, or names of blocks to keep;
    ``accumulate``: micro-batches of one update; ``clip``: largest global norm of the gradients; ``loss_chunk``:
    positions of each row whose logits exist at once (None: as many as fit a GiB a device)."""

    optimiser: str = "adamw"
    moments: str = "float32"
    remat: str = "full"
    remat_limit: float | None = None
    accumulate: int = 1
    clip: float | None = 1.0
    loss_chunk: int | None = None


@dataclass(frozen=True)
class Request:
    """One call of a model: what is compiled, explained or priced. ``logits``: "last" or "all"."""

    phase: str
    batch: int
    length: int
    chunk: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    logits: str | None = None
    training: Training = Training()
    parallel: Parallel | None = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Request:
        parallel = data.get("parallel")
        made = {**data, "training": Training(**data["training"])}
        return Request(**{**made, "parallel": Parallel.from_json(parallel) if parallel else None})
