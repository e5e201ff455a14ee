"""Machines: one YAML file each under ``specs/hardware``, every number with its unit and its source.

``machine("v5e")`` finds a shipped file by name or alias, ``machine("mine.yaml")`` reads another. A Machine's
numbers are SI and a chip's own: FLOP/s, bytes, bytes/s one way, watts. What a file does not say is not known
(an absent entry or None), never zero.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from compiler.errors import Problem, Problems, nearest
from compiler.source.yaml import YMap, load_file
from costmodel.errors import MachineError

# What to price a dtype at when a machine has no rate of its own for it, and why that is fair.
STAND_INS: dict[str, tuple[tuple[str, str], ...]] = {
    "float32": (
        ("tensorfloat32", "the compiler's default precision computes float32 products in TF32"),
        ("bfloat16", "the compiler's default precision computes float32 products from bfloat16 operands"),
    ),
    "float16": (("bfloat16", "16-bit products"),),
    "int8": (("bfloat16", "no int8 rate is known; operands are widened"),),
    "int4": (("int8", "operands are widened"), ("bfloat16", "operands are widened")),
}


@dataclass(frozen=True)
class Topology:
    """How the chips of a pod (TPU) or of a host (GPU) hang together."""

    kind: str  # "torus" | "switch" | "full_mesh"
    dimensions: int | None  # of a torus
    pod_shape: tuple[int, ...]  # the largest slice that one network joins; a GPU host: (8,)

    @property
    def chips(self) -> int:
        total = 1
        for size in self.pod_shape:
            total *= size
        return total


@dataclass(frozen=True)
class Rate:
    """A peak rate, and a sentence when it stands in for one that is not known."""

    flops_per_s: float
    note: str | None = None


@dataclass(frozen=True)
class Machine:
    """One chip and the network round it."""

    name: str
    kind: str  # "tpu" | "gpu" | "cpu"
    date: str
    aliases: tuple[str, ...]
    flops_per_s: Mapping[str, float]  # matrix products, dense, by dtype
    vector_flops_per_s: Mapping[str, float]  # element-wise, by dtype; {} where not known
    hbm_bytes: float  # physical
    usable_hbm_bytes: float | None  # what the compiler or driver leaves to programs
    hbm_bytes_per_s: float
    links: int  # of one chip
    link_bytes_per_s: float  # of one link, one way
    topology: Topology
    devices_per_chip: int  # what jax calls a device
    chips_per_host: int
    dcn_bytes_per_s: float | None  # a chip's share of its host's network, one way
    power_w: Mapping[str, float]  # "least" | "mean" | "most"
    sources: Mapping[str, str]
    alternatives: Mapping[str, str]  # by key: the figures not chosen, and why

    @property
    def pod_chips(self) -> int:
        return self.topology.chips

    @property
    def memory_bytes(self) -> float:
        """What a program may use: the usable part where known, else the whole."""
        return self.usable_hbm_bytes or self.hbm_bytes

    def matrix_rate(self, dtype: str) -> Rate:
        """Peak FLOP/s of products of ``dtype``. Raises MachineError where no known rate may stand in."""
        if dtype in self.flops_per_s:
            return Rate(self.flops_per_s[dtype])
        for other, why in STAND_INS.get(dtype, ()):
            if other in self.flops_per_s:
                note = f"{self.name} has no {dtype} matrix rate on file; priced at its {other} rate: {why}"
                return Rate(self.flops_per_s[other], note)
        raise MachineError(
            Problem(
                "unknown-rate",
                f"no peak FLOP/s of {dtype} products is known for {self.name}",
                None,
                tuple(self.flops_per_s),
            )
        )

    def as_json(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "topology"}
        plain = {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}
        return plain | {"topology": {"kind": self.topology.kind, "pod_shape": list(self.topology.pod_shape)}}


def hardware_folder() -> Path:
    """Where the shipped machine files are."""
    return Path(str(importlib.resources.files("specs"))) / "hardware"


def machines() -> tuple[str, ...]:
    """Names of the machines that are shipped."""
    return tuple(sorted(p.stem for p in hardware_folder().glob("*.yaml")))


@lru_cache(maxsize=64)
def machine(name_or_path: str | Path) -> Machine:
    """A machine by name, alias or path. Raises MachineError with every problem of its file."""
    text = str(name_or_path).strip()
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or "/" in text:
        return read(path)
    name = text.lower()
    known = machines()
    if name in known:
        return read(hardware_folder() / f"{name}.yaml", name=name)
    if name == "cpu":
        message = (
            "no numbers are shipped for the CPU, as they differ from machine to machine: write its file like those of "
            "specs/hardware; that path is then a machine's name"
        )
        raise MachineError(Problem("not-calibrated", message, None, known))
    aliases = {alias: found.name for found in map(machine, known) for alias in found.aliases}
    if name in aliases:
        return machine(aliases[name])
    near = nearest(name, known) or nearest(name, aliases)
    raise MachineError(Problem("unknown-machine", f"no machine is called {text!r}", None, known, near))


def read(path: Path, name: str | None = None) -> Machine:
    """The machine of a file; with ``name``, shown as the shipped file of that name."""
    problems = Problems()
    raw = load_file(path, problems, f"specs/hardware/{name}.yaml" if name else None)
    problems.raise_if_any(MachineError)
    assert raw is not None
    return _checked(raw, problems, name)


def _checked(raw: YMap, problems: Problems, name: str | None) -> Machine:
    from costmodel.machine_file import check  # pydantic is imported only when a file is read

    found = check(raw, problems)
    if found is not None and name is not None and found.name != name:
        problems.add(
            "wrong-name",
            f"this file is {name}.yaml and calls itself {found.name}",
            raw.value_position["name"],
        )
    problems.raise_if_any(MachineError)
    assert found is not None
    return Machine(
        name=found.name,
        kind=found.kind,
        date=found.date,
        aliases=tuple(found.aliases),
        flops_per_s={str(k): v for k, v in found.flops.items()},
        vector_flops_per_s={str(k): v for k, v in found.vector.items()},
        hbm_bytes=found.hbm,
        usable_hbm_bytes=found.usable_hbm,
        hbm_bytes_per_s=found.hbm_bandwidth,
        links=found.links.count,
        link_bytes_per_s=found.links.each,
        topology=Topology(found.topology.kind, found.topology.dimensions, tuple(found.topology.pod)),
        devices_per_chip=found.devices_per_chip,
        chips_per_host=found.chips_per_host,
        dcn_bytes_per_s=found.dcn,
        power_w={str(k): v for k, v in found.power.items()},
        sources=found.sources,
        alternatives={k: _told(a.found, a.why) for k, a in found.alternatives.items()},
    )


def _told(found: Mapping[str, str], why: str) -> str:
    return "; ".join(f"{value} ({source})" for value, source in found.items()) + f". {why}"
