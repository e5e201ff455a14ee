"""Memory before it is taken: what arrays need against what is free, so that a run is refused rather than killed."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compiler.errors import BlockgraphError, Problem
from compiler.graph.types import DTYPE_BITS, TensorType
from compiler.language.model import Model
from compiler.passes import pack
from compiler.passes.phase import phase_graph

# of a control group: its limit, what it uses, and the lines of its statistics that the kernel can take back
NEW = ("memory.max", "memory.current", ("inactive_file", "active_file"))
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


SHORTER = "a smaller --max-tokens, fewer prompts at once, or cheaper weights (--set weights=int4)"


class OutOfMemory(BlockgraphError):
    """More memory is needed than there is."""


def require(name: str, parts: Mapping[str, Mapping[str, Any]], mend: str = "") -> None:
    """Raises OutOfMemory where this process's devices have no room for arrays. ``parts``: what they are for -> shapes
    (jax.ShapeDtypeStruct) by label; one without a sharding lies on the first device. CPU devices share the machine's
    memory; of others the fullest one decides."""
    import jax

    first = jax.local_devices()[0]
    host = first.platform == "cpu"
    needed: dict[Any, dict[str, float]] = {}
    for part, shapes in parts.items():
        for shape in shapes.values():
            where = shape.sharding
            own = [first] if where is None else where.addressable_devices
            size = bytes_of(where.shard_shape(shape.shape) if where else shape.shape, shape.dtype)
            for device in own:
                row = needed.setdefault(None if host else device, {})
                row[part] = row.get(part, 0.0) + size
    for device, row in needed.items():
        require_bytes(name, row, free_bytes() if host else _free_on(device), mend, "" if host else f" on {device}")


def require_session(model: Model, batch: int, capacity: int) -> None:
    """The same of a session on one device of the machine's own memory, before its weights are read."""
    import jax

    if jax.default_backend() == "cpu":
        sizes = {"batch": batch, "seq": 1, "capacity": capacity}
        states = {k: t for k, (_, t) in phase_graph(model, "decode").states().items()}
        parts = {"parameters": held(pack.held(model)), "caches": held(states, sizes)}
        require_bytes(model.name, parts, free_bytes(), SHORTER)


def require_bytes(name: str, parts: Mapping[str, float], free: float | None, mend: str = "", where: str = "") -> None:
    """The same of bytes; ``free`` None: not known, and nothing is refused."""
    total = sum(parts.values())
    if free is None or total <= free:
        return
    each = " and ".join(f"{text(n)} of {part}" for part, n in parts.items() if n)
    message = f"{name} needs at least {text(total)} of memory{where} ({each}), and {text(free)} is free"
    raise OutOfMemory(Problem("out-of-memory", message, None, (), mend or None))


def held(types: Mapping[str, TensorType], sizes: Mapping[str, int] | None = None) -> float:
    """Bytes of tensors; those of a size that is not given count nothing."""
    total = 0.0
    for t in types.values():
        with contextlib.suppress(KeyError):
            total += float(t.bytes.evaluate(sizes or {}))
    return total


def bytes_of(shape: tuple[int, ...], dtype: Any) -> float:
    return math.prod(shape) * DTYPE_BITS.get(str(dtype), 32) / 8


def text(n: float) -> str:
    return f"{n / 2**30:,.1f} GiB" if n >= 2**29 else f"{n / 2**20:,.0f} MiB"


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """What JAX says where memory ends, as OutOfMemory."""
    try:
        yield
    except Exception as error:
        found = exhausted(error)
        if found is None:
            raise
        raise OutOfMemory(Problem("out-of-memory", f"{name}: {found}")) from None


def exhausted(error: BaseException) -> str | None:
    """One line of an error of JAX that says that memory ended; None of another error."""
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in str(error):
        return None
    return str(error).strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")[:300]


def _free_on(device: Any) -> float | None:
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def free_bytes(root: Path = Path("/")) -> float | None:
    """Bytes that this process can still take of the machine and of the control groups that hold it; None where
    neither tells. ``root``: of the file system that tells."""
    found = [*_machine(root), *_groups(root)]
    return max(0.0, min(found)) if found else None


def _machine(root: Path) -> Iterator[float]:
    lines = dict(line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" in lines:
        yield float(lines["MemAvailable"].split()[0]) * 1024
    elif root == Path("/"):
        with contextlib.suppress(ValueError, OSError, AttributeError):  # no Linux: all that it has
            yield float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _groups(root: Path) -> Iterator[float]:
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        steps = [p for p in path.split("/") if p not in ("", "..")]
        for n in range(len(steps) + 1):  # a group's limit holds for all below it
            yield from _left(base.joinpath(*steps[:n]), OLD if controllers else NEW)


def _left(folder: Path, names: tuple[str, str, tuple[str, ...]]) -> Iterator[float]:
    limit, used = (_read(folder / name).strip() for name in names[:2])
    if limit.isdigit() and used.isdigit():
        stats = dict(line.split() for line in _read(folder / "memory.stat").splitlines() if len(line.split()) == 2)
        yield float(limit) - float(used) + sum(float(stats.get(k, 0)) for k in names[2])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
