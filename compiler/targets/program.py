"""What the worker does to one lowered program: its hash, its text, its compile, its export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from compiler.errors import TargetError
from compiler.targets import environment
from compiler.targets.result import cost_figures, is_refusal, memory_figures, refusal_sizes
from compiler.targets.topology import gpu_description, gpu_memory_bytes
from compiler.targets.types import Target

LONGEST_TEXT = 64 * 2**20  # characters of StableHLO that are written in full
EXPORT_PLATFORMS = {"cpu": "cpu", "tpu": "tpu", "gpu": "cuda"}


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def program_hash(text: str, target: Target, lowered: Any, args: Any, options: Mapping[str, Any]) -> str:
    """StableHLO says the mesh's shape but not which device is where: their order is hashed beside it."""
    card = gpu_description(target.chip) if target.platform == "gpu" else ""
    rest = [target.text, environment.xla_flags(target), card, sorted(options.items()), _meshes(lowered, args)]
    digest = hashlib.sha256(text.encode())
    digest.update(json.dumps(rest, default=str).encode())
    return digest.hexdigest()


def _meshes(lowered: Any, args: Any) -> list[Any]:
    """Each different mesh of the arguments: axis names, shape and device numbers in order."""
    import jax

    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(args)]
    inside = getattr(getattr(lowered, "_lowering", None), "compile_args", None) or {}
    for name in ("in_shardings", "out_shardings"):
        shardings += jax.tree.leaves(inside.get(name, ()))
    meshes: dict[str, Any] = {}
    for mesh in {id(m): m for m in (getattr(s, "mesh", None) for s in shardings) if m is not None}.values():
        places = getattr(mesh, "devices", None)
        if places is not None:
            said = [list(mesh.axis_names), list(places.shape), [device.id for device in places.flat]]
            meshes[json.dumps(said)] = said
    return [meshes[key] for key in sorted(meshes)]


def readable(text: str, lowered: Any) -> tuple[str, str | None]:
    """The text to write; constants are left out of one that is enormous, and a note says so."""
    if len(text) <= LONGEST_TEXT:
        return text, None
    short = lowered.compiler_ir("stablehlo").operation.get_asm(large_elements_limit=16)
    note = f"stablehlo.txt has its large constants elided: in full it has {len(text):,} characters"
    return f"// {note}\n{short}", note


def compile_lowered(lowered: Any, target: Target, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The compiler's verdict as fields of a Result, and the optimised HLO."""
    try:
        compiled = lowered.compile(compiler_options=options or None)
    except Exception as error:
        message = str(error)
        if is_refusal(message):
            needed, available = refusal_sizes(message)
            return _refused("compiler", message, needed, available), None
        raise TargetError(f"the compiler for {target} failed: {first_line(error)}", "compiler-failed") from error
    memory = memory_figures(compiled.memory_analysis(), target.platform)
    notes: list[str] = []
    outcome: dict[str, Any] = {"verdict": "accepted", "memory": memory, "notes": notes}
    outcome["cost"] = cost_figures(_asked(compiled, "cost_analysis", notes))
    if target.platform == "gpu":
        outcome |= _size_check(target, memory)
    return outcome, _asked(compiled, "as_text", notes)


def _asked(compiled: Any, what: str, notes: list[str]) -> Any:
    """A libtpu that does not match jax compiles and then fails to tell about it."""
    try:
        return getattr(compiled, what)()
    except Exception as error:
        notes.append(f"the compiler accepted the program and then failed at {what}: {first_line(error)}")
        return None


def _size_check(target: Target, memory: Mapping[str, int | None]) -> dict[str, Any]:
    """XLA for GPU compiles what cannot fit; the sizes it gives are held against the card's whole memory."""
    available = gpu_memory_bytes(target.chip)
    whole = sum(memory[key] or 0 for key in ("argument_bytes", "output_bytes", "temp_bytes"))
    needed = memory["peak_bytes"] or whole - (memory["alias_bytes"] or 0)
    if needed <= available:
        return {}
    message = f"the program needs {needed:,} bytes on each {target.chip}, which has {available:,}"
    return _refused("memory size", message, needed, available)


def _refused(by: str, message: str, needed: int | None, available: int | None) -> dict[str, Any]:
    return {
        "verdict": "refused", "refused_by": by, "message": message,
        "needed_bytes": needed, "available_bytes": available,
    }  # fmt: skip


def exported(built: Any, target: Target) -> bytes:
    """The program as jax.export bytes for this platform alone."""
    from jax import export

    artifact = export.export(built.jitted, platforms=[EXPORT_PLATFORMS[target.platform]])(*built.args)
    return bytes(artifact.serialize())
