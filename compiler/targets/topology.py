"""The devices of a target, for a mesh: compile-only ones for TPU and GPU, simulated ones for CPU."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from importlib import resources
from typing import Any

from compiler.errors import TargetError
from compiler.targets.environment import check_installed, compiler_variables
from compiler.targets.types import Target


def devices(target: Target) -> list[Any]:
    """The jax devices of ``target``, in the compiler's order; nothing of the machine itself is needed."""
    check_installed(target)
    for name, value in compiler_variables(target).items():
        os.environ.setdefault(name, value)  # a child of ``job.run`` has them already
    found = _cpu(target) if target.platform == "cpu" else _tpu(target) if target.platform == "tpu" else _gpu(target)
    if len(found) != target.devices:
        raise TargetError(f"{target} has {target.devices} devices, and the compiler gives {len(found)}", "devices")
    return found


def _cpu(target: Target) -> list[Any]:
    import jax

    found = jax.devices("cpu")
    if len(found) < target.devices:
        raise TargetError(
            f"this process has {len(found)} CPU devices and {target} needs {target.devices}: "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={target.devices} before jax is imported",
            "devices",
        )
    return list(found[: target.devices])


def _tpu(target: Target) -> list[Any]:
    options: dict[str, Any] = {"chip_config_name": "megacore"} if target.chip == "v4" else {}
    if target.shape[0] * target.shape[1] < 4:  # less than one host
        options["chips_per_host_bounds"] = (*target.shape, 1)[:3]
    if target.slices > 1:
        options["num_slices"] = target.slices
    name = "tpu7x" if target.chip == "7x" else target.chip
    return _described(target, f"{name}:{target.topology}", "tpu", options)


def _gpu(target: Target) -> list[Any]:
    hosts, gpus = target.shape
    # Partitions x hosts in one x GPUs of a host: NVLink ends at the host here.
    options = {"target_config": gpu_description(target.chip), "topology": f"{hosts}x1x{gpus}"}
    return _described(target, target.chip, "cuda", options)


def _described(target: Target, name: str, platform: str, options: dict[str, Any]) -> list[Any]:
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform, **options).devices)
    except (JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        raise TargetError(f"the compiler does not know {target}: {str(error).splitlines()[0]}", "devices") from error


@lru_cache
def gpu_description(chip: str) -> str:
    """The card's numbers in the text form of XLA's GpuTargetConfigProto."""
    place = resources.files("compiler.targets") / "gpu" / f"{chip.lower()}.txtpb"
    return place.read_text(encoding="utf-8")


def gpu_memory_bytes(chip: str) -> int:
    """The whole memory of the card, as its description has it."""
    found = re.search(r"\bdevice_memory_size: (\d+)", gpu_description(chip))
    assert found is not None, chip
    return int(found[1])
