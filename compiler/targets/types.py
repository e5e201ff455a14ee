"""Target names: ``cpu``, ``cpu:8``, ``tpu:v5e:2x4``, ``tpu:v5p:4x4x4:slices=2``, ``gpu:h100:1x8``.

Parsing needs neither jax nor a compiler, so a wrong target is told before anything starts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compiler.errors import Problem, TargetError, nearest

Platform = Literal["cpu", "tpu", "gpu"]

GRAMMAR = ("cpu", "cpu:<devices>", "tpu:<type>:<topology>[:slices=<n>]", "gpu:<type>:<hosts>x<gpus>")
MOST_CPU_DEVICES = 1024
MOST_SLICES = 256
MOST_GPU_HOSTS = 4096
MOST_GPUS_A_HOST = 8


@dataclass(frozen=True)
class TpuChip:
    """What a type of TPU may be arranged as."""

    name: str
    dimensions: int  # axes of the torus
    devices_per_chip: int  # what the compiler calls a device: v4 runs as megacore, 7x shows both halves
    most_chips: int  # one pod


TPU_CHIPS = {
    chip.name: chip
    for chip in (
        TpuChip("v4", 3, 1, 4096),
        TpuChip("v5e", 2, 1, 256),
        TpuChip("v5p", 3, 1, 8960),
        TpuChip("v6e", 2, 1, 256),
        TpuChip("7x", 3, 2, 9216),
    )
}
TPU_ALIASES = {"tpu7x": "7x"}
GPU_CHIPS = ("A100", "H100", "H200", "B200")

DEFAULT_PRECISION: dict[str, str] = {
    "cpu": "float32 products are computed in float32",
    "tpu": "float32 products are computed from bfloat16 operands and summed in float32 "
    "unless the program asks for more",
    "gpu": "float32 products are computed in TF32 and summed in float32 unless the program asks for more",
}


@dataclass(frozen=True)
class Target:
    """One machine, or a group of them, to compile for."""

    platform: Platform
    chip: str  # "cpu", "v5e", "H100", ...
    topology: str  # "8", "2x4", "4x4x4", "1x8" (hosts x GPUs)
    chips: int
    devices: int  # what a mesh is made of; not always one a chip
    precision: str  # what the compiler does to float32 products by default, in a sentence
    slices: int = 1

    @property
    def text(self) -> str:
        """The canonical name; ``parse_target(target.text) == target``."""
        if self.platform == "cpu":
            return "cpu" if self.devices == 1 else f"cpu:{self.devices}"
        slices = f":slices={self.slices}" if self.slices > 1 else ""
        return f"{self.platform}:{self.chip}:{self.topology}{slices}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The topology as numbers."""
        return tuple(int(size) for size in self.topology.split("x"))

    def __str__(self) -> str:
        return self.text


def parse_target(text: str) -> Target:
    """The target that ``text`` names, or a TargetError that says what is allowed."""
    if not isinstance(text, str) or not text.strip():
        raise _error("unknown-target", "no target is given", GRAMMAR)
    platform, *parts = text.strip().lower().split(":")
    if platform == "cpu":
        return _cpu(text, parts)
    if platform == "tpu":
        return _tpu(text, parts)
    if platform == "gpu":
        return _gpu(text, parts)
    raise _error("unknown-target", f"{text!r} is not a target", GRAMMAR, _other_platform(platform, parts))


def _cpu(text: str, parts: Sequence[str]) -> Target:
    if len(parts) > 1:
        raise _error("unknown-target", f"{text!r} has a part too many", GRAMMAR[:2], f"cpu:{parts[0]}")
    count = _number(parts[0]) if parts else 1
    if count is None or not 1 <= count <= MOST_CPU_DEVICES:
        allowed = [f"cpu:1 to cpu:{MOST_CPU_DEVICES}"]
        raise _error("bad-topology", f"{text!r} asks for {parts[0]!r} simulated devices", allowed)
    return Target("cpu", "cpu", str(count), 1, count, DEFAULT_PRECISION["cpu"])


def _tpu(text: str, parts: Sequence[str]) -> Target:
    name = TPU_ALIASES.get(parts[0], parts[0]) if parts else ""
    if name not in TPU_CHIPS:
        raise _unknown_chip(text, "TPU", name, list(TPU_CHIPS))
    chip = TPU_CHIPS[name]
    rest = list(parts[1:])
    slices = 1
    if rest and rest[-1].startswith("slices"):
        slices = _slices(text, rest.pop())
    if len(rest) > 1:
        raise _error("unknown-target", f"{text!r} has the unknown part {rest[1]!r}", ["slices=<n>"])
    topology = rest[0] if rest else "x".join(["1"] * chip.dimensions)
    problem = _tpu_topology_problem(chip, topology)
    if problem is not None:
        raise TargetError(problem)
    chips = math.prod(_sizes(topology) or ()) * slices
    topology = "x".join(str(size) for size in _sizes(topology) or ())
    precision = DEFAULT_PRECISION["tpu"]
    return Target("tpu", chip.name, topology, chips, chips * chip.devices_per_chip, precision, slices)


def _slices(text: str, part: str) -> int:
    count = _number(part.removeprefix("slices="))
    if count is None or not 1 <= count <= MOST_SLICES:
        raise _error("bad-topology", f"{text!r} says {part!r}", [f"slices=1 to slices={MOST_SLICES}"])
    return count


def _tpu_topology_problem(chip: TpuChip, topology: str) -> Problem | None:
    sizes = _sizes(topology)
    allowed = _allowed_topologies(chip)
    found = f"{chip.name} has no topology {topology!r}"
    if sizes is None or len(sizes) != chip.dimensions:
        found += f"; it takes {chip.dimensions} sizes of 1 or more, joined by x"
        padded = (*sizes, 1) if sizes and len(sizes) == chip.dimensions - 1 else None
        good = padded is not None and _tpu_shape_ok(chip, padded)
        return Problem("bad-topology", found, None, allowed, _joined(padded) if padded and good else None)
    if _tpu_shape_ok(chip, sizes):
        return None
    return Problem("bad-topology", found, None, allowed, _nearest_shape(chip, sizes))


def _tpu_shape_ok(chip: TpuChip, sizes: Sequence[int]) -> bool:
    """One host holds 2x2(x1) chips or fewer; v5e and v6e grow by whole hosts in a plane up to a pod of 16x16,
    the others by whole hosts inside a cube of 4x4x4 and then by whole cubes."""
    x, y, *depth = sizes
    if (x, y) in ((1, 1), (1, 2), (2, 1)):
        return depth in ([], [1])
    if chip.dimensions == 2:
        return x % 2 == 0 and y % 2 == 0 and max(x, y) <= 16
    (z,) = depth
    if max(sizes) <= 4:
        return x in (2, 4) and y in (2, 4) and z in (1, 2, 4)
    return all(size % 4 == 0 for size in sizes) and math.prod(sizes) <= chip.most_chips


def _allowed_topologies(chip: TpuChip) -> tuple[str, ...]:
    if chip.dimensions == 2:
        return ("1x1", "1x2", "2x1", "<a>x<b> with a and b even, 2 to 16")
    return (
        "1x1x1", "1x2x1", "2x1x1",
        "<a>x<b>x<c> with a and b 2 or 4, c 1, 2 or 4",
        f"<a>x<b>x<c> with each a multiple of 4, up to {chip.most_chips} chips",
    )  # fmt: skip


def _nearest_shape(chip: TpuChip, sizes: Sequence[int]) -> str | None:
    """The smallest legal topology that holds at least what was asked for, size by size."""
    step = 2 if chip.dimensions == 2 else 4
    rounded = tuple(-(-size // step) * step for size in sizes)
    small = tuple(1 if i == 2 and s == 1 else 1 << (s - 1).bit_length() for i, s in enumerate(sizes))
    small = (max(small[0], 2), max(small[1], 2), *small[2:])
    return next((_joined(shape) for shape in (small, rounded) if _tpu_shape_ok(chip, shape)), None)


def _gpu(text: str, parts: Sequence[str]) -> Target:
    names = {chip.lower(): chip for chip in GPU_CHIPS}
    name = parts[0] if parts else ""
    if name not in names:
        raise _unknown_chip(text, "GPU", name.upper(), GPU_CHIPS)
    allowed = [f"gpu:{name}:<hosts>x<gpus> with 1 to {MOST_GPU_HOSTS} hosts, 1 to {MOST_GPUS_A_HOST} GPUs each"]
    if len(parts) > 2:
        raise _error("unknown-target", f"{text!r} has the unknown part {parts[2]!r}", allowed)
    topology = parts[1] if len(parts) == 2 else "1x1"
    sizes = _sizes(topology)
    if sizes is None or len(sizes) != 2 or sizes[0] > MOST_GPU_HOSTS or sizes[1] > MOST_GPUS_A_HOST:
        mend = _hosts_by_gpus(math.prod(sizes)) if sizes else None
        suggestion = f"gpu:{name}:{mend}" if mend else None
        raise _error("bad-topology", f"{text!r} has no topology <hosts>x<gpus>", allowed, suggestion)
    chips = math.prod(sizes)
    return Target("gpu", names[name], _joined(sizes), chips, chips, DEFAULT_PRECISION["gpu"])


def _hosts_by_gpus(count: int) -> str | None:
    if count <= MOST_GPUS_A_HOST:
        return f"1x{count}"
    whole = count % MOST_GPUS_A_HOST == 0 and count // MOST_GPUS_A_HOST <= MOST_GPU_HOSTS
    return f"{count // MOST_GPUS_A_HOST}x{MOST_GPUS_A_HOST}" if whole else None


def _other_platform(platform: str, parts: Sequence[str]) -> str | None:
    """``v5e:2x4`` and ``h100`` lack their first word; ``tup:v5e`` has it wrong."""
    rest = "".join(f":{part}" for part in parts)
    if platform in TPU_CHIPS or platform in TPU_ALIASES:
        return f"tpu:{platform}{rest}"
    if platform.upper() in GPU_CHIPS:
        return f"gpu:{platform}{rest}"
    near = nearest(platform, ("cpu", "tpu", "gpu"))
    return f"{near}{rest}" if near else None


def _unknown_chip(text: str, kind: str, name: str, known: Sequence[str]) -> TargetError:
    found = f"{text!r} names the {kind} type {name!r}" if name else f"{text!r} names no {kind} type"
    suggestion = nearest(name, known)
    return _error("unknown-chip", found, [f"{kind.lower()}:{one}" for one in known], suggestion)


def _sizes(topology: str) -> tuple[int, ...] | None:
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", topology, re.ASCII):
        return None
    return tuple(int(size) for size in topology.split("x"))


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) else None


def _joined(sizes: Sequence[int]) -> str:
    return "x".join(str(size) for size in sizes)


def _error(code: str, found: str, allowed: Sequence[str], suggestion: str | None = None) -> TargetError:
    return TargetError(Problem(code, found, None, tuple(allowed), suggestion))
