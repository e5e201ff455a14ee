"""``simulate`` and ``compile``: what it would cost, and what the real compiler says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgraph.cli import mesh as mesh_options
from blockgraph.cli import options, screen
from blockgraph.cli.mesh import DEFAULT, Call
from blockgraph.cli.options import Batch, Json, Length, Priced, Sets, Sizes, Spec
from costmodel.calls import BATCH, LENGTH, phase_of

if TYPE_CHECKING:
    from rich.table import Table

    from compiler.targets.result import Result

REFUSED = 1


def simulate(
    spec: Spec,
    machine: Annotated[
        str | None, typer.Option("--machine", metavar="NAME", help="Needed: as in `list machines`, or a YAML file.")
    ] = None,
    phase: Annotated[Priced | None, typer.Option("--phase", help=f"The call to price{DEFAULT}.")] = None,
    batch: Batch = BATCH,
    length: Length = LENGTH,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, help="Tokens of one of several prefill calls.")] = None,
    chips: Annotated[int, typer.Option("--chips", min=1, help="Chips that share the work; ideal sharding.")] = 1,
    weights_dtype: Annotated[
        str | None, typer.Option("--weights-dtype", metavar="DTYPE", help="How matrices are stored, as in int8.")
    ] = None,
    cache_dtype: Annotated[
        str | None, typer.Option("--cache-dtype", metavar="DTYPE", help="How keys and values are stored.")
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="The figures without the assumptions.")] = False,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Price one call on a machine: FLOPs, bytes, memory, roofline time.
    [dim]blockgraph simulate gemma2-9b --machine v5e --batch 8[/]

    Printed are the assumptions that have to do with this call; --json holds all."""
    import blockgraph.api as api

    if machine is None:
        from compiler.errors import BlockgraphError, Problem

        known = tuple(api.machines())
        problem = Problem("missing-option", "simulate needs --machine, whose numbers it prices with", None, known)
        raise BlockgraphError(problem)
    model = options.loaded(spec, sets)
    plan = api.simulate(
        model,
        machine,
        phase=phase.value if phase is not None else None,
        batch=batch,
        length=length,
        chunk=chunk,
        chips=chips,
        weights_dtype=weights_dtype,
        cache_dtype=cache_dtype,
        sizes=options.sizes(sizes),
    )
    options.warn(model, as_json)
    if as_json:
        screen.print_json(plan.as_json())
        return
    from costmodel.render import show_plan

    show_plan(plan, screen.console(), brief)


def compile_(
    spec: Spec,
    target: Annotated[
        str, typer.Option("--target", metavar="TARGET", help="cpu, tpu:v5p:4x4x4, gpu:h100:1x8 …; none is needed here.")
    ] = "cpu",
    phase: Annotated[Call | None, typer.Option("--phase", help=f"The program to compile{DEFAULT}.")] = None,
    batch: Batch = BATCH,
    length: Length = LENGTH,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, help="Tokens of one prefill or verify call.")] = None,
    mesh: mesh_options.Mesh = None,
    parallel: mesh_options.Strategy = None,
    shard: mesh_options.Shard = None,
    replicate: mesh_options.Replicate = None,
    slices: mesh_options.Slices = None,
    schedule: mesh_options.Schedule = None,
    microbatches: mesh_options.Microbatches = None,
    rounds: mesh_options.Rounds = None,
    check: Annotated[bool, typer.Option("--check", help="Hold the compiled program against the graph.")] = False,
    optimiser: mesh_options.OptimiserName = None,
    moments: mesh_options.Moments = None,
    remat: mesh_options.Remat = None,
    remat_limit: mesh_options.RematLimit = None,
    accumulate: mesh_options.Accumulate = None,
    clip: mesh_options.Clip = None,
    loss_chunk: mesh_options.LossChunk = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Keep StableHLO, HLO, artifact and summary.json here.")
    ] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help="Seconds for the compiler.")] = 600.0,
    after: Annotated[
        str | None,
        typer.Option("--print-after", metavar="PASS", help="Print the graph after elaborate, phase, select … instead."),
    ] = None,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Compile with the real TPU, GPU or CPU compiler, without the machine.
    [dim]blockgraph compile gemma2-2b --target tpu:v5e:1x1 --phase decode[/]

    Without --out no file stays; the verdict is kept in the cache either way.
    Exit code 1: the compiler refused the program, or it is larger than the card's memory."""
    from compiler.targets.types import parse_target

    parse_target(target)
    model = options.loaded(spec, sets)
    given = options.sizes(sizes)
    import blockgraph.inspect as inspect

    inspect.check_sizes(model, given)
    if after is not None:
        from blockgraph.cli.look import print_graph

        shown, _ = phase_of(model, phase.value if phase is not None else None)
        print_graph(model, after, shown, (batch, length, chunk), given, as_json, parse_target(target).platform)
        return
    import blockgraph.api as api
    from blockgraph.cli.files import folder
    from blockgraph.cli.progress import Progress
    from blockgraph.meshes import check_training
    from costmodel import units

    options.warn(model, as_json)
    named = phase.value if phase is not None else None
    asked = {"optimiser": optimiser, "moments": moments, "remat": remat, "remat_limit": remat_limit,
             "accumulate": accumulate, "clip": clip, "loss_chunk": loss_chunk}  # fmt: skip
    training = check_training(named or "decode", asked)
    place = folder(out) if out is not None else None
    with Progress(quiet=as_json, about=f"{model.name} for {target}") as progress:
        compiled = api.compile(
            model, target, phase=named, batch=batch, length=length, chunk=chunk, mesh=mesh, parallel=parallel,
            shard=tuple(shard or ()), replicate=tuple(replicate or ()), slices=slices, schedule=schedule,
            microbatches=microbatches, rounds=rounds, training=training, check=check, out=place, sizes=given,
            time_limit=time_limit, progress=progress,
        )  # fmt: skip
    result = compiled.result
    if as_json:
        screen.print_json(compiled.as_json())
    else:
        show_result(result, compiled.call)
        if compiled.figures is not None:
            mesh_options.show_figures(compiled.figures)
        if compiled.checked is not None:
            mesh_options.show_check(compiled.checked)
        for setting in compiled.settings:
            word = "would fit" if setting.fits else "would need less"
            about = units.memory_text(setting.needed_bytes)
            screen.console().print(screen.cell(f"{word}, by our estimate ({about} a device): {setting.options}"))
    if not result.accepted:
        raise typer.Exit(REFUSED)


def show_result(result: Result, call: str) -> None:
    """A compiler's verdict, its memory and its cost."""
    from rich.text import Text

    console = screen.console()
    good = result.accepted
    head = Text(f"{call} · {result.target}\n", style="bold")
    head.append("accepted" if good else "REFUSED", style="bold green" if good else "bold red")
    if not good:
        head.append(f" by its {result.refused_by}", style="not bold")
    console.print(head, soft_wrap=True)
    console.print(screen.facts(_verdict(result)))
    console.print(_seconds(result))
    if result.cached:
        told = f"the verdict is kept from an earlier run, whose compiler took {result.seconds.get('compile', 0):,.1f} s"
        console.print(screen.cell(told), style="dim")
    for note in result.notes:
        console.print(screen.cell(f"note: {note}"), style="dim")


def _verdict(result: Result) -> list[tuple[str, Any]]:
    from costmodel import units

    rows: list[tuple[str, Any]] = []
    if not result.accepted:
        if result.needed_bytes is not None and result.available_bytes is not None:
            need, have = units.memory_text(result.needed_bytes), units.memory_text(result.available_bytes)
            rows.append(("needs", f"{need} a device, which has {have}"))
        if result.message:
            rows.append(("it said", _short(result.message)))
    memory = {k: v for k, v in result.memory.items() if v}
    if memory:
        told = [f"{k.removesuffix('_bytes').replace('_', ' ')} {units.memory_text(v)}" for k, v in memory.items()]
        rows.append(("memory", " · ".join(told) + " (a device)"))
    flops, moved = result.cost.get("flops"), result.cost.get("bytes_accessed")
    if flops is not None:
        told = [units.flop_text(flops), *([f"{units.traffic_text(moved)} accessed"] if moved is not None else [])]
        rows.append(("cost", " · ".join(told) + " (as the compiler counts: the body of a loop once)"))
    rows += [("versions", " · ".join(f"{k} {v}" for k, v in result.versions.items()))] if result.versions else []
    rows += [(kind.replace("_", " "), path) for kind, path in result.files.items()]
    return rows


def _short(message: str, lines: int = 6) -> str:
    """A compiler's words without their long tail."""
    told = [line.rstrip() for line in message.strip().splitlines() if line.strip()]
    return "\n".join(line[:300] for line in told[:lines]) + ("\n…" if len(told) > lines else "")


def _seconds(result: Result) -> Table:
    grid = screen.table(*(f"{stage}" for stage in result.seconds), title="seconds", left=())
    cached = {"compile": "cached"} if result.cached else {}
    grid.add_row(*(cached.get(stage) or f"{s:,.1f}" for stage, s in result.seconds.items()))
    return grid
