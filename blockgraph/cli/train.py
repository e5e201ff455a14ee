"""``train``: the compiled training step of a model on random tokens or a text, on this machine's devices."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgraph.cli import mesh as meshes
from blockgraph.cli import options, processes, screen
from blockgraph.cli.mesh import Mesh, Microbatches, Replicate, Rounds, Schedule, Shard, Slices, Strategy
from blockgraph.cli.options import Json, Sets, Sizes, Spec
from blockgraph.cli.progress import Progress
from blockgraph.cli.run import Tokenizer

if TYPE_CHECKING:
    from blockgraph.training import Run
    from runtime.train import Step

SHOWN = 20  # lines of a run, about
LONGEST = 10.0  # seconds without a line


def train(
    spec: Spec,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates.")] = 100,
    synthetic: Annotated[bool, typer.Option("--synthetic", help="Train on random tokens …")] = False,
    text: Annotated[Path | None, typer.Option("--text", metavar="FILE", help="… or on windows of a text.")] = None,
    tokenizer: Tokenizer = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of one update, of all devices.")] = 8,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens of a row.")] = 128,
    lr: Annotated[float, typer.Option("--lr", min=0, help="Learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option("--warmup", min=0, metavar="STEPS", help="Over which it rises.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and batches.")] = 0,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="PATH", help="Start from a checkpoint (default: random weights).")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write the trained weights into this new folder.")
    ] = None,
    optimiser: meshes.OptimiserName = None,
    moments: meshes.Moments = None,
    remat: meshes.Remat = None,
    remat_limit: meshes.RematLimit = None,
    accumulate: meshes.Accumulate = None,
    clip: meshes.Clip = None,
    loss_chunk: meshes.LossChunk = None,
    mesh: Mesh = None,
    parallel: Strategy = None,
    shard: Shard = None,
    replicate: Replicate = None,
    slices: Slices = None,
    schedule: Schedule = None,
    microbatches: Microbatches = None,
    rounds: Rounds = None,
    distributed: processes.Distributed = False,
    coordinator: processes.Coordinator = None,
    process_count: processes.Processes = None,
    process_id: processes.ProcessId = None,
    patience: processes.Patience = processes.PATIENCE,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Train a model on this machine's devices, or on many machines'.
    [dim]blockgraph train my.yaml --text book.txt --steps 200 --batch 16 --length 256 --lr 3e-4 --save weights[/]

    With --json a line for each step, then one of the whole. Exit code 1: the loss is no number, or a process
    is gone."""
    from blockgraph import training
    from blockgraph.cli.files import new_folder
    from blockgraph.meshes import check_training

    training.data(text, synthetic)
    place = new_folder(save, "--save") if save is not None else None
    model = options.loaded(spec, sets)
    given = {"optimiser": optimiser, "moments": moments, "remat": remat, "remat_limit": remat_limit,
             "accumulate": accumulate, "clip": clip, "loss_chunk": loss_chunk}  # fmt: skip
    asked = check_training("train", given)
    with processes.joined(distributed, coordinator, process_count, process_id, patience) as group:
        if group.first:
            options.warn(model, as_json)
        with Progress("starting", as_json or not group.first, model.name) as progress:
            run = training.prepare(
                model, steps=steps, text=text, synthetic=synthetic, tokenizer=tokenizer, batch=batch, length=length,
                lr=lr, warmup=warmup, seed=seed, weights=weights, training=asked, mesh=mesh, parallel=parallel,
                shard=tuple(shard or ()), replicate=tuple(replicate or ()), slices=slices,
                schedule=schedule, microbatches=microbatches, rounds=rounds, sizes=options.sizes(sizes),
                progress=progress,
            )  # fmt: skip
            said = _after_first(run.steps(), progress)
            if group.first:
                shown = _show(run, said, steps, as_json)
            else:
                for _ in said:
                    pass
            if place is not None:
                run.save(place)  # all processes: each has its part
            if group.first:
                _end(run, shown, place, as_json)


def _after_first(steps: Iterator[Step], progress: Progress) -> Iterator[Step]:
    """The same steps; the spinner stops with the first, whose time is mostly the compiler's."""
    for said in steps:
        progress.stop()
        yield said


def _show(run: Run, said: Iterator[Step], steps: int, as_json: bool) -> list[Step]:
    """A line now and then, or with --json for each step. Gives the steps."""
    if not as_json:
        for note in run.notes:
            screen.console(stderr=True).print(screen.cell(f"note: {note}"), style="dim", soft_wrap=True)
    every, last = max(1, -(-steps // SHOWN)), time.monotonic()
    shown: list[Step] = []
    with _Bar(steps, quiet=as_json) as bar:
        for step in said:
            shown.append(step)
            if as_json:
                _line(step.as_json())
                continue
            bar.show(step)
            if step.step == 1 and run.trainer.compile_seconds is not None:
                bar.print(f"compiled in {run.trainer.compile_seconds:.1f} s")
            late = time.monotonic() - last > LONGEST
            if late or step.step == 1 or step.step % every == 0 or step.step == steps:
                bar.print(_text(step))
                last = time.monotonic()
    return shown


def _end(run: Run, shown: list[Step], saved: Path | None, as_json: bool) -> None:
    """What the whole run came to."""
    model, later = run.trainer.model, shown[1:] or shown
    rate = sum(s.tokens_per_s * s.seconds for s in later) / sum(s.seconds for s in later)
    head = {"model": model.name, "target": run.target.text, "devices": run.devices, "steps": len(shown)}
    whole = {**head, "first_loss": shown[0].loss, "last_loss": shown[-1].loss, "tokens_per_s": rate,
             "first_step_seconds": shown[0].seconds, "compile_seconds": run.trainer.compile_seconds,
             "saved": None if saved is None else str(saved), "notes": list(run.notes)}  # fmt: skip
    if as_json:
        _line(whole)
        return
    many = "1 device" if run.devices == 1 else f"{run.devices:,} devices"
    text = f"{model.name} on {many} ({run.target.text}): loss {shown[0].loss:.4f} → {shown[-1].loss:.4f}"
    screen.console().print(screen.cell(f"{text}, {rate:,.0f} tokens/s"), soft_wrap=True)
    if saved is not None:
        screen.console().print(screen.cell(f"{saved}: the weights (generate --weights {saved})"), soft_wrap=True)


def _line(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(screen.plain(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def _text(s: Step) -> str:
    rate = f"{s.tokens_per_s:>10,.0f} tokens/s"
    parts = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in s.terms.items())
    whole = f"loss {s.loss:8.4f}" + (f" = {parts}" if parts else "")
    return f"step {s.step:>6,}  {whole}  gradient norm {s.gradient_norm:9.4g}  {rate}"


class _Bar:
    """A progress bar on stderr where that is a terminal; lines on stdout either way."""

    def __init__(self, steps: int, quiet: bool) -> None:
        self.steps, self.shown = steps, None if quiet or not sys.stderr.isatty() else self._made()
        self.task = self.shown.add_task("", total=steps, note="") if self.shown else None

    def _made(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        return RichProgress(*columns, console=screen.console(stderr=True), transient=True)

    def __enter__(self) -> _Bar:
        if self.shown:
            self.shown.start()
        return self

    def show(self, step: Step) -> None:
        if self.shown:
            note = f"loss {step.loss:.4f} · norm {step.gradient_norm:.3g} · {step.tokens_per_s:,.0f} tokens/s"
            self.shown.update(self.task, completed=step.step, note=note)

    def print(self, text: str) -> None:
        if self.shown and sys.stdout.isatty():
            self.shown.console.print(text)
        else:
            screen.console().print(text, soft_wrap=True)
            sys.stdout.flush()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self.shown:
            self.shown.stop()
