"""Meshes on the command line: the options, ``explain``, and what ``compile`` tells of a mesh."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgraph.cli import options, screen
from blockgraph.cli.options import Batch, Json, Length, Sets, Sizes, Spec
from costmodel.calls import BATCH, LENGTH

if TYPE_CHECKING:
    from blockgraph.checks import Checked
    from blockgraph.meshes import Figures

DEFAULT = " (default: decode; forward for a model that has none)"
MESH, TRAINING = "Options of a mesh", "Options of a training step"

Mesh = Annotated[
    str | None,
    typer.Option("--mesh", metavar="AXIS=N,…", help="Devices by mesh axis; one N may be -1.", rich_help_panel=MESH),
]
Strategy = Annotated[
    str | None,
    typer.Option("--parallel", metavar="A+B", help="Strategies, as in fsdp+tensor.", rich_help_panel=MESH),
]
Shard = Annotated[
    list[str] | None,
    typer.Option("--shard", metavar="AXIS=MESHAXIS", help="One more rule; =none takes one out.", rich_help_panel=MESH),
]
Replicate = Annotated[
    list[str] | None,
    typer.Option("--replicate", metavar="AXIS", help="Keep an axis whole that does not divide.", rich_help_panel=MESH),
]
Slices = Annotated[
    int | None, typer.Option("--slices", min=1, help="Joined by the data-centre network only.", rich_help_panel=MESH)
]
Schedule = Annotated[
    str | None,
    typer.Option("--schedule", metavar="NAME", help="Of a pipeline: gpipe, 1f1b, circular.", rich_help_panel=MESH),
]
Microbatches = Annotated[
    int | None, typer.Option("--microbatches", min=1, help="Of a pipeline, at a time.", rich_help_panel=MESH)
]
Rounds = Annotated[
    int | None,
    typer.Option("--rounds", min=1, help="Of a circular pipeline through its stages.", rich_help_panel=MESH),
]
OptimiserName = Annotated[
    str | None, typer.Option("--optimiser", metavar="NAME", help="adamw or sgd.", rich_help_panel=TRAINING)
]
Moments = Annotated[
    str | None, typer.Option("--moments", metavar="DTYPE", help="Of the optimiser's moments.", rich_help_panel=TRAINING)
]
Remat = Annotated[
    str | None,
    typer.Option("--remat", metavar="POLICY", help="full, none, dots, auto, or blocks to keep.",
                 rich_help_panel=TRAINING),
]  # fmt: skip
RematLimit = Annotated[
    float | None, typer.Option("--remat-limit", metavar="GIB", help="For auto, a device.", rich_help_panel=TRAINING)
]
Accumulate = Annotated[
    int | None, typer.Option("--accumulate", min=1, help="Micro-batches of one update.", rich_help_panel=TRAINING)
]
Clip = Annotated[
    float | None,
    typer.Option("--clip", min=0, help="Largest norm of the gradients; 0: none.", rich_help_panel=TRAINING),
]
LossChunk = Annotated[
    int | None,
    typer.Option("--loss-chunk", min=1, help="Positions with logits at once.", rich_help_panel=TRAINING),
]


class Call(Enum):
    """What can be compiled: the phases, and a whole training step."""

    forward = "forward"
    prefill = "prefill"
    decode = "decode"
    verify = "verify"
    train = "train"


def explain(
    spec: Spec,
    parallel: Annotated[
        str, typer.Option("--parallel", metavar="A+B", help="Strategies, as in fsdp+tensor.", rich_help_panel=MESH)
    ],
    mesh: Mesh = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="TARGET", help="A machine, whose links are told then.")
    ] = None,
    chips: Annotated[int | None, typer.Option("--chips", min=1, help="Devices of no machine in particular.")] = None,
    phase: Annotated[Call | None, typer.Option("--phase", help=f"The program to explain{DEFAULT}.")] = None,
    batch: Batch = BATCH,
    length: Length = LENGTH,
    shard: Shard = None,
    replicate: Replicate = None,
    slices: Slices = None,
    schedule: Schedule = None,
    microbatches: Microbatches = None,
    rounds: Rounds = None,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Say what is sharded how on a mesh, what moves, how many bytes and why.
    [dim]blockgraph explain gemma2-2b --parallel fsdp+tensor --mesh fsdp=4,model=2 --phase train --batch 8[/]

    No compiler runs."""
    import blockgraph.api as api

    model = options.loaded(spec, sets)
    found = api.explain(
        model, parallel=parallel, mesh=mesh, target=target, chips=chips, phase=phase.value if phase else None,
        batch=batch, length=length, shard=tuple(shard or ()), replicate=tuple(replicate or ()), slices=slices,
        schedule=schedule, microbatches=microbatches, rounds=rounds, sizes=options.sizes(sizes),
    )  # fmt: skip
    if as_json:
        screen.print_json(found)
        return
    _show_explained(found)


def _show_explained(found: dict[str, Any]) -> None:
    from costmodel import units

    console = screen.console()
    shown = ", ".join(f"{a}={n}" for a, n in found["mesh"].items())
    call = f"{found['model']} · {found['phase']} · batch {found['batch']:,} · length {found['length']:,}"
    rows = [("call", call), ("strategy", str(found["strategy"])), ("mesh", shown)]
    rows += [("links", link["text"]) for link in found["links"].values()]
    console.print(screen.facts(rows))
    weights = screen.table("parameter", "where", "bytes a device", title="parameters", left=(0, 1))
    for p in found["parameters"]:
        weights.add_row(screen.cell(p["label"]), screen.cell(p["placement"]), units.memory_text(p["bytes_per_device"]))
    console.print(weights)
    for block in found["blocks"]:
        console.print(screen.cell(block["path"] or "the whole"), style="bold")
        for line in block.get("work", ()):
            console.print(screen.cell(f"  {line}"), soft_wrap=True)
        for m in block.get("moves", ()):
            sent = units.traffic_text(m["sent"])
            told = f"  {m['kind']} over {'+'.join(m['axes'])} x {m['times']:,}: a device sends {sent} each: {m['why']}"
            console.print(screen.cell(told), style="cyan", soft_wrap=True)
    console.print(moving(found["collectives"]) if found["collectives"] else "nothing moves between devices")
    for note in found["notes"]:
        console.print(screen.cell(f"note: {note}"), style="dim")


def moving(rows: list[dict[str, Any]]) -> Any:
    """Collectives by kind and mesh axes."""
    from costmodel import units

    grid = screen.table("collective", "over", "runs", "a device sends", title="what moves in one call", left=(0, 1))
    for r in rows:
        grid.add_row(r["kind"], "+".join(r["axes"]), f"{r['runs']:,}", units.traffic_text(r["sent"]))
    return grid


def show_figures(figures: Figures) -> None:
    """What one device holds, computes and sends, by our graph."""
    from costmodel import units

    told, console = figures.as_json(), screen.console()
    memory = {kind: size for kind, size in told["memory_per_device"].items() if size}
    shown = ", ".join(f"{a}={n}" for a, n in told["mesh"].items())
    rows = [("mesh", f"{shown} · {told['strategy']}")] if shown else []
    rows += [("links", link) for link in figures.links]
    rows.append(("ours", " · ".join(f"{k} {units.memory_text(v)}" for k, v in memory.items()) + " (a device)"))
    layers = " · ".join(f"{k} {units.flop_text(v)}" for k, v in told["flops_per_layer"].items())
    rows.append(("products", f"{units.flop_text(told['flops_per_device'])} a device and call; one layer: {layers}"))
    console.print(screen.facts(rows))
    if told["collectives"]:
        console.print(moving(told["collectives"]))
    for note in told["notes"]:
        console.print(screen.cell(f"note: {note}"), style="dim")


def show_check(checked: Checked) -> None:
    """The compiled program held against the graph (docs/check.md)."""
    from blockgraph.checks import rows, verdict

    console, found = screen.console(), rows(checked.comparison)
    noted = [r for r in found if r.note]
    if found:
        columns = ("status", "collective", "over", "runs", "bytes", "runs found", "bytes found", "note")
        grid = screen.table(*columns, title="the compiled program against the graph", left=(0, 1, 2))
        for r in found:
            status = f"{r.status}: {r.how}" if r.how else r.status
            numbers = map(screen.number, (r.expected_runs, r.expected_bytes, r.found_runs, r.found_bytes))
            mark = str(noted.index(r) + 1) if r in noted else ""
            grid.add_row(*map(screen.cell, (status, r.kind, r.axes, *numbers, mark)))
        console.print(grid)
    causes: dict[str, list[str]] = {}
    for n, r in enumerate(noted, 1):
        causes.setdefault(r.cause or "not known", []).append(str(n))
        where = f" (in {', '.join(r.paths)})" if r.paths else ""
        console.print(screen.cell(f"{n}  {r.kind} over {r.axes}: {r.note}{where}"))
    for cause, marks in causes.items():
        console.print(screen.cell(f"cause of {', '.join(marks)}: {cause}"), style="dim")
    good = checked.as_asked
    console.print(screen.cell(verdict(checked.comparison)), style="green" if good else "yellow", soft_wrap=True)
    ratio = "not known" if checked.ratio is None else f"{checked.ratio:.4f}"
    console.print(f"FLOPs of products, found / asked for: {ratio}")
    for d in () if checked.same_flops else checked.by_path:
        told = f"  {d.path}: {d.found:,.0f} / {d.expected:,.0f}" + (f": {d.cause}" if d.cause else "")
        console.print(screen.cell(told), style="dim")
