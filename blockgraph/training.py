"""Training in Python and for the command line: the machine's own devices, batches, and where everything lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compiler.errors import BlockgraphError, Problem, TargetError
from compiler.language.model import Model, load
from compiler.parallel.request import Parallel, Request, Training
from compiler.targets.types import DEFAULT_PRECISION, Target, parse_target

if TYPE_CHECKING:
    from runtime.meshed import Place
    from runtime.train import Step, Trainer


@dataclass(frozen=True)
class Run:
    """A training that is ready: ``steps`` runs it. ``target``: the machine; ``notes``: what the user should know."""

    trainer: Trainer
    steps: Callable[[], Iterator[Step]]
    target: Target
    devices: int
    notes: tuple[str, ...] = ()
    tokenizer: Path | None = None  # of the text; None: its bytes
    text: bool = False  # whether there is one

    def save(self, folder: str | Path) -> list[Path]:
        """Writes the weights as safetensors under our own labels, and the text's tokenizer: what ``generate`` takes
        as its weights. All processes call it, the first writes."""
        found = self.trainer.save(Path(folder))
        if found and self.text:
            from runtime.text.bytes import byte_tokenizer
            from runtime.text.tokenizer import tokenizer

            (byte_tokenizer() if self.tokenizer is None else tokenizer(self.tokenizer)).save(Path(folder))
        return found


def own_machine() -> Target:
    """The target that this machine's devices are, of all processes together. One that is no machine on file can run
    programs, but no mesh: its links are not known."""
    from runtime import device

    try:
        return parse_target(device.own_target())
    except TargetError:
        platform, kind, count = device.attached()
        if platform not in ("gpu", "tpu"):
            raise
        chosen: Literal["gpu", "tpu"] = "gpu" if platform == "gpu" else "tpu"
        return Target(chosen, kind, f"1x{count}", count, count, DEFAULT_PRECISION[chosen])


def parallel_here(
    target: Target, strategy: str | None, mesh: str | None = None, shard: Sequence[str] = (),
    replicate: Sequence[str] = (), slices: int | None = None, default: str = "fsdp",
    schedule: str | None = None, microbatches: int | None = None, rounds: int | None = None,
) -> tuple[Parallel | None, tuple[str, ...]]:  # fmt: skip
    """What was asked of a mesh on the machine's own devices, and notes. Several processes without a strategy get
    ``default`` over all devices: a program on one device would leave the others out."""
    from blockgraph.meshes import parallel_of
    from runtime import device

    processes = device.processes()
    if strategy is None and mesh is None and processes > 1:
        note = f"{processes} processes: --parallel {default} over all {target.devices} devices"
        return parallel_of(default, None, shard, replicate, slices, target), (note,)
    asked = parallel_of(strategy, mesh, shard, replicate, slices, target, schedule, microbatches, rounds)
    notes: tuple[str, ...] = ()
    if asked is None and target.devices > 1:
        notes = (f"one of {target.devices} devices is used: --parallel {default} uses all",)
    return asked, notes


def prepare(
    model: Model | str,
    *,
    steps: int,
    text: str | Path | None = None,
    synthetic: bool = False,
    tokenizer: str | Path | None = None,
    batch: int = 8,
    length: int = 128,
    lr: float = 1e-3,
    warmup: int = 0,
    seed: int = 0,
    weights: str | Path | None = None,
    training: Training | None = None,
    mesh: str | None = None,
    parallel: str | None = None,
    shard: Sequence[str] = (),
    replicate: Sequence[str] = (),
    slices: int | None = None,
    schedule: str | None = None,
    microbatches: int | None = None,
    rounds: int | None = None,
    sizes: Mapping[str, int] | None = None,
    progress: Any = None,
) -> Run:
    """Places a model on this machine's devices and compiles nothing yet; ``steps()`` of what comes back trains. The
    batches are windows of ``text`` (by ``tokenizer``, else bytes), or random tokens where ``synthetic``. Two runs
    with one seed give the same numbers. Raises BlockgraphError."""
    from runtime import device

    data(text, synthetic)
    if not (math.isfinite(lr) and lr >= 0):
        raise BlockgraphError(Problem("out-of-range", f"lr = {lr}: takes a finite number of 0 or more"))
    device.prepare()
    from runtime import batches
    from runtime.session import rows_of
    from runtime.train import Trainer

    model = load(model) if isinstance(model, str) else model
    target = own_machine()
    asked, notes = parallel_here(
        target,
        parallel,
        mesh,
        shard,
        replicate,
        slices,
        schedule=schedule,
        microbatches=microbatches,
        rounds=rounds,
    )
    request = Request("train", batch, length, None, dict(sizes or {}), None, training or Training(), asked)
    vocab = rows_of(model)
    if text is not None:
        _only_tokens(model)
        ids = batches.read(Path(text), vocab, Path(tokenizer) if tokenizer else None)
        draw = batches.windows(ids, vocab, batch, length, seed)
    elif all(i.streams for i in model.spec.inputs.values()):
        draw = batches.synthetic(vocab, batch, length, seed)
    else:
        draw = batches.synthetic_inputs(model, {**(sizes or {}), "batch": batch, "seq": length}, seed)
    from blockgraph.meshes import wires_of

    wires = wires_of(target) if asked is not None else None
    trainer = Trainer(model, request, target, wires=wires, seed=seed, progress=progress,
                      weights=Path(weights) if weights else None)  # fmt: skip
    used = target.devices if asked is not None else 1
    words = Path(tokenizer) if tokenizer else None
    return Run(trainer, lambda: trainer.run(draw, steps, lr, warmup), target, used, notes, words, text is not None)


def _only_tokens(model: Model) -> None:
    if others := [n for n, i in model.spec.inputs.items() if not i.streams]:
        message = f"{model.name} also reads {', '.join(others)}, which a text does not have"
        raise BlockgraphError(Problem("missing-input", message, None, (), "--synthetic, or a trainer in Python"))


def place_here(strategy: str | None, mesh: str | None = None, replicate: Sequence[str] = ()) -> Place | None:
    """A mesh over this machine's devices to generate on; None for one device. Several processes without a strategy
    share the heads: ``tensor``."""
    from blockgraph.meshes import wires_of
    from runtime import device
    from runtime.meshed import Place

    if strategy is None and mesh is None and not replicate and device.processes() == 1:
        return None
    target = own_machine()
    asked, _ = parallel_here(target, strategy, mesh, (), replicate, None, default="tensor")
    return Place(asked, target, wires_of(target)) if asked is not None else None


def data(text: str | Path | None, synthetic: bool) -> None:
    """Raises where nothing, or two things, say what to train on."""
    if text is None and not synthetic:
        message = "there is nothing to train on"
        mend = "--synthetic for random tokens (to see speed and memory), or --text FILE"
        raise BlockgraphError(Problem("missing-option", message, None, (), mend))
    if text is not None and synthetic:
        raise BlockgraphError(Problem("conflicting-options", "--synthetic and --text both say what to train on"))
