"""The wires of a machine: its dimensions, which of them close to rings, and what a device can send along each.

Chips and devices are two things: a tpu7x chip is two devices, which share the chip's links and talk on the chip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from compiler.errors import Problem, SpecError
from compiler.targets.types import Target


class Net(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def pod_shape(self) -> tuple[int, ...]: ...


class Wires(Protocol):
    """What is needed of a machine file (costmodel.machines.Machine has it); bytes/s one way, of a chip."""

    @property
    def name(self) -> str: ...
    @property
    def links(self) -> int: ...
    @property
    def link_bytes_per_s(self) -> float: ...
    @property
    def topology(self) -> Net: ...
    @property
    def dcn_bytes_per_s(self) -> float | None: ...


@dataclass(frozen=True)
class Dim:
    """One dimension of the machine."""

    name: str  # "slice", "x", "y", "z", "core", "host", "gpu", "device"
    size: int
    kind: str  # "network" | "torus" | "core" | "switch" | "full_mesh" | "simulated"
    bytes_per_s: float  # one way: of one link (torus, full_mesh), of a device (else)
    wrap: bool = False  # a torus dimension whose ends are joined

    def alike(self, other: Dim) -> bool:
        """Whether nothing but the name tells them apart."""
        mine, theirs = ((d.size, d.kind, d.bytes_per_s, d.wrap) for d in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class Network:
    """Dimensions, major first; ``numbering``: their order, major first, in the devices' numbers."""

    dims: tuple[Dim, ...]
    numbering: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        return math.prod(d.size for d in self.dims)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dims)

    def size(self, name: str) -> int:
        return next((d.size for d in self.dims if d.name == name), 1)

    def strides(self) -> tuple[int, ...]:
        """What one step along each dimension adds to a device's number."""
        found: dict[str, int] = {}
        step = 1
        for name in reversed(self.numbering):
            found[name] = step
            step *= self.size(name)
        return tuple(found[d.name] for d in self.dims)


def wraps(shape: Sequence[int], pod: Sequence[int]) -> tuple[bool, ...]:
    """Which sides of a TPU slice are rings: in three dimensions all, when the slice is made of whole cubes of 4x4x4;
    in two the sides that are as long as the pod's."""
    if len(shape) == 3:
        return (all(side % 4 == 0 for side in shape),) * 3
    return tuple(side == most for side, most in zip(shape, pod, strict=True))


def network(target: Target, machine: Wires | None = None) -> Network:
    """The network of a target. ``machine`` may be left out for the CPU only. Raises SpecError where a bandwidth that
    is needed is not known."""
    if target.platform == "cpu":
        free = Dim("device", target.devices, "simulated", math.inf)
        return Network((free,), ("device",), ("simulated devices: no link is priced",))
    if machine is None:
        raise SpecError(Problem("missing-machine", f"the links of {target} are a machine's: none is given"))
    across, joined = ("slice", target.slices) if target.platform == "tpu" else ("host", target.shape[0])
    if joined > 1 and machine.dcn_bytes_per_s is None:
        message = f"the network between {across}s of {machine.name} is not on file: its key is dcn"
        raise SpecError(Problem("unknown-rate", message))
    per_chip = target.devices // target.chips
    outer = Dim(across, joined, "network", (machine.dcn_bytes_per_s or math.inf) / per_chip)
    if target.platform == "gpu":
        full = machine.topology.kind == "full_mesh"
        each = machine.link_bytes_per_s * (1 if full else machine.links)
        return Network((outer, Dim("gpu", target.shape[1], "full_mesh" if full else "switch", each)), ("host", "gpu"))
    sides = "xyz"[: len(target.shape)]
    rings = wraps(target.shape, machine.topology.pod_shape)
    torus = tuple(
        Dim(name, side, "torus", machine.link_bytes_per_s, ring)
        for name, side, ring in zip(sides, target.shape, rings, strict=True)
    )
    numbering = (across, *reversed(sides))
    if per_chip == 1:
        return Network((outer, *torus), numbering)
    inside = Dim("core", per_chip, "core", machine.links * machine.link_bytes_per_s)
    note = f"between the {per_chip} devices of a chip: taken as all of its links together, no figure is on file"
    return Network((outer, *torus, inside), (*numbering, "core"), (note,))
