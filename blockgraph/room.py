"""A program that does not fit: what takes the room, and the nearest settings that would fit by our own figures.

The compiler said what it needs; our working memory is scaled to that, and each changed setting is built anew and
priced with the same scale. Only settings that need less are told.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from blockgraph.meshes import MEMORY, Figures, build, machine_of
from blockgraph.meshes import Device as DeviceView
from compiler.errors import BlockgraphError
from compiler.language.model import Model
from compiler.parallel.request import Parallel, Request
from compiler.passes.call import TRAIN
from compiler.targets.result import Result
from compiler.targets.types import Target, parse_target

MOST_SECONDS = 30.0
MOST_STEPS = 6  # of a setting that is halved or doubled again and again
SHOWN = 6
MARGIN = 0.05  # of a device's memory; gemma2-9b training on v5e needed up to 8% more than estimated here
DIVIDED = ("fsdp", "data", "dcn_data", "model")  # mesh axes that take more chips, in this order
Change = tuple[str, Request, Target]


@dataclass(frozen=True)
class Setting:
    """Options to change, and what a device would then need by our estimate."""

    options: str
    needed_bytes: float
    fits: bool

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def available(result: Result, target: Target) -> float | None:
    """Bytes of a device that a program may use."""
    if result.available_bytes is not None:
        return float(result.available_bytes)
    m = machine_of(target)
    return None if m is None else m.memory_bytes / (target.devices // target.chips)


def taken(result: Result) -> float | None:
    """Bytes that the compiler's program takes of a device, all together."""
    m = result.memory
    if result.needed_bytes is not None:
        return float(result.needed_bytes)
    if not m or m.get("argument_bytes") is None:
        return None
    kinds = ("argument_bytes", "output_bytes", "temp_bytes", "generated_code_bytes")
    return float(sum(m.get(k) or 0 for k in kinds) - (m.get("alias_bytes") or 0))


def settings(
    model: Model, figures: Figures, result: Result, progress: Callable[[str], None] | None = None
) -> tuple[Setting, ...]:
    """Settings that need less than was refused: those that fit, the nearest first; where none does, the best."""
    have = available(result, figures.target)
    if have is None:
        return ()
    if progress is not None:
        progress("looking for settings that fit")
    return tuple(_Search(model, figures, taken(result), have).run())


class _Search:
    def __init__(self, model: Model, figures: Figures, needed: float | None, have: float) -> None:
        self.model, self.asked, self.target, self.have = model, figures.request, figures.target, have
        now = figures.device.memory()
        exact = sum(v for k, v in now.items() if k != "working")
        self.needed = needed if needed is not None else exact + now["working"]
        scale = (self.needed - exact) / now["working"] if now["working"] else 1.0
        self.scale = scale if scale > 0 else 1.0
        self.end = time.monotonic() + MOST_SECONDS

    def run(self) -> list[Setting]:
        found = self._tried(self.asked, "")
        if not any(s.fits for s in found):
            together, words = _frugal(self.asked)
            if words.count("--") > 1:
                one = self._need((words, together, self.target))
                found += [one] if one is not None else []
            if words:
                found += self._tried(together, f"{words} ")
        fitting = [s for s in found if s.fits]
        best = sorted({s.options: s for s in found}.values(), key=lambda s: s.needed_bytes)[:3]
        return list({s.options: s for s in fitting}.values())[:SHOWN] or best

    def _tried(self, asked: Request, before: str) -> list[Setting]:
        found = []
        for ladder in _ladders(asked, self.target):
            best: Setting | None = None
            for change in ladder:
                if time.monotonic() > self.end:
                    break
                made = self._need((before + change[0], change[1], change[2]))
                if made is not None:
                    best = made
                    if made.fits:
                        break
            found += [best] if best is not None else []
        return found

    def _need(self, change: Change) -> Setting | None:
        """What the changed call would need; None where it cannot be built or needs no less."""
        words, asked, target = change
        try:
            memory = DeviceView(build(self.model, asked, target)).memory()
        except BlockgraphError:
            return None
        needed = sum(v * (self.scale if k == "working" else 1.0) for k, v in memory.items())
        return Setting(words, needed, needed <= (1 - MARGIN) * self.have) if needed < self.needed else None


def _frugal(asked: Request) -> tuple[Request, str]:
    """All that saves memory in a training step and changes neither batch nor machine."""
    if asked.phase != TRAIN:
        return asked, ""
    made, words = asked.training, []
    if made.remat != "full":
        made, words = replace(made, remat="full", remat_limit=None), ["--remat full"]
    if made.moments != "bfloat16":
        made, words = replace(made, moments="bfloat16"), [*words, "--moments bfloat16"]
    return replace(asked, training=made), " ".join(words)


def _ladders(asked: Request, target: Target) -> Iterator[Iterator[Change]]:
    """Kinds of changes, the mildest first; each goes further step by step."""
    training = asked.training
    if asked.phase == TRAIN:
        if training.remat != "full":
            made = replace(training, remat="full", remat_limit=None)
            yield iter([("--remat full", replace(asked, training=made), target)])
        yield _accumulating(asked, target)
        if training.moments == "float32":
            made = replace(training, moments="bfloat16")
            yield iter([("--moments bfloat16", replace(asked, training=made), target)])
    if asked.parallel is None and target.devices > 1:
        yield _default(asked, target, "")
    if asked.parallel is not None:
        yield _divided_parameters(asked, target)
        for source, to in _pairs(asked.parallel.mesh):
            yield _shifted(asked, target, source, to)
    yield ((f"--batch {n}", replace(asked, batch=n), target) for n in _halves(asked.batch))
    if asked.phase != TRAIN:
        yield ((f"--length {n}", replace(asked, length=n), target) for n in _halves(asked.length))
    yield _larger(asked, target)


def _halves(n: int) -> Iterator[int]:
    for _ in range(MOST_STEPS):
        if n % 2:
            return
        n //= 2
        yield n


def _accumulating(asked: Request, target: Target) -> Iterator[Change]:
    n = asked.training.accumulate
    for _ in range(MOST_STEPS):
        n *= 2
        if asked.batch % n:
            return
        yield f"--accumulate {n}", replace(asked, training=replace(asked.training, accumulate=n)), target


def _default(asked: Request, target: Target, before: str) -> Iterator[Change]:
    """A strategy for a call that has none."""
    names = ("fsdp",) if asked.phase == TRAIN else ("tensor", "fsdp")
    for name in names:
        for whole in ((), ("kv_heads",)) if name == "tensor" else ((),):
            words = f"{before}--parallel {name}" + "".join(f" --replicate {a}" for a in whole)
            yield words, replace(asked, parallel=Parallel(name, replicate=whole, slices=target.slices)), target


def _divided_parameters(asked: Request, target: Target) -> Iterator[Change]:
    """Of replicas, parameters divided too: the same mesh axis under another name."""
    old = asked.parallel
    assert old is not None
    parts = old.strategy.split("+")
    for name in ("data", "zero1", "zero2"):
        if name in parts and "fsdp" not in parts:
            strategy = "+".join("fsdp" if p == name else p for p in parts)
            mesh = ",".join(f"fsdp={p[5:]}" if p.startswith("data=") else p for p in old.mesh.split(",") if p)
            words = f"--parallel {strategy}" + (f" --mesh {mesh}" if mesh else "")
            yield words, replace(asked, parallel=replace(old, strategy=strategy, mesh=mesh)), target


def _sizes(mesh: str) -> dict[str, int]:
    parts = [part.partition("=") for part in mesh.split(",") if part]
    return {name.strip(): int(size) for name, _, size in parts}


def _text(sizes: dict[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def _pairs(mesh: str) -> list[tuple[str, str]]:
    sizes = _sizes(mesh)
    return [(a, b) for b in sizes for a in sizes if a != b and sizes[a] > 1]


def _shifted(asked: Request, target: Target, source: str, to: str) -> Iterator[Change]:
    """More of one mesh axis and less of another."""
    old = asked.parallel
    assert old is not None
    sizes = _sizes(old.mesh)
    for n in _halves(sizes[source]):
        factor = sizes[source] // n
        mesh = _text({**sizes, source: n, to: sizes[to] * factor if sizes[to] > 0 else -1})
        yield f"--mesh {mesh}", replace(asked, parallel=replace(old, mesh=mesh)), target


def _larger(asked: Request, target: Target) -> Iterator[Change]:
    """More chips, on the mesh axis that divides most."""
    old, sizes = asked.parallel, _sizes(asked.parallel.mesh) if asked.parallel is not None else {}
    axis = next((a for a in (*DIVIDED, *sizes) if a in sizes), None)
    for bigger in _bigger(target):
        words = f"--target {bigger}"
        if old is None:
            yield from _default(asked, bigger, f"{words} ")
            continue
        made = old
        if axis is not None and sizes[axis] > 0:
            mesh = _text({**sizes, axis: sizes[axis] * (bigger.devices // target.devices)})
            made, words = replace(old, mesh=mesh), f"{words} --mesh {mesh}"
        yield words, replace(asked, parallel=made), bigger


def _bigger(target: Target) -> Iterator[Target]:
    """The same chips, twice as many each time."""
    now = target
    for _ in range(MOST_STEPS):
        shape = list(now.shape)
        tried = sorted(range(len(shape)), key=lambda i: (shape[i], -i if now.platform == "gpu" else i))
        nexts = [[2 * s if i == j else s for j, s in enumerate(shape)] for i in tried]
        if len(shape) > 1 and now.chips == 1 and now.platform == "tpu":
            nexts = [[2, 2, *shape[2:]], *nexts]
        made = next((t for sides in nexts if (t := _parsed(now, sides)) is not None), None)
        if made is None:
            return
        now = made
        yield now


def _parsed(target: Target, sides: list[int]) -> Target | None:
    if target.platform == "cpu":
        return None
    slices = f":slices={target.slices}" if target.slices > 1 else ""
    try:
        return parse_target(f"{target.platform}:{target.chip}:{'x'.join(map(str, sides))}{slices}")
    except BlockgraphError:
        return None


def largest(figures: Figures) -> list[tuple[str, float]]:
    """What takes the room of a device by our figures, the largest first."""
    found = figures.device.memory()
    return sorted(((MEMORY[k], v) for k, v in found.items() if v), key=lambda row: -row[1])
